"""What the guard does inside vLLM's passes, counted in the compiled graph and read when somebody asks.

A captured graph runs no Python, so both what to count and the sums are tensors that stay where they are: `PassLength`
holds how many tokens of the pass under way are requests' own, and is 0 in passes on made-up tokens and, since graphs
are padded, less than the pass has. vLLM mixes requests in a pass, so these are totals: nothing here tells requests
apart. Tokens of a draft count, accepted or not: they pass through the guard. The edited neurons' values are computed a
second time, on k columns, because a fused kernel has no "before".
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from guard.runtime.buffers import EditBuffers
from guard.runtime.counts import Tally


class PassLength(nn.Module):
    """How many tokens of the pass under way count, int64 []: the first ones."""

    tokens: Tensor

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.zeros((), dtype=torch.int64, device=device), persistent=False)


class PassCounts(nn.Module):
    """`sums` int64 [3] of one layer on one rank: tokens, those with an active trigger, clips."""

    sums: Tensor

    def __init__(self, length: PassLength) -> None:
        super().__init__()
        self.length = length
        self.register_buffer("sums", torch.zeros_like(length.tokens).expand(3).clone(), persistent=False)

    def add(self, edited: Tensor, edit: EditBuffers, active: Tensor | None) -> None:
        """Count one pass: `edited` [tokens, k], the edited neurons before the edit; `active` bool [tokens] or None."""
        present = torch.arange(edited.shape[0], device=edited.device) < self.length.tokens
        marked = present if active is None else present & active
        before = edited.float()
        changed = torch.clamp(before * edit.scale, edit.lower, edit.upper) != before  # [tokens, k]
        self.sums.add_(torch.stack([present.sum(), marked.sum(), (changed & marked[:, None]).sum()]))


def merged(ranks: Iterable[Mapping[str, object]], layers: Iterable[int]) -> Tally:
    """One tally of what every worker said: tokens are the same on all that have a guarded layer, clips add up."""
    tokens = active = 0
    clips = dict.fromkeys(layers, 0)
    for rank in ranks:
        for layer, (seen, marked, changed) in dict(rank["counts"]).items():  # type: ignore[call-overload]
            tokens, active = max(tokens, seen), max(active, marked)
            clips[int(layer)] += changed
    return Tally(tokens, active, tuple(clips.values()))
