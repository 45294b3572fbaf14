"""What tells one kind of harm from another: which late neurons a request's lean to compliance hangs on.

A request's signature has two halves of equal weight: the gradient with respect to the candidate neurons, put through a
random projection where they are many (Johnson and Lindenstrauss 1984), and the effects of moving the strongest of them.
Directions are compared, not lengths, so that a request that leans harder is no other kind. Both are of the first token
of compliance alone, at which it is decided: what an answer goes on to say, and refusals of several wordings, would pass
for several kinds of harm.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.random_projection import GaussianRandomProjection
from torch import Tensor

from calibration.effects.attribution import sum_rows
from calibration.prompts.sequences import Batch
from calibration.runs.trial import Transform, transformed
from calibration.search.selection import Masks, Requests, linear_effects

CANDIDATES, STRONGEST, PROJECTED = 512, 24, 64


def first_token(logits: Tensor, batch: Batch) -> Tensor:
    """Log-probability of the first token of each request's compliance, [B], nats."""
    return logits[: batch.size, 0].float().log_softmax(-1).gather(-1, batch.targets[: batch.size, :1])[:, 0]


def first_odds(logits: Tensor, batch: Batch) -> Tensor:
    """Log-odds of the first token of each request's compliance against all others, [B], nats: they do not saturate."""
    first = logits[: batch.size, 0].float()
    own = batch.targets[: batch.size, :1]
    return first.gather(-1, own)[:, 0] - first.scatter(-1, own, -torch.inf).logsumexp(-1)


def gradients(requests: Requests, values: Mapping[int, Tensor]) -> Tensor:
    """The slope of `first_token` in each late neuron, summed over tokens: [B in all runs, layers, d_ff], on the CPU."""
    collected = []
    for run in requests.runs:
        rows = 2 * run.batch.size
        moves = {
            layer: torch.zeros(rows, 1, value.shape[-1], device=run.residual.device, requires_grad=True)
            for layer, value in values.items()
        }

        def moved(move: Tensor) -> Transform:
            return lambda h: h + move.to(h)

        with torch.enable_grad(), transformed(run.model, {layer: moved(move) for layer, move in moves.items()}):
            total = first_token(run.readout_logits(), run.batch).sum()
        found = torch.autograd.grad(total, list(moves.values()))
        collected.append(torch.stack([sum_rows(gradient[:, 0]).cpu() for gradient in found], dim=1))
    return torch.cat(collected)


@dataclass(frozen=True)
class Signatures:
    """How signatures are made: the replacement values by layer, the candidates and the strongest of them, bool
    [layers, d_ff] each, and the projection of the gradients.
    """

    values: Mapping[int, Tensor]
    candidates: Tensor
    strongest: Tensor
    projection: GaussianRandomProjection | None

    @classmethod
    def of(cls, requests: Requests, values: Mapping[int, Tensor], seed: int) -> "Signatures":
        """Candidates are the neurons of largest linear effect on some of `requests`: by root mean square."""
        effects = _effects(requests, values)
        size = effects.square().mean(0).sqrt()  # [layers, d_ff]
        order = size.flatten().argsort(descending=True)
        candidates = torch.zeros(size.numel(), dtype=torch.bool)
        candidates[order[:CANDIDATES]] = True
        strongest = torch.zeros_like(candidates)
        strongest[order[:STRONGEST]] = True
        count = int(candidates.sum())
        projection = None
        if count > PROJECTED:
            projection = GaussianRandomProjection(PROJECTED, random_state=seed).fit(np.zeros((1, count)))
        return cls(values, candidates.view_as(size), strongest.view_as(size), projection)

    def __call__(self, requests: Requests) -> NDArray[np.float64]:
        """The signature of each request, [B in all runs, features]."""
        slopes = gradients(requests, self.values)[:, self.candidates].double().numpy()
        if self.projection is not None:
            slopes = self.projection.transform(slopes)
        effects = _effects(requests, self.values)[:, self.strongest].double().numpy()
        return np.concatenate([_directions(slopes), _directions(effects)], axis=1)


def _effects(requests: Requests, values: Mapping[int, Tensor]) -> Tensor:
    """The linear effect on `first_token` of moving each late neuron, [B in all runs, layers, d_ff]."""
    return torch.stack([each.cpu() for each in linear_effects(requests, Masks(values), first_token).values()], 1)


def _directions(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    directions: NDArray[np.float64] = rows / np.where(length > 0, length, 1.0)
    return directions
