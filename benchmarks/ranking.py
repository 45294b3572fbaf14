"""Other ways to name the neurons of a gate, for comparison: each gives every late neuron a score, highest first.

The peers get what they do not have in the field, the true number of neurons, and are ablated to 0 as the true gate is.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from calibration.attribution import attribution_patching, integrated_gradients, relevance_patching
from calibration.gate import Late
from calibration.resume import LateRun
from calibration.stage import neuron_values

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
        return _contrast(late)
    zero = {layer: torch.zeros_like(mean) for layer, mean in late.activations.benign_mean.items()}
    parts = [ATTRIBUTIONS[method](run, zero) for run in late.calibration["harmful"].runs]  # [B, late layers, d_ff] each
    return torch.cat(parts).float().mean(0)


def _contrast(late: Late) -> Tensor:
    """Absolute difference of mean activations at the last prompt token, harmful less benign, as CNA contrasts them."""
    rows = []
    harmful, benign = (neuron_values(late.calibration[kind], late.layers) for kind in ("harmful", "benign"))
    for layer in late.layers:
        means = [
            kind[layer].states[torch.arange(len(kind[layer].decisive)), kind[layer].decisive].float().mean(0)
            for kind in (harmful, benign)
        ]
        rows.append((means[0] - means[1]).abs())
    return torch.stack(rows)


def best(scored: Tensor, layers: tuple[int, ...], count: int) -> list[tuple[int, int]]:
    """The `count` neurons with the highest scores, best first, as (layer, neuron)."""
    width = scored.shape[1]
    return [(layers[place // width], place % width) for place in scored.flatten().topk(count).indices.tolist()]
