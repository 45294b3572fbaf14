"""Runs with mediators recorded, patched with another run's values, or edited.

Everything here hooks eager modules, layer by layer: plain, slow, and the yardstick for the faster exact paths
(`closed_form.py`, `suffix.py`). It is for calibration only; what serves replaces modules (`guard.install`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from calibration.effects.outcome import outcome, readout_logits
from calibration.prompts.sequences import Batch
from calibration.runs.layer_calls import changed_input, changed_output
from calibration.runs.trial import edit_transforms, transformed
from guard.families.architectures import architecture_of
from guard.spec.edit_spec import LayerEdit

Kind = Literal["layer", "attention", "mlp", "neurons"]
TokenGroup = Literal["edited", "tail", "last_prompt", "response", "first_response"]
TOKEN_GROUPS: tuple[TokenGroup, ...] = ("edited", "tail", "last_prompt", "response", "first_response")


@dataclass(frozen=True)
class Mediator:
    """What is intervened on, and at which tokens.

    `layer`: the residual stream that leaves decoder layer `layer`; `attention`, `mlp`: that module's output, before any
    norm or multiplier that it passes on its way to the stream; `neurons`: entries of the down projection's input
    (`neurons` names them; None: all d_ff). `tokens` is a group or explicit columns.
    """

    kind: Kind
    layer: int
    neurons: tuple[int, ...] | None = None
    tokens: TokenGroup | tuple[int, ...] = "edited"


def token_columns(batch: Batch, tokens: TokenGroup | tuple[int, ...]) -> list[int]:
    """The columns of a token group, in order.

    edited: template tail and forced response up to the last column read out; tail: the template tail; last_prompt: the
    column that predicts the first response token; response: the forced response; first_response: its first token (no
    column at all where continuations are one token long, since that token then predicts nothing that is read out).
    """
    if not isinstance(tokens, str):
        return list(tokens)
    prompt, edited = batch.prompt_width, range(batch.edited.start, batch.edited.stop)
    groups: dict[TokenGroup, range] = {
        "edited": edited,
        "tail": range(edited.start, prompt),
        "last_prompt": range(prompt - 1, prompt),
        "response": range(prompt, edited.stop),
        "first_response": range(prompt, min(prompt + 1, edited.stop)),
    }
    return list(groups[tokens])


def _write(stream: Tensor, columns: Sequence[int], neurons: Sequence[int] | None, values: Tensor) -> Tensor:
    """`stream` [2B, T, width] with `values` (broadcast to [2B, columns, neurons or width]) written in, out of place."""
    written, places = stream.clone(), _indices(columns, stream)
    if neurons is None:
        written[:, places] = values.to(stream)
    else:
        written[:, places[:, None], _indices(neurons, stream)] = values.to(stream)
    return written


def _read(stream: Tensor, columns: Sequence[int], neurons: Sequence[int] | None) -> Tensor:
    """The mediator's values in `stream`: [2B, columns, neurons or width]."""
    chosen = stream[:, _indices(columns, stream)]
    return chosen if neurons is None else chosen[..., _indices(neurons, stream)]


def _indices(places: Sequence[int], stream: Tensor) -> Tensor:
    return torch.tensor(places, dtype=torch.int64, device=stream.device)


def through(
    model: nn.Module, mediator: Mediator, change: Callable[[Tensor], Tensor | None]
) -> AbstractContextManager[None]:
    """Within the block, the mediator's whole stream [rows, T, width] passes through `change` (None: as it is)."""
    architecture = architecture_of(model)
    layer = architecture.decoder_layers(model)[mediator.layer]
    if mediator.kind == "neurons":
        return changed_input(layer, architecture.down_projection(layer), change)
    modules = {"layer": layer, "attention": architecture.attention(layer), "mlp": architecture.mlp(layer)}
    return changed_output(layer, modules[mediator.kind], change)


@contextmanager
def recording(model: nn.Module, batch: Batch, mediators: Sequence[Mediator]) -> Iterator[dict[Mediator, Tensor]]:
    """Within the block, each run of `model` on `batch` leaves the mediators' values in the mapping.

    Values are [2B, T_group, width] in the model's dtype (width: d_model, d_ff, or the number of named neurons),
    detached.
    """
    values: dict[Mediator, Tensor] = {}

    def keep(mediator: Mediator) -> Callable[[Tensor], None]:
        columns = token_columns(batch, mediator.tokens)

        def read(stream: Tensor) -> None:
            values[mediator] = _read(stream.detach(), columns, mediator.neurons)

        return read

    with ExitStack() as stack:
        for mediator in mediators:
            stack.enter_context(through(model, mediator, keep(mediator)))
        yield values


@contextmanager
def patching(model: nn.Module, batch: Batch, values: Mapping[Mediator, Tensor]) -> Iterator[None]:
    """Within the block, mediators take `values`, broadcast to [2B, T_group, width], in runs of `model` on `batch`."""

    def overwrite(mediator: Mediator, replacement: Tensor) -> Callable[[Tensor], Tensor]:
        columns = token_columns(batch, mediator.tokens)
        return lambda stream: _write(stream, columns, mediator.neurons, replacement)

    with ExitStack() as stack:
        for mediator, replacement in values.items():
            stack.enter_context(through(model, mediator, overwrite(mediator, replacement)))
        yield


@contextmanager
def editing(model: nn.Module, batch: Batch, edits: Sequence[LayerEdit], active: Tensor | None = None) -> Iterator[None]:
    """Within the block, `edits` apply to every token, or where `active` (bool [2B, P + C]) is True."""
    with transformed(model, edit_transforms(edits, batch.input_ids.device, active)):
        yield


def recorded(model: nn.Module, batch: Batch, mediators: Sequence[Mediator]) -> tuple[Tensor, dict[Mediator, Tensor]]:
    """Y of an untouched run, [B] nats, and the mediators' values in it."""
    with torch.inference_mode(), recording(model, batch, mediators) as values:
        return outcome(readout_logits(model, batch), batch), values


def patched_outcome(model: nn.Module, batch: Batch, values: Mapping[Mediator, Tensor]) -> Tensor:
    """Y(do(mediators := values)) of each request, [B] nats, by one full forward pass."""
    with torch.inference_mode(), patching(model, batch, values):
        return outcome(readout_logits(model, batch), batch)
