"""Put an edit on a transformers model, and take it off again.

Modules are replaced, never hooked (see wrappers.py), so it makes no difference whether torch.compile came before or
after, and everything built on the model's forward pass is guarded with it: generate with its cache, batches, sampling,
beams. Installing or removing while another thread runs the model is the caller's to prevent.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from types import TracebackType
from typing import Self

import torch
from torch import nn

from guard.errors import EditNotAppliedError, ModelMismatchError, SpecError, UnsupportedModelError
from guard.families.architectures import Architecture, architecture_of
from guard.runtime import selftest
from guard.runtime.buffers import EditBuffers
from guard.runtime.counts import Counts
from guard.runtime.trigger import TriggerReadout
from guard.runtime.wrappers import ActiveMask, GuardedDownProjection, TriggeredEntry, Wrapper
from guard.spec.edit_spec import EditSpec, LayerEdit, Trigger
from guard.spec.fingerprint import Tokenizer, verify
from guard.spec.permission import require_servable


@dataclass(frozen=True)
class Replacement:
    """`wrapper` stands at attribute `name` of `parent`, where the model's own module was."""

    parent: nn.Module
    name: str
    wrapper: Wrapper

    def apply(self) -> None:
        """Put the wrapper in."""
        setattr(self.parent, self.name, self.wrapper)

    def undo(self) -> bool:
        """Put the model's own module back; False, and nothing done, if something else stands there now."""
        if getattr(self.parent, self.name) is not self.wrapper:
            return False
        setattr(self.parent, self.name, self.wrapper.original)
        return True


class Installation:
    """A guard on a model. A context manager: the guard is removed when the block ends, however it ends."""

    def __init__(self, replacements: Sequence[Replacement]) -> None:
        self._replacements: list[Replacement] = []
        self._put_in(replacements)

    @property
    def guarded(self) -> list[GuardedDownProjection]:
        """The guarded down projections in the order of their layers; none once removed."""
        wrappers = [replacement.wrapper for replacement in self._replacements]
        return [wrapper for wrapper in wrappers if isinstance(wrapper, GuardedDownProjection)]

    @property
    def readout(self) -> TriggerReadout | None:
        """The trigger's read-out; None without a trigger or once removed."""
        wrappers = [replacement.wrapper for replacement in self._replacements]
        return next((wrapper.readout for wrapper in wrappers if isinstance(wrapper, TriggeredEntry)), None)

    def count(self) -> Counts:
        """Count from now on what the guard does, as far as `Counts.counting` asks for it."""
        counts = Counts([wrapper.edit for wrapper in self.guarded])
        for wrapper, layer in zip(self.guarded, counts.layers, strict=True):
            wrapper.counts = layer
        return counts

    def remove(self) -> None:
        """Put the model's own modules back; a second call does nothing.

        EditNotAppliedError if some module was replaced again since: that one is left as it is, and still guarded.
        """
        kept = [replacement.name for replacement in self._replacements if not replacement.undo()]
        self._replacements = []
        if kept:
            raise EditNotAppliedError(
                f"{', '.join(kept)} was replaced after installation and cannot be restored: undo that first."
            )

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Within the block the model is its own; the guard is back if the block raises, and removed if it does not.

        The block has to leave the model's own modules where they are if it raises, as `install` does.
        """
        replacements = self._replacements
        self.remove()
        with ExitStack() as on_failure:
            on_failure.callback(self._put_in, replacements)
            yield
            on_failure.pop_all()

    def _put_in(self, replacements: Sequence[Replacement]) -> None:
        self._replacements = list(replacements)
        for replacement in self._replacements:
            replacement.apply()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def install(
    model: nn.Module,
    spec: EditSpec,
    *,
    tokenizer: Tokenizer | None = None,
    allow_refuted: bool = False,
) -> Installation:
    """Guard `model` with `spec`: check that they belong together, install, and prove that the edit is live.

    With a `tokenizer`, its digest and its chat template's are checked too. A spec that failed its held-out test raises
    RefutedSpecError unless `allow_refuted`. Raises ModelMismatchError (another model), UnsupportedModelError (unknown
    type) or SelfTestError; whatever is raised, the model is as it was.
    """
    require_servable(spec, allow_refuted=allow_refuted)
    verify(spec, model, tokenizer)
    plain = selftest.probe_logits(model)
    with ExitStack() as on_failure:
        installation = install_edits(model, spec.layers, spec.trigger)
        on_failure.callback(installation.remove)
        selftest.check(model, installation.guarded, installation.readout, plain)
        on_failure.pop_all()
    return installation


def install_edits(model: nn.Module, layers: Sequence[LayerEdit], trigger: Trigger | None = None) -> Installation:
    """Put `layers` on `model`, active where `trigger` says so (everywhere if None); nothing but the fit is checked.

    For edits under trial; what serves goes through `install`. Raises ModelMismatchError where the model has no such
    layer or neuron, SpecError for edits that contradict each other, EditNotAppliedError where a guard is installed
    already; the model is then as it was.
    """
    architecture = architecture_of(model)
    edits = sorted(layers, key=lambda edit: edit.layer)
    decoder_layers = architecture.decoder_layers(model)
    _check_fit(edits, trigger, len(decoder_layers))
    masks = {edit.layer: ActiveMask() if trigger else None for edit in edits}
    replacements = [_guarded_layer(architecture, decoder_layers[edit.layer], edit, masks[edit.layer]) for edit in edits]
    if trigger is not None:
        layer = decoder_layers[trigger.layer]
        handed_to = tuple(mask for mask in masks.values() if mask is not None)
        replacements.append(_triggered_layer(architecture, layer, trigger, architecture.d_model(model), handed_to))
    return Installation(replacements)


def _check_fit(edits: Sequence[LayerEdit], trigger: Trigger | None, num_layers: int) -> None:
    indices = [edit.layer for edit in edits]
    if not indices:
        raise SpecError("there is no layer to edit: nothing can be installed.")
    if len(set(indices)) < len(indices):
        raise SpecError(f"each guarded layer must be named once; named are {indices}.")
    if trigger is not None and trigger.layer > indices[0]:
        raise SpecError(
            f"the trigger reads layer {trigger.layer}, after the first guarded layer {indices[0]}: "
            "it would come too late."
        )
    if indices[-1] >= num_layers or indices[0] < 0:
        raise ModelMismatchError(f"the edit names layers {indices}, but the model has layers 0 to {num_layers - 1}.")


def _guarded_layer(
    architecture: Architecture, layer: nn.Module, edit: LayerEdit, mask: ActiveMask | None
) -> Replacement:
    parent, name = architecture.down(layer)
    original = _own_module(parent, name, f"layer {edit.layer}")
    buffers = EditBuffers.from_edit(edit, _device(original), architecture.neurons_of(layer))
    return Replacement(parent, name, GuardedDownProjection(original, buffers, mask))


def _triggered_layer(
    architecture: Architecture, layer: nn.Module, trigger: Trigger, d_model: int, masks: tuple[ActiveMask, ...]
) -> Replacement:
    if len(trigger.direction) != d_model:
        raise ModelMismatchError(
            f"the trigger's direction has {len(trigger.direction)} entries, but the model's d_model is {d_model}."
        )
    parent, name = architecture.entry(layer)
    original = _own_module(parent, name, f"the trigger's layer {trigger.layer}")
    return Replacement(parent, name, TriggeredEntry(original, TriggerReadout(trigger, _device(original)), masks))


def _own_module(parent: nn.Module, name: str, where: str) -> nn.Module:
    """The module at `name`, which must carry no guard yet."""
    module: nn.Module = getattr(parent, name)
    if any(isinstance(part, Wrapper) for part in module.modules()):
        raise EditNotAppliedError(f"{where} is guarded already: remove that installation first.")
    return module


def _device(module: nn.Module) -> torch.device:
    stored = next(chain(module.parameters(), module.buffers()), None)  # some quantised layers have buffers alone
    if stored is None:
        raise UnsupportedModelError(
            f"{type(module).__name__} holds no tensor: quantise the model with bitsandbytes, torchao or quanto instead."
        )
    device = stored.device
    if device.type == "meta":
        raise UnsupportedModelError("the model's weights are offloaded; load it whole onto its devices to guard it.")
    return device
