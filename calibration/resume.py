"""Run only the late layers, again and again, from a residual stream kept once.

Every trial of a gate in the late layers shares what comes before them. `LateRun` keeps the residual stream that enters
the first late layer and each late layer's other arguments (mask, positions), and calls the model's own layers with
them, so it holds for every architecture whose layers map a residual stream to a residual stream. It trades memory
([2B, T, d_model] per batch) for the depth before the first late layer. Gradients flow where the caller lets them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calibration.outcome import readout_logits
from calibration.sequences import Batch
from guard.architectures import architecture_of


@dataclass(frozen=True)
class LateRun:
    """The state of one batch at the entrance of layer `first_layer`: `residual` [2B, T, d_model]."""

    model: nn.Module
    batch: Batch
    first_layer: int
    residual: Tensor
    arguments: tuple[dict[str, Any], ...]

    def readout_logits(self) -> Tensor:
        """Logits that predict the continuation, [2B, C, V], with whatever is installed on the late layers now."""
        architecture = architecture_of(self.model)
        residual = self.residual
        layers = architecture.decoder_layers(self.model)[self.first_layer :]
        for layer, arguments in zip(layers, self.arguments, strict=True):
            output = layer(residual, **arguments)
            residual = output[0] if isinstance(output, tuple) else output
        final = architecture.final_norm(self.model)(residual[:, self.batch.readout])  # [2B, C, d_model]
        logits: Tensor = architecture.unembedding(self.model)(final)
        return logits


def record(model: nn.Module, batch: Batch, first_layer: int) -> LateRun:
    """Run the whole model once on `batch` and keep what layers from `first_layer` on need to run again."""
    layers = architecture_of(model).decoder_layers(model)
    residual: list[Tensor] = []
    arguments: list[dict[str, Any]] = []

    def keep(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        entering = positional[0] if positional else named["hidden_states"]
        if not residual:
            residual.append(entering.detach())
        arguments.append({name: value for name, value in named.items() if name != "hidden_states"})

    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers[first_layer:]]
    try:
        with torch.no_grad():
            readout_logits(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return LateRun(model, batch, first_layer, residual[0], tuple(arguments))
