"""How the log-normaliser of a next-token distribution moves when one neuron moves: exactly, for many neurons at once.

Y needs log-probabilities, so every (context, neuron) has a sum over the vocabulary,

    A = log sum_v p_v exp(D_v),    D_v = (t - 1) l_v + e . u_v,

with l the base logits that the norm rescales (log p where there is no offset), u_v the unembedding row (the norm's
weight multiplied in), e the displacement of the normed residual stream and t the final norm's rescaling. The plain sum
takes V exponentials.

A neuron of the last layer has one direction for all contexts, e = s w, so the moments E[D^r] under p are matrix
products of p l^i with (u . w)^k, far cheaper than exponentials. With c_r the central moments, m >= max |D - E[D]|, and
Lagrange's remainder,

    A = E[D] + log(1 + c_2/2 + c_3/6 + c_4/24 + R),    |R| <= c_4 m exp(m) / 120,

and wherever that bound exceeds `TOLERANCE` nats the plain sum is taken instead. So the result is the exact one up to
TOLERANCE and rounding, whatever the model; only the time depends on how strong the neurons are. Where the MLP's output
passes a norm, a neuron moves every context also along that output: D has a third part, and the moments another index.
Behind a soft cap D is not linear in the stream, and the plain sum is always taken.
"""

from collections.abc import Callable, Iterator
from math import factorial
from typing import NamedTuple

import torch
from torch import Tensor

from calibration.effects.exact.final_norm import Prediction

ORDER = 4
TOLERANCE = 1e-7
LOWEST_SUM = -0.9  # below it, rounding of S shows in log(1 + S)
CACHED_ELEMENTS = 1 << 18  # what a CPU works on without leaving its cache
CUDA_ELEMENTS = 1 << 26


class Common(NamedTuple):
    """A part of D along a direction that all neurons share at a context: `step` [M, n] times `logits` [M, V]."""

    step: Tensor
    logits: Tensor


def _plain_sum(base: Prediction, shrink: Tensor, moved: Callable[[slice], Tensor]) -> Tensor:
    """A of one context, [n], by the plain sum: `base` [V], `shrink` [n]; `moved(tokens)` is e . u, new [n, tokens]."""
    log_p, rescaled = base.log_p, base.rescaled
    vocabulary, neurons = len(log_p), len(shrink)
    elements = CUDA_ELEMENTS if log_p.is_cuda else CACHED_ELEMENTS
    width = max(1, elements // neurons)
    pieces = [slice(start, start + width) for start in range(0, vocabulary, width)]
    p = log_p.exp()

    def capped(change: Tensor, tokens: slice) -> Tensor:
        return base.capped(change, None if base.logits is None else base.logits[tokens])

    total = torch.zeros_like(shrink)
    for tokens in pieces:
        change = capped(moved(tokens).addcmul_(shrink[:, None], rescaled[None, tokens]), tokens)
        total += change.expm1_() @ p[tokens]
    extreme = ~((total > LOWEST_SUM) & total.isfinite())
    if not bool(extreme.any()):
        return total.log1p()
    logits = torch.cat([moved(tokens)[extreme] for tokens in pieces], dim=1)
    if base.soft_cap is not None:
        logits.addcmul_(shrink[extreme, None], rescaled[None])
        logits = capped(logits, slice(None)) + log_p
    else:
        logits.addcmul_(1 + shrink[extreme, None], rescaled[None])
        logits = logits if rescaled is log_p else logits + (log_p - rescaled)
    return total.log1p().index_put((extreme,), logits.logsumexp(1))


def by_displacements(base: Prediction, shrink: Tensor, displacement: Tensor, unembedding: Tensor) -> Tensor:
    """A, [M, n] nats, where every context and neuron has its own displacement e: `displacement` [M, n, d_model].

    `base` [M, V]; `shrink` [M, n] is t - 1; `unembedding` [V, d_model].
    """
    change = torch.empty_like(shrink)
    for context, away in enumerate(displacement):

        def moved(tokens: slice, away: Tensor = away) -> Tensor:
            return away @ unembedding[tokens].T

        change[context] = _plain_sum(base.at(context), shrink[context], moved)
    return change


def along_directions(
    base: Prediction, shrink: Tensor, step: Tensor, unembedding: Tensor, weight: Tensor, common: Common | None = None
) -> Tensor:
    """A, [M, n] nats, where neuron j displaces every context along its own direction: e = s w_j, and `common` besides.

    `base` [M, V]; `shrink` [M, n] is t - 1; `step` [M, n] is s; `unembedding` [V, d_model]; `weight` [d_model, n].
    """
    direct = weight.T @ unembedding.T  # u . w: [n, V]
    if base.soft_cap is None:
        change, unsure = _by_moments(base, shrink, step, unembedding, weight, direct, common)
    else:
        change, unsure = torch.empty_like(shrink), torch.ones_like(shrink, dtype=torch.bool)
    for context in unsure.any(1).nonzero()[:, 0].tolist():
        neurons = unsure[context].nonzero()[:, 0]
        steps = step[context, neurons, None]

        def moved(tokens: slice, context: int = context, neurons: Tensor = neurons, steps: Tensor = steps) -> Tensor:
            along = direct[:, tokens][neurons].mul_(steps)
            if common is not None:
                along.addcmul_(common.step[context, neurons, None], common.logits[context, None, tokens])
            return along

        change[context, neurons] = _plain_sum(base.at(context), shrink[context, neurons], moved)
    return change


def _by_moments(
    base: Prediction,
    shrink: Tensor,
    step: Tensor,
    unembedding: Tensor,
    weight: Tensor,
    direct: Tensor,
    common: Common | None,
) -> tuple[Tensor, Tensor]:
    """A from four moments, [M, n], and where the remainder is too large to trust it, bool [M, n]."""
    mean, *raw = _raw_moments(base, shrink, step, unembedding, weight, direct, common)
    second, third, fourth = _central_moments(mean, *raw)
    largest = shrink.abs() * base.rescaled.abs().amax(1, keepdim=True) + step.abs() * direct.abs().amax(1) + mean.abs()
    if common is not None:
        largest = largest + common.step.abs() * common.logits.abs().amax(1, keepdim=True)
    total = second / 2 + third / 6 + fourth / 24
    remainder = fourth.clamp(min=0) * largest * largest.exp() / 120
    return mean + total.log1p(), ~((remainder <= TOLERANCE * (1 + total)) & total.isfinite())


def _raw_moments(
    base: Prediction,
    shrink: Tensor,
    step: Tensor,
    unembedding: Tensor,
    weight: Tensor,
    direct: Tensor,
    common: Common | None,
) -> list[Tensor]:
    """E[D], ..., E[D^4] under p, each [M, n].

    With q the common logits and c their step, E[D^r] = sum over i + h + k = r of
    r! / (i! h! k!) (t - 1)^i c^h s^k E[l^i q^h b^k].
    """
    moments = [torch.zeros_like(shrink) for _ in range(ORDER)]
    outer = list(_weighted_powers(base, common))
    power = direct
    for k in range(ORDER + 1):
        if k > 1:
            power = power * direct
        for h, i, weighted in outer:
            if not 0 < h + i + k <= ORDER:
                continue
            if k == 0:
                joint = weighted.sum(1, keepdim=True)
            elif k == 1:
                joint = (weighted @ unembedding) @ weight
            else:
                joint = weighted @ power.T
            times = factorial(h + i + k) // (factorial(h) * factorial(i) * factorial(k))
            term = times * shrink**i * step**k * joint
            moments[h + i + k - 1] += term if common is None else term * common.step**h
    return moments


def _weighted_powers(base: Prediction, common: Common | None) -> Iterator[tuple[int, int, Tensor]]:
    """h, i and p q^h l^i, [M, V], for every h + i up to `ORDER`; h is 0 where nothing is common."""
    outer = base.log_p.exp()
    for h in range(ORDER + 1 if common is not None else 1):
        if common is not None and h > 0:
            outer = outer * common.logits
        weighted = outer
        for i in range(ORDER + 1 - h):
            if i > 0:
                weighted = weighted * base.rescaled
            yield h, i, weighted


def _central_moments(mean: Tensor, square: Tensor, cube: Tensor, fourth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Second to fourth central moments from the raw ones."""
    return (
        square - mean**2,
        cube - 3 * mean * square + 2 * mean**3,
        fourth - 4 * mean * cube + 6 * mean**2 * square - 3 * mean**4,
    )
