"""Edits that are live for some tokens alone, counted from the last prompt token, also while a model generates.

Calibration tries what a guard never does: an edit at the token that decides and the first few after it. Prompts are
padded on the left, so in a forward pass all rows stand at the same place: after as many tokens as its cache holds.
Where the prompts end is for whoever runs the model to say. It is for calibration alone: hooks on an eager model, one
forward pass at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calibration.runs.layer_calls import calls, changed_output, tokens_before
from calibration.runs.trial import Transform, edit_transforms, transformed
from guard.errors import EditNotAppliedError
from guard.families.architectures import architecture_of
from guard.runtime.trigger import TriggerReadout
from guard.spec.edit_spec import LayerEdit, Trigger


@dataclass(frozen=True)
class Window:
    """The tokens from `first` to `last`, both included, counted from the last prompt token, which is 0.

    Those of the prompt are 0 and below, the first response token is 1; None: no bound on that side.
    """

    first: int | None = None
    last: int | None = None

    def holds(self, offsets: Tensor) -> Tensor:
        """Which of `offsets` (int64, any shape) are in the window, bool of their shape."""
        inside = torch.ones_like(offsets, dtype=torch.bool)
        if self.first is not None:
            inside &= offsets >= self.first
        return inside if self.last is None else inside & (offsets <= self.last)

    def columns(self, prompt_width: int, width: int, device: torch.device) -> Tensor:
        """Which columns of a batch whose prompts end before column `prompt_width` are in the window, bool [width]."""
        return self.holds(torch.arange(width, device=device) - (prompt_width - 1))


class _Place:
    """Where the tokens of the forward pass under way stand: `inside` bool [T], whether each is in the window."""

    def __init__(self, layer: nn.Module, window: Window, prompt_width: int) -> None:
        self.layer, self.window, self.prompt_width = layer, window, prompt_width
        self.inside: Tensor | None = None

    def see(self, entering: Tensor, arguments: dict[str, Any]) -> None:
        before = tokens_before(self.layer, arguments)
        columns = self.window.columns(self.prompt_width, before + entering.shape[1], entering.device)
        self.inside = columns[before:]

    def active(self, stream: Tensor) -> Tensor:
        """`inside` for a module that sees `stream` [rows, T, width]."""
        if self.inside is None or len(self.inside) != stream.shape[1]:
            raise EditNotAppliedError("an edited layer ran outside a forward pass of the whole model.")
        return self.inside.to(stream.device)


@contextmanager
def _placed(first: nn.Module, window: Window, prompt_width: int) -> Iterator[_Place]:
    """Within the block, what enters the model's `first` decoder layer, and its cache, say where a pass stands.

    Every pass goes through it, whatever the model itself was given: ids or embeddings, all tokens or some of them.
    """
    place = _Place(first, window, prompt_width)
    with calls(first, place.see):
        yield place


@contextmanager
def windowed_edits(
    model: nn.Module,
    edits: Sequence[LayerEdit],
    trigger: Trigger | None,
    window: Window,
    *,
    prompt_width: int,
) -> Iterator[None]:
    """Within the block, passes of the whole model are edited in `window`, where `trigger` (None: everywhere) says so.

    The prompts of all rows end before column `prompt_width`, padding counted: whether a pass holds them, a part of
    them, or tokens after them, cannot be seen in it. EditNotAppliedError for a pass whose cache does not say how many
    tokens it holds.
    """
    layers = architecture_of(model).decoder_layers(model)
    device = next(model.parameters()).device
    triggered: list[Tensor] = []

    def where(place: _Place, h: Tensor) -> Tensor:
        inside = place.active(h).expand(h.shape[:2])  # [rows, T]
        return inside & triggered[0].to(h.device) if trigger is not None else inside

    def windowed(place: _Place, layer: int) -> Transform:
        edit = [edit for edit in edits if edit.layer == layer]
        return lambda h: edit_transforms(edit, h.device, where(place, h))[layer](h)

    with ExitStack() as stack:
        place = stack.enter_context(_placed(layers[0], window, prompt_width))
        if trigger is not None:
            readout = TriggerReadout(trigger, device)

            def read(entering: Tensor, _: dict[str, Any]) -> None:
                triggered[:] = [readout.to(entering.device)(entering)]

            stack.enter_context(calls(layers[trigger.layer], read))
        stack.enter_context(transformed(model, {edit.layer: windowed(place, edit.layer) for edit in edits}))
        yield


@contextmanager
def windowed_stream(
    model: nn.Module,
    layer: int,
    change: Callable[[Tensor], Tensor],
    window: Window,
    *,
    prompt_width: int,
) -> Iterator[None]:
    """Within the block, the residual stream [rows, T, d_model] that leaves `layer` passes through `change` in `window`.

    Arguments and errors as for `windowed_edits`; outside the window the stream stays as it is, bit for bit.
    """
    layers = architecture_of(model).decoder_layers(model)
    with _placed(layers[0], window, prompt_width) as place:

        def changed(stream: Tensor) -> Tensor:
            return torch.where(place.active(stream)[:, None], change(stream), stream)

        with changed_output(layers[layer], layers[layer], changed):
            yield
