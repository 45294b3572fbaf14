"""Run only the late layers, again and again, from a residual stream kept once.

Every trial of a gate in the late layers shares what comes before them. `LateRun` keeps the residual stream that enters
the first late layer and each late layer's other arguments (mask, positions), and calls the model's own layers with
them, so it holds for every architecture whose layers map a residual stream to a residual stream. It trades memory
([2B, T, d_model] per batch) for the depth before the first late layer. Gradients flow where the caller lets them.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calibration.effects.outcome import readout_logits
from calibration.prompts.sequences import Batch
from calibration.runs.layer_calls import calls, leaving
from guard.families.architectures import architecture_of


@dataclass(frozen=True)
class LateRun:
    """The state of one batch at the entrance of layer `first_layer`: `residual` [2B, T, d_model]."""

    model: nn.Module
    batch: Batch
    first_layer: int
    residual: Tensor
    arguments: tuple[dict[str, Any], ...]

    def advanced(self) -> "LateRun":
        """The same run one layer further on."""
        layer = architecture_of(self.model).decoder_layers(self.model)[self.first_layer]
        residual = leaving(layer, self.residual, self.arguments[0])
        return LateRun(self.model, self.batch, self.first_layer + 1, residual, self.arguments[1:])

    def readout_logits(self) -> Tensor:
        """Logits that predict the continuation, [2B, C, V], with whatever is installed on the late layers now."""
        architecture = architecture_of(self.model)
        residual = self.residual
        layers = architecture.decoder_layers(self.model)[self.first_layer :]
        for layer, arguments in zip(layers, self.arguments, strict=True):
            residual = leaving(layer, residual, arguments)
        logits = architecture.logits(self.model, residual[:, self.batch.readout])
        return logits.to(self.batch.input_ids.device)  # a model may end on another device than it begins on


def record(model: nn.Module, batch: Batch, first_layer: int) -> LateRun:
    """Run the whole model once on `batch` and keep what layers from `first_layer` on need to run again."""
    layers = architecture_of(model).decoder_layers(model)
    residual: list[Tensor] = []
    arguments: list[dict[str, Any]] = []

    def keep(entering: Tensor, others: dict[str, Any]) -> None:
        if not residual:
            residual.append(entering.detach())
        arguments.append(others)

    with ExitStack() as stack, torch.no_grad():
        for layer in layers[first_layer:]:
            stack.enter_context(calls(layer, keep))
        readout_logits(model, batch)
    return LateRun(model, batch, first_layer, residual[0], tuple(arguments))
