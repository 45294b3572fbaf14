"""A conditional steering vector in the manner of CAST (Lee et al. 2024, arXiv 2409.05907).

The behaviour vector of each layer is the first principal component of residual streams over refusals and over
compliances to the same requests, each pair less its middle; it is added at several layers. It is added only for
requests whose prompt resembles the condition vector, the first principal component between harmful and benign prompts:
cos(h, tanh(proj_c h)) on one side of a threshold, with h the mean over the prompt's tokens. Layer, threshold and side
of the condition are those with the best F1 on the calibration requests; layers and strength of the behaviour vector
are chosen on validation. It points to refusal and is only ever added.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.localisation.peers.contender import Contender
from benchmarks.localisation.peers.vectors import added, compliance_rows, over_prompt, over_response, states
from calibration.prompts.sequences import Batch
from calibration.search.gate import SplitBatches

STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
THRESHOLDS = 64


def principal_direction(first: Tensor, second: Tensor) -> Tensor:
    """First principal component [d_model] of two sets of points ([n, d_model] each) less the middle of their means.

    It points from the second set to the first, and is as long as the way between their means along it.
    """
    middle = (first.mean(0) + second.mean(0)) / 2
    component: Tensor = torch.linalg.svd(torch.cat([first, second]) - middle, full_matrices=False).Vh[0]
    return component * ((first.mean(0) - second.mean(0)) @ component)


def likeness(points: Tensor, condition: Tensor) -> Tensor:
    """cos(h, tanh(proj_c h)) of each of `points` [N, d_model], [N]."""
    unit = nn.functional.normalize(condition, dim=0)
    projected = torch.tanh((points @ unit)[:, None] * unit)
    return nn.functional.cosine_similarity(points, projected, dim=1)


class PromptCondition:
    """Whether a prompt's likeness to `vector` at `layer` is above (side 1) or below (-1) the threshold."""

    def __init__(self, layer: int, vector: Tensor, threshold: float, side: int) -> None:
        self.layer, self.vector, self.threshold, self.side = layer, vector, threshold, side

    def of(self, points: Tensor) -> Tensor:
        """Bool [N] for mean residual streams of prompts, [N, d_model]."""
        return self.side * likeness(points, self.vector) > self.side * self.threshold

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Bool [B] for the requests of a batch."""
        return self.of(over_prompt(states(model, [batch])[self.layer]))


def best_condition(harmful: dict[int, Tensor], benign: dict[int, Tensor]) -> PromptCondition:
    """The condition with the best F1 on points by layer, [n, d_model] each, harmful ones being those meant."""
    best, best_score = None, -1.0
    for layer, meant in harmful.items():
        vector = principal_direction(meant, benign[layer])
        points = torch.cat([meant, benign[layer]])
        labels = torch.arange(len(points)) < len(meant)
        alike = likeness(points, vector)
        for threshold in np.linspace(float(alike.min()), float(alike.max()), THRESHOLDS).tolist():
            for side in (1, -1):
                condition = PromptCondition(layer, vector, threshold, side)
                score = _f1(labels, condition.side * alike > condition.side * condition.threshold)
                if score > best_score:
                    best, best_score = condition, score
    if best is None:
        raise ValueError("a condition needs the residual streams of at least one layer")
    return best


def _f1(meant: Tensor, found: Tensor) -> float:
    """Harmonic mean of precision and recall of `found` for `meant`, bool [n] both."""
    return float(2 * (meant & found).sum() / (meant.sum() + found.sum()))


def candidates(model: nn.Module, split: SplitBatches) -> list[Contender]:
    """The best condition with every strength, over the later half of the layers and over all, from one split."""
    condition = best_condition(
        *(
            {layer: over_prompt(found) for layer, found in states(model, batches).items()}
            for batches in (split.harmful, split.benign)
        )
    )
    vectors = {}
    for layer, found in states(model, split.benign, both_rows=True).items():
        points, complying = over_response(found), compliance_rows(split.benign)
        vectors[layer] = principal_direction(points[~complying], points[complying])
    later = {layer: vector for layer, vector in vectors.items() if layer >= len(vectors) // 2}
    return [
        Contender(
            f"{strength:g} x layers {min(over)}-{max(over)}", partial(added, model, _scaled(over, strength)), condition
        )
        for over in (later, vectors)
        for strength in STRENGTHS
    ]


def _scaled(vectors: dict[int, Tensor], strength: float) -> dict[int, Tensor]:
    return {layer: strength * vector for layer, vector in vectors.items()}
