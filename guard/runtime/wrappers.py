"""The modules that take the place of a model's own: the down projection that edits its input, the entry that triggers.

Modules rather than hooks, because torch.compile silently ignores hooks that come or go after compiling, while a
replaced module makes it compile again. A wrapper keeps the model's state_dict keys, so that a guarded model saves and
loads as the plain one does.
"""

import threading
from typing import Any

from torch import Tensor, nn

from guard.errors import EditNotAppliedError
from guard.runtime.buffers import EditBuffers
from guard.runtime.counts import LayerCounts
from guard.runtime.trigger import TriggerReadout


class Hand:
    """What is on its way from the trigger to one guarded layer: the active mask, bool [...], or nothing."""

    active: Tensor | None = None


class ActiveMask(threading.local):
    """Hands one forward pass's active mask from the trigger to one guarded layer, in the same thread, once."""

    def __init__(self) -> None:
        # an object of its own: what compiled code writes to a threading.local itself, other graphs do not see
        self.hand = Hand()

    def __reduce__(self) -> tuple[type["ActiveMask"], tuple[()]]:
        """Copy and pickle as an empty mask: what a pass has left there belongs to that pass."""
        return ActiveMask, ()

    def give(self, active: Tensor) -> None:
        """Hand over the mask of the forward pass that is under way."""
        self.hand.active = active

    def take(self, tokens: tuple[int, ...]) -> Tensor:
        """The mask for a layer that sees tokens of shape `tokens`; EditNotAppliedError unless the trigger gave it.

        A mask [rows, tokens] is flattened, row by row, for a layer whose MLP sees all tokens in one dimension, as OPT's
        does; no other change of shape passes.
        """
        active = self.hand.active
        self.hand.active = None
        if active is None:
            raise EditNotAppliedError(
                "a guarded layer ran without its trigger: run the whole model, without gradient checkpointing."
            )
        if active.dim() == 2 and tokens == (active.shape[0] * active.shape[1],):
            return active.flatten()
        if active.shape != tokens:
            raise EditNotAppliedError(
                f"the trigger saw tokens of shape {tuple(active.shape)}, but a guarded layer sees {tuple(tokens)}."
            )
        return active


class Wrapper(nn.Module):
    """Holds the model's own module as `original` and keeps it out of the state_dict's keys."""

    original: nn.Module

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original
        self.training = original.training
        self.register_load_state_dict_pre_hook(_insert_original)  # type: ignore[no-untyped-call]

    @property
    def weight(self) -> Tensor:
        """The original module's weight, for code that reads it off the model."""
        return self.original.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The original module's bias, for code that reads it off the model."""
        return self.original.bias  # type: ignore[return-value]

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """The original module's state, under its own keys."""
        return self.original.state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)


def _insert_original(_module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before loading: give the original module's keys the place that it has inside the wrapper."""
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}original.{key[len(prefix) :]}"] = state.pop(key)


class GuardedDownProjection(Wrapper):
    """The down projection of the edited neurons: original(edit(h)), for `h` [..., d_ff]."""

    def __init__(self, original: nn.Module, edit: EditBuffers, mask: ActiveMask | None) -> None:
        super().__init__(original)
        self.edit = edit.train(original.training)
        self.mask = mask
        self.counts: LayerCounts | None = None

    def forward(self, h: Tensor) -> Tensor:
        """[..., d_ff] -> [..., d_model]; with a trigger, only tokens that it marked in this forward pass are edited."""
        active = None if self.mask is None else self.mask.take(h.shape[:-1]).to(h.device)
        edited = self.edit(h, active)
        if self.counts is not None:
            self.counts.add(h, edited, active)
        projected: Tensor = self.original(edited)
        return projected


class TriggeredEntry(Wrapper):
    """The module that first reads the residual stream entering a layer, and the trigger with it.

    An input norm, handed the stream as its only argument; where there is none, attention, handed it as `hidden_states`.
    """

    def __init__(self, original: nn.Module, readout: TriggerReadout, masks: tuple[ActiveMask, ...]) -> None:
        super().__init__(original)
        self.readout = readout.train(original.training)
        self.masks = masks

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """What the module returns for its arguments; every guarded layer is handed the active mask."""
        residual = arguments[0] if arguments else named.get("hidden_states")  # [..., d_model]
        if not isinstance(residual, Tensor):
            raise EditNotAppliedError("the trigger's layer was called without a residual stream to read.")
        active = self.readout(residual)
        for mask in self.masks:
            mask.give(active)
        return self.original(*arguments, **named)
