"""How the log-normaliser of a next-token distribution moves when one neuron moves: exactly, for many neurons at once.

Y needs log-probabilities, so every (context, neuron) has a sum over the vocabulary,

    A = log sum_v p_v exp(D_v),    D_v = (t - 1) l_v + e . u_v,

with l = log p the base log-probabilities, u_v the unembedding row (the norm's weight multiplied in), e the displacement
of the normed residual stream and t the final norm's rescaling. The plain sum takes V exponentials.

A neuron of the last layer has one direction for all contexts, e = s w, so the moments E[D^r] under p are matrix
products of p l^i with (u . w)^k, far cheaper than exponentials. With c_r the central moments, m >= max |D - E[D]|, and
Lagrange's remainder,

    A = E[D] + log(1 + c_2/2 + c_3/6 + c_4/24 + R),    |R| <= c_4 m exp(m) / 120,

and wherever that bound exceeds `TOLERANCE` nats the plain sum is taken instead. So the result is the exact one up to
TOLERANCE and rounding, whatever the model; only the time depends on how strong the neurons are.
"""

from collections.abc import Callable
from math import comb

import torch
from torch import Tensor

ORDER = 4
TOLERANCE = 1e-7
LOWEST_SUM = -0.9  # below it, rounding of S shows in log(1 + S)
CACHED_ELEMENTS = 1 << 18  # what a CPU works on without leaving its cache
CUDA_ELEMENTS = 1 << 26


def _plain_sum(log_p: Tensor, shrink: Tensor, moved: Callable[[slice], Tensor]) -> Tensor:
    """A of one context, [n], by the plain sum: `log_p` [V], `shrink` [n]; `moved(tokens)` is e . u, new [n, tokens]."""
    vocabulary, neurons = len(log_p), len(shrink)
    elements = CUDA_ELEMENTS if log_p.is_cuda else CACHED_ELEMENTS
    width = max(1, elements // neurons)
    pieces = [slice(start, start + width) for start in range(0, vocabulary, width)]
    p = log_p.exp()
    total = torch.zeros_like(shrink)
    for tokens in pieces:
        change = moved(tokens).addcmul_(shrink[:, None], log_p[None, tokens])
        total += change.expm1_() @ p[tokens]
    extreme = ~((total > LOWEST_SUM) & total.isfinite())
    if not bool(extreme.any()):
        return total.log1p()
    logits = torch.cat([moved(tokens)[extreme] for tokens in pieces], dim=1)
    logits.addcmul_(1 + shrink[extreme, None], log_p[None])
    return total.log1p().index_put((extreme,), logits.logsumexp(1))


def by_displacements(log_p: Tensor, shrink: Tensor, displacement: Tensor, unembedding: Tensor) -> Tensor:
    """A, [M, n] nats, where every context and neuron has its own displacement e: `displacement` [M, n, d_model].

    `log_p` [M, V]; `shrink` [M, n] is t - 1; `unembedding` [V, d_model].
    """
    change = torch.empty_like(shrink)
    for context, away in enumerate(displacement):

        def moved(tokens: slice, away: Tensor = away) -> Tensor:
            return away @ unembedding[tokens].T

        change[context] = _plain_sum(log_p[context], shrink[context], moved)
    return change


def along_directions(log_p: Tensor, shrink: Tensor, step: Tensor, unembedding: Tensor, weight: Tensor) -> Tensor:
    """A, [M, n] nats, where neuron j displaces every context along its own direction: e = s w_j.

    `log_p` [M, V]; `shrink` [M, n] is t - 1; `step` [M, n] is s; `unembedding` [V, d_model]; `weight` [d_model, n].
    """
    direct = weight.T @ unembedding.T  # u . w: [n, V]
    mean, *raw = _raw_moments(log_p, shrink, step, unembedding, weight, direct)
    second, third, fourth = _central_moments(mean, *raw)
    largest = shrink.abs() * log_p.abs().amax(1, keepdim=True) + step.abs() * direct.abs().amax(1) + mean.abs()
    total = second / 2 + third / 6 + fourth / 24
    remainder = fourth.clamp(min=0) * largest * largest.exp() / 120
    change = mean + total.log1p()
    unsure = ~((remainder <= TOLERANCE * (1 + total)) & total.isfinite())
    for context in unsure.any(1).nonzero()[:, 0].tolist():
        neurons = unsure[context].nonzero()[:, 0]
        steps = step[context, neurons, None]

        def moved(tokens: slice, neurons: Tensor = neurons, steps: Tensor = steps) -> Tensor:
            return direct[:, tokens][neurons].mul_(steps)

        change[context, neurons] = _plain_sum(log_p[context], shrink[context, neurons], moved)
    return change


def _raw_moments(
    log_p: Tensor, shrink: Tensor, step: Tensor, unembedding: Tensor, weight: Tensor, direct: Tensor
) -> list[Tensor]:
    """E[D], ..., E[D^4] under p, each [M, n], by E[D^r] = sum_i C(r, i) (t - 1)^i s^(r - i) E[l^i b^(r - i)]."""
    moments = [torch.zeros_like(shrink) for _ in range(ORDER)]
    weighted = [log_p.exp()]  # p l^i: [M, V]
    for _ in range(ORDER):
        weighted.append(weighted[-1] * log_p)
    power = direct
    for k in range(ORDER + 1):
        if k > 1:
            power = power * direct
        for i in range(ORDER + 1 - k):
            if i + k == 0:
                continue
            if k == 0:
                joint = weighted[i].sum(1, keepdim=True)
            elif k == 1:
                joint = (weighted[i] @ unembedding) @ weight
            else:
                joint = weighted[i] @ power.T
            moments[i + k - 1] += comb(i + k, i) * shrink**i * step**k * joint
    return moments


def _central_moments(mean: Tensor, square: Tensor, cube: Tensor, fourth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Second to fourth central moments from the raw ones."""
    return (
        square - mean**2,
        cube - 3 * mean * square + 2 * mean**3,
        fourth - 4 * mean * cube + 6 * mean**2 * square - 3 * mean**4,
    )
