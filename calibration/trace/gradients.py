"""One forward and one backward pass: every mediator's value at every token, and how Y moves with it.

So every layer, module and neuron of the model gets a linear effect at every token, for the price of about three passes
and of keeping what they write (layers x tokens x (3 d_model + d_ff) numbers, twice). Linear effects miss what saturates
or cancels: they decide what is worth running (`cells.py`, `neurons.py`), and what stays linear is marked.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibration.effects.mediation import MEDIATOR_KINDS
from calibration.effects.outcome import outcome, readout_logits
from calibration.prompts.sequences import Batch
from calibration.runs.interventions import Kind, Mediator, recording, through
from guard.families.architectures import architecture_of

KINDS: tuple[Kind, ...] = (*MEDIATOR_KINDS, "neurons")


@dataclass(frozen=True)
class Gradients:
    """Of each kind and layer, `values` and `gradients` [2, T, width] of one request's two rows; `outcome` is Y."""

    outcome: float
    values: dict[tuple[Kind, int], Tensor]
    gradients: dict[tuple[Kind, int], Tensor]

    def linear(self, kind: Kind, layer: int, replacement: Tensor, columns: list[int]) -> Tensor:
        """Linear effect Y - Y(do(mediator := replacement)) by column and unit, [columns, width] nats.

        `replacement` broadcasts to [2, columns, width].
        """
        values = self.values[kind, layer][:, columns]
        wide = torch.promote_types(values.dtype, torch.float32)
        moved = self.gradients[kind, layer][:, columns].to(wide) * (values.to(wide) - replacement.to(wide))
        return moved.sum(0)


def measure_gradients(model: nn.Module, batch: Batch) -> Gradients:
    """Y's gradient with respect to every mediator of one request."""
    architecture = architecture_of(model)
    places = [(kind, layer) for layer in range(architecture.num_layers(model)) for kind in KINDS]
    kept: dict[tuple[Kind, int], Tensor] = {}

    def keep(place: tuple[Kind, int]) -> Callable[[Tensor], Tensor]:
        def seen(stream: Tensor) -> Tensor:
            kept[place] = stream
            return stream

        return seen

    def start(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return output if output.requires_grad else output.requires_grad_()

    with ExitStack() as stack, torch.enable_grad():
        handle = architecture.embedding(model).register_forward_hook(start)
        stack.callback(handle.remove)
        for kind, layer in places:
            stack.enter_context(through(model, Mediator(kind, layer), keep((kind, layer))))
        lean = outcome(readout_logits(model, batch), batch)  # [1]
        found = torch.autograd.grad(lean.sum(), [kept[place] for place in places])
    gradients = dict(zip(places, found, strict=True))
    return Gradients(float(lean.detach()), {place: kept[place].detach() for place in places}, gradients)


@torch.inference_mode()
def values_in(model: nn.Module, batch: Batch) -> dict[tuple[Kind, int], Tensor]:
    """The value [2, T, width] of every mediator of one request, in one plain pass."""
    every = tuple(range(batch.input_ids.shape[1]))
    layers = range(architecture_of(model).num_layers(model))
    mediators = [Mediator(kind, layer, tokens=every) for layer in layers for kind in KINDS]
    with recording(model, batch, mediators) as values:
        readout_logits(model, batch)
    return {(mediator.kind, mediator.layer): value for mediator, value in values.items()}
