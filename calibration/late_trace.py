"""One recorded run of a batch from which the exact effects of all late neurons are computed.

Keeps, at the packed contexts, every late layer's neurons and the residual stream before the final norm, and at all
columns the residual stream entering each late layer, from which keys and values of the prefix follow. That memory,
about (late layers) x 2B x T x d_model numbers, is the price for not running the model again.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from calibration.interventions import editing
from calibration.outcome import readout_logits
from calibration.packing import Packing, pack
from calibration.sequences import Batch
from guard.architectures import Architecture, architecture_of
from guard.errors import NeuronGuardError, UnsupportedModelError
from guard.spec import LayerEdit


@dataclass(frozen=True)
class LateTrace:
    """A base run of `model` on `batch` with `edits` installed (`active` bool [2B, P + C]: where; None: everywhere).

    `neurons[layer]` [B, S, d_ff]: what enters the down projection, after the edits; `entering[layer]` [2B, P + C,
    d_model] for the layers after `first_layer`; `final` [B, S, d_model]: what enters the final norm;
    `rotations[layer]`: the layer's rotary cosines and sines, [2B or 1, P + C, head size]. All in the model's dtype.
    """

    model: nn.Module
    architecture: Architecture
    packing: Packing
    first_layer: int
    edits: tuple[LayerEdit, ...]
    active: Tensor | None
    neurons: dict[int, Tensor] = field(default_factory=dict)
    entering: dict[int, Tensor] = field(default_factory=dict)
    rotations: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    final: list[Tensor] = field(default_factory=list)

    @property
    def layers(self) -> list[nn.Module]:
        """All decoder layers of the model."""
        return self.architecture.decoder_layers(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """What exact effects are computed in: float64 for a float64 model, float32 for any other."""
        return torch.float64 if self.final[0].dtype == torch.float64 else torch.float32

    def final_readout(self) -> Tensor:
        """The residual stream before the final norm at the read-out contexts, [B, N, d_model], in `dtype`."""
        return self.final[0][:, -self.packing.readout_width :].to(self.dtype)

    def change(self, layer: int, neurons: Tensor, values: Tensor) -> Tensor:
        """value - h for `neurons` int64 [n] and `values` (broadcast to [2B, T_edited, n]): [B, S, n] in `dtype`."""
        batch = self.packing.batch
        edited = batch.edited.stop - batch.edited.start
        try:
            full = values.to(self.dtype).expand(2 * batch.size, edited, len(neurons))
        except RuntimeError as error:
            raise NeuronGuardError(
                f"values of shape {tuple(values.shape)} do not broadcast to {(2 * batch.size, edited, len(neurons))} "
                f"(rows, edited columns, neurons)."
            ) from error
        return self.packing.gather_edited(full) - self.neurons[layer][..., neurons].to(self.dtype)


def down_weight(trace: LateTrace, layer: int) -> Tensor:
    """The weight [d_model, d_ff] of a layer's down projection, in the trace's dtype."""
    module = trace.architecture.down_projection(trace.layers[layer])
    if not isinstance(module, nn.Linear):
        raise UnsupportedModelError(
            f"layer {layer}'s down projection is a {type(module).__name__}, not a linear layer: remove installed "
            f"guards before calibrating, and pass their edits instead."
        )
    return module.weight.to(trace.dtype)


@contextmanager
def _recording(trace: LateTrace) -> Iterator[None]:
    """Within the block, a run of the model fills the trace."""
    architecture, packing = trace.architecture, trace.packing

    def keep_entering(layer: int) -> Any:
        def hook(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            trace.entering[layer] = positional[0] if positional else named["hidden_states"]
            trace.rotations[layer] = named["position_embeddings"]

        return hook

    def keep_neurons(layer: int) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            trace.neurons[layer] = packing.gather(arguments[0])

        return hook

    def keep_final(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        trace.final.append(packing.gather(arguments[0]))

    with ExitStack() as stack:
        for index in range(trace.first_layer, len(trace.layers)):
            layer = trace.layers[index]
            down = architecture.down_projection(layer)
            stack.callback(down.register_forward_pre_hook(keep_neurons(index)).remove)
            if index > trace.first_layer:
                stack.callback(layer.register_forward_pre_hook(keep_entering(index), with_kwargs=True).remove)
        stack.callback(architecture.final_norm(trace.model).register_forward_pre_hook(keep_final).remove)
        yield


@torch.no_grad()
def record_trace(
    model: nn.Module,
    batch: Batch,
    first_layer: int,
    *,
    edits: Sequence[LayerEdit] = (),
    active: Tensor | None = None,
) -> LateTrace:
    """Run `model` once on `batch` with `edits` applied, and keep what exact effects of layers >= `first_layer` need."""
    trace = LateTrace(model, architecture_of(model), pack(batch), first_layer, tuple(edits), active)
    with editing(model, batch, edits, active), _recording(trace):
        readout_logits(model, batch)
    return trace
