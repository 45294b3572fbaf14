"""Other ways to name the neurons of a gate, for comparison: each gives every late neuron a score, highest first.

The peers get what they do not have in the field, the true number of neurons, and are ablated to 0 as the true gate is.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from calibration.effects.attribution import attribution_patching, integrated_gradients, relevance_patching
from calibration.effects.outcome import readout_logits
from calibration.prompts.sequences import Batch
from calibration.runs.resume import LateRun
from calibration.runs.trial import Transform, transformed
from calibration.search.gate import Late

Method = Literal["contrast", "AtP", "integrated gradients", "RelP", "random"]
Attribution = Callable[[LateRun, Mapping[int, Tensor]], Tensor]
ATTRIBUTIONS: dict[Method, Attribution] = {
    "AtP": attribution_patching,
    "integrated gradients": integrated_gradients,
    "RelP": relevance_patching,
}
METHODS: tuple[Method, ...] = ("contrast", *ATTRIBUTIONS, "random")


def scores(method: Method, late: Late, *, seed: int) -> Tensor:
    """The method's score of each late neuron, [late layers, d_ff], on the calibration requests."""
    if method == "random":
        width = late.activations.benign_mean[late.layers[0]].shape[0]
        return torch.rand(len(late.layers), width, generator=torch.Generator().manual_seed(seed))
    if method == "contrast":
        harmful, benign = (late.calibration[kind] for kind in ("harmful", "benign"))
        return contrast(harmful.runs[0].model, harmful.batches, benign.batches, late.layers)
    zero = {layer: torch.zeros_like(mean) for layer, mean in late.activations.benign_mean.items()}
    parts = [ATTRIBUTIONS[method](run, zero) for run in late.calibration["harmful"].runs]  # [B, late layers, d_ff] each
    return torch.cat(parts).float().mean(0)


def contrast(model: nn.Module, harmful: Sequence[Batch], benign: Sequence[Batch], layers: Sequence[int]) -> Tensor:
    """Absolute difference of mean activations at the last prompt token, harmful less benign, as CNA contrasts them:
    [layers, d_ff].
    """
    return (_decisive_mean(model, harmful, layers) - _decisive_mean(model, benign, layers)).abs()


@torch.inference_mode()
def _decisive_mean(model: nn.Module, batches: Sequence[Batch], layers: Sequence[int]) -> Tensor:
    """Mean activation of the neurons of `layers` at the last prompt token, [layers, d_ff], float32."""
    collected: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def keeping(layer: int, batch: Batch) -> Transform:
        def transform(h: Tensor) -> Tensor:
            collected[layer].append(h[: batch.size, batch.prompt_width - 1].float().cpu())  # [B, d_ff]
            return h

        return transform

    for batch in batches:
        with transformed(model, {layer: keeping(layer, batch) for layer in layers}):
            readout_logits(model, batch)
    return torch.stack([torch.cat(collected[layer]).mean(0) for layer in layers])


def best(scored: Tensor, layers: tuple[int, ...], count: int) -> list[tuple[int, int]]:
    """The `count` neurons with the highest scores, best first, as (layer, neuron)."""
    width = scored.shape[1]
    return [(layers[place // width], place % width) for place in scored.flatten().topk(count).indices.tolist()]
