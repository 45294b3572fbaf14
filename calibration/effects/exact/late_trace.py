"""One recorded run of a batch from which the exact effects of all late neurons are computed.

Keeps, at the packed contexts, every late layer's neurons and the residual stream before the final norm, and at all
columns the residual stream entering each late layer, from which keys and values of the prefix follow. That memory,
about (late layers) x 2B x T x d_model numbers, is the price for not running the model again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from calibration.effects.exact.down_columns import down_weight
from calibration.effects.exact.packing import Packing, pack
from calibration.effects.outcome import readout_logits
from calibration.prompts.sequences import Batch
from calibration.runs.interventions import editing
from calibration.runs.layer_calls import calls, changed_input, changed_output
from guard.errors import NeuronGuardError
from guard.families.architectures import Architecture, architecture_of
from guard.spec.edit_spec import LayerEdit


@dataclass(frozen=True)
class LateTrace:
    """A base run of `model` on `batch` with `edits` installed (`active` bool [2B, P + C]: where; None: everywhere).

    `neurons[layer]` [B, S, d_ff]: what enters the down projection, after the edits; `entering[layer]` [2B, P + C,
    d_model] and `arguments[layer]`, what else the layer was given (masks, positions), by name; `normed` [B, S,
    d_model]: what enters the norm after the last layer's MLP, where there is one; `final` [B, S, d_model]: what enters
    the final norm. All in the model's dtype.
    """

    model: nn.Module
    architecture: Architecture
    packing: Packing
    first_layer: int
    edits: tuple[LayerEdit, ...]
    active: Tensor | None
    neurons: dict[int, Tensor] = field(default_factory=dict)
    entering: dict[int, Tensor] = field(default_factory=dict)
    arguments: dict[int, dict[str, Any]] = field(default_factory=dict)
    normed: list[Tensor] = field(default_factory=list)
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

    def mlp_readout(self) -> Tensor:
        """What the norm after the last layer's MLP is given at the read-out contexts, [B, N, d_model], in `dtype`."""
        return self.normed[0][:, -self.packing.readout_width :].to(self.dtype)

    def down_weight(self, layer: int) -> Tensor:
        """The weight [d_model, d_ff] of a layer's down projection, in `dtype`, on the layer's device."""
        module = self.architecture.down_projection(self.layers[layer])
        return down_weight(module, self.dtype, self.final[0].dtype)

    def change(self, layer: int, neurons: Tensor, values: Tensor) -> Tensor:
        """value - h for `neurons` int64 [n] and `values` (broadcast to [2B, T_edited, n]): [B, S, n] in `dtype`."""
        batch, h = self.packing.batch, self.neurons[layer]
        edited = batch.edited.stop - batch.edited.start
        try:
            full = values.to(h.device, self.dtype).expand(2 * batch.size, edited, len(neurons))
        except RuntimeError as error:
            raise NeuronGuardError(
                f"values of shape {tuple(values.shape)} do not broadcast to {(2 * batch.size, edited, len(neurons))} "
                f"(rows, edited columns, neurons)."
            ) from error
        return self.packing.gather_edited(full) - h[..., neurons].to(self.dtype)


@contextmanager
def _recording(trace: LateTrace) -> Iterator[None]:
    """Within the block, a run of the model fills the trace."""
    architecture, packing = trace.architecture, trace.packing

    def keep_call(layer: int) -> Callable[[Tensor, dict[str, Any]], None]:
        def seen(entering: Tensor, arguments: dict[str, Any]) -> None:
            trace.entering[layer], trace.arguments[layer] = entering, arguments

        return seen

    def keep_neurons(layer: int) -> Callable[[Tensor], None]:
        def seen(h: Tensor) -> None:
            trace.neurons[layer] = packing.gather(h)

        return seen

    def keep(kept: list[Tensor]) -> Callable[[Tensor], None]:
        return lambda stream: kept.append(packing.gather(stream))

    with ExitStack() as stack:
        for index in range(trace.first_layer, len(trace.layers)):
            layer = trace.layers[index]
            stack.enter_context(calls(layer, keep_call(index)))
            down = architecture.down_projection(layer)
            stack.enter_context(changed_input(layer, down, keep_neurons(index)))
        last = trace.layers[-1]
        after_mlp = architecture.post_mlp_norm(last)
        if after_mlp is not None:
            stack.enter_context(changed_input(last, after_mlp, keep(trace.normed)))
        stack.enter_context(changed_output(last, last, keep(trace.final)))
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
