"""Draws the next token of every sequence in a batch, each as its own request asked.

transformers samples a batch with one temperature and one random state. Here each sequence has its own, and one uniform
number from its own generator decides its token: which one depends on its seed and its own logits, not on its
neighbours. Every sequence takes a number for every token, so that a seed means the same at any batch size.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from serve.job import Sampling


def generator_for(seed: int | None, choice: int) -> torch.Generator:
    """A random state on the CPU for the `choice`-th sequence of a request; without a `seed`, a fresh one."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        digest = hashlib.sha256(f"{seed} {choice}".encode()).digest()
        generator.manual_seed(int.from_bytes(digest[:7]))
    return generator


def draw(logits: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator]) -> Tensor:
    """One token per row, int64 [rows], from `logits` float32 [rows, vocabulary].

    Temperature 0 takes the likeliest token, the first of equals. Otherwise the smallest set of likeliest tokens that
    holds `top_p` of the probability is drawn from (nucleus sampling, Holtzman et al. 2020), by inverting its
    cumulative distribution at one uniform number.
    """
    tokens = logits.argmax(dim=-1)
    rows = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    if not rows:
        return tokens
    device = logits.device

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

    chosen = torch.tensor(rows, device=device)
    temperature = column([samplings[row].temperature for row in rows])
    uniform = column([float(torch.rand((), generator=generators[row])) for row in rows])
    top_p = column([samplings[row].top_p for row in rows])
    ordered, order = logits[chosen].sort(dim=-1, descending=True, stable=True)  # [sampled, vocabulary]
    # the largest becomes 0 before dividing, so that no temperature overflows
    weights = ((ordered - ordered[:, :1]) / temperature).softmax(dim=-1)
    before = weights.cumsum(dim=-1) - weights
    weights = weights.masked_fill((before >= top_p) & (before > 0), 0.0)
    cumulative = weights.cumsum(dim=-1)
    place = (cumulative <= uniform * cumulative[:, -1:]).sum(dim=-1, keepdim=True)
    place = torch.minimum(place, (weights > 0).sum(dim=-1, keepdim=True) - 1)
    return tokens.index_copy(0, chosen, order.gather(1, place).squeeze(1))
