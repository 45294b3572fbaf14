"""How the log-normaliser of a next-token distribution moves when one neuron moves: exactly, for many neurons at once.

Y needs log-probabilities, so every (context, neuron) has a sum over the vocabulary,

    A = log sum_v p_v exp(D_v),    D_v = (t - 1) l_v + e . u_v,

with l = log p the base log-probabilities, u_v the unembedding row (the norm's weight multiplied in), e the displacement
of the normed residual stream and t the final norm's rescaling. For a neuron of the last layer e = s w, one direction w
for all contexts. Exponentials cost far more than products, so only the `HEAD` most likely tokens get one. For the rest,
the tail, sum p (exp(D) - 1) is taken to second order, which is matrix products:

    S = sum_head p (exp(D) - 1) + sum_tail p (D + D^2 / 2),    A = log(1 + S),
    |error of S| <= (sum_tail p D^2) m exp(m) / 6,    m >= max_tail |D|     (Lagrange's remainder).

An entry whose bound exceeds `TOLERANCE` nats is summed again over the whole vocabulary (as is one whose sum overflows
or comes close to zero). So the result is the exact sum
up to TOLERANCE and rounding, whatever the model; only the time depends on how strong the neurons are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

HEAD = 32
TOLERANCE = 1e-7
LOWEST_SUM = -0.9  # below it, rounding of S shows in log(1 + S)


@dataclass(frozen=True)
class Tail:
    """What M contexts give to their tails: `p` and `p_log_p` [M, V] (0 in the head), `deepest` [M, 1] = max |l|."""

    p: Tensor
    p_log_p: Tensor
    mean_square: Tensor
    deepest: Tensor

    @property
    def mean(self) -> Tensor:
        """sum p l, [M, 1]."""
        return self.p_log_p.sum(1, keepdim=True)


def _split(log_p: Tensor) -> tuple[Tensor, Tensor, Tail | None]:
    """Head log-probabilities and tokens, [M, head] each, and the tail (None where the head is everything)."""
    head = min(HEAD, log_p.shape[1])
    head_log_p, tokens = log_p.topk(head, dim=1)
    if head == log_p.shape[1]:
        return head_log_p, tokens, None
    depth = log_p.scatter(1, tokens, 0.0)  # l in the tail, 0 in the head
    p = log_p.exp().scatter(1, tokens, 0.0)
    weighted = p * depth
    mean_square = (weighted * depth).sum(1, keepdim=True)
    return head_log_p, tokens, Tail(p, weighted, mean_square, depth.abs().amax(1, keepdim=True))


def _finish(
    head: Tensor, first: Tensor, second: Tensor, largest: Tensor, whole: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """A [M, n] from the head's sum, the tail's moments of D and max |D|; `whole` redoes unsure entries."""
    second = second.clamp(min=0)
    total = head + first + second / 2
    remainder = second * largest * largest.exp() / 6
    change = torch.log1p(total)
    sure = (remainder <= TOLERANCE * (1 + total)) & (total > LOWEST_SUM) & total.isfinite()
    unsure = ~sure
    if bool(unsure.any()):
        context, neuron = unsure.nonzero(as_tuple=True)
        change[context, neuron] = whole(context, neuron)
    return change


def _head_sum(log_p: Tensor, shrink: Tensor, moved: Callable[[slice], Tensor], contexts: int) -> Tensor:
    """sum over head tokens of p (exp(D) - 1), [M, n]; `moved(contexts)` is e . u, [m, head, n], its own memory."""
    parts = []
    for start in range(0, len(log_p), contexts):
        piece = slice(start, start + contexts)
        change = moved(piece).addcmul_(log_p[piece, :, None], shrink[piece, None])
        parts.append(torch.bmm(log_p[piece].exp()[:, None], change.expm1_())[:, 0])
    return torch.cat(parts)


def _whole(
    log_p: Tensor, shrink: Tensor, moved: Callable[[Tensor, Tensor], Tensor], memory_limit: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """The plain sum over every token for listed entries; `moved(context, neuron)` is e . u, [entries, V]."""
    entries = max(1, memory_limit // (4 * log_p.shape[1] * log_p.element_size()))

    def redo(context: Tensor, neuron: Tensor) -> Tensor:
        parts = []
        for start in range(0, len(context), entries):
            at, of = context[start : start + entries], neuron[start : start + entries]
            logits = moved(at, of).addcmul_(log_p[at], 1 + shrink[at, of, None])
            parts.append(logits.logsumexp(1))
        return torch.cat(parts)

    return redo


def along_directions(
    log_p: Tensor, shrink: Tensor, step: Tensor, unembedding: Tensor, weight: Tensor, memory_limit: int
) -> Tensor:
    """A, [M, n] nats, where neuron j displaces every context along its own direction: e = s w_j.

    `log_p` [M, V]; `shrink` [M, n] is t - 1; `step` [M, n] is s; `unembedding` [V, d_model]; `weight` [d_model, n].
    `memory_limit` in bytes bounds the temporaries, not `unembedding @ weight` itself.
    """
    if not len(log_p):
        return torch.zeros_like(shrink)
    direct = unembedding @ weight  # u . w: [V, n]
    head_log_p, tokens, tail = _split(log_p)
    contexts = max(1, memory_limit // (3 * tokens.shape[1] * direct.shape[1] * direct.element_size()))
    head = _head_sum(head_log_p, shrink, lambda piece: direct[tokens[piece]].mul_(step[piece, None]), contexts)

    def moved(at: Tensor, of: Tensor) -> Tensor:
        return direct.T[of].mul_(step[at, of, None])

    whole = _whole(log_p, shrink, moved, memory_limit)
    if tail is None:
        nothing = torch.zeros_like(head)
        return _finish(head, nothing, nothing, nothing, whole)
    first = shrink * tail.mean + step * ((tail.p @ unembedding) @ weight)
    cross = (tail.p_log_p @ unembedding) @ weight
    second = shrink.square() * tail.mean_square + 2 * shrink * step * cross + step.square() * (tail.p @ direct.square())
    largest = shrink.abs() * tail.deepest + step.abs() * direct.abs().amax(0)
    return _finish(head, first, second, largest, whole)


def by_displacements(
    log_p: Tensor, shrink: Tensor, displacement: Tensor, unembedding: Tensor, memory_limit: int
) -> Tensor:
    """A, [M, n] nats, where every context and neuron has its own displacement e: `displacement` [M, n, d_model].

    `log_p` [M, V]; `shrink` [M, n] is t - 1; `unembedding` [V, d_model]. The tail's second moment is the quadratic form
    of sum_tail p u u^T, one [d_model, d_model] matrix a context, which pays once several neurons share it.
    """
    if not len(log_p):
        return torch.zeros_like(shrink)
    vocabulary, d_model = unembedding.shape
    neurons = displacement.shape[1]
    head_log_p, tokens, tail = _split(log_p)
    contexts = max(1, memory_limit // (4 * max(tokens.shape[1] * neurons, vocabulary * d_model) * log_p.element_size()))
    head = _head_sum(
        head_log_p, shrink, lambda piece: unembedding[tokens[piece]] @ displacement[piece].transpose(1, 2), contexts
    )

    def moved(at: Tensor, of: Tensor) -> Tensor:
        return displacement[at, of] @ unembedding.T

    whole = _whole(log_p, shrink, moved, memory_limit)
    if tail is None:
        nothing = torch.zeros_like(head)
        return _finish(head, nothing, nothing, nothing, whole)
    first = shrink * tail.mean + (displacement @ (tail.p @ unembedding)[:, :, None])[..., 0]
    cross = (displacement @ (tail.p_log_p @ unembedding)[:, :, None])[..., 0]
    square = torch.cat(
        [
            ((displacement[piece] @ ((unembedding.T * p[:, None]) @ unembedding)) * displacement[piece]).sum(-1)
            for p, piece in (
                (tail.p[start : start + contexts], slice(start, start + contexts))
                for start in range(0, len(log_p), contexts)
            )
        ]
    )
    second = shrink.square() * tail.mean_square + 2 * shrink * cross + square
    largest = shrink.abs() * tail.deepest + displacement.norm(dim=-1) * unembedding.norm(dim=1).amax()
    return _finish(head, first, second, largest, whole)
