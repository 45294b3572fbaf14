"""How requests and their continuations are laid out as tensors.

One layout serves recording, patching, exact effects and gradients: prompts end at one fixed column, continuations begin
at the next, and each request has two rows, one with its compliance and one with its refusal. So the same column means
the same thing in every row and in both runs of a contrast pair, and one forward pass gives Y. It costs padding on both
sides, which on prompts of like length is little.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor


@dataclass(frozen=True)
class Example:
    """A request as token ids: its templated prompt (generation prompt included) and both forced continuations."""

    prompt: tuple[int, ...]
    compliance: tuple[int, ...]
    refusal: tuple[int, ...]

    def truncated(self, continuation_tokens: int) -> "Example":
        """The same request with each continuation cut to its first `continuation_tokens` tokens."""
        return Example(self.prompt, self.compliance[:continuation_tokens], self.refusal[:continuation_tokens])


@dataclass(frozen=True)
class Batch:
    """B requests in 2B rows: rows 0..B-1 carry the compliance continuation, rows B..2B-1 the refusal.

    Shapes: `input_ids`, `attention_mask`, `position_ids` int64 [2B, P + C]; `continuation_mask` bool [2B, C].
    `prompt_width` is P, `tail` the number of last prompt tokens (the template's) that all prompts have in common.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    continuation_mask: Tensor
    prompt_width: int
    tail: int

    @property
    def size(self) -> int:
        """B, the number of requests."""
        return self.input_ids.shape[0] // 2

    @property
    def continuation_width(self) -> int:
        """C, the longest continuation in tokens."""
        return self.continuation_mask.shape[1]

    @property
    def readout(self) -> slice:
        """The columns whose logits predict the continuation: C of them."""
        return slice(self.prompt_width - 1, self.prompt_width + self.continuation_width - 1)

    @property
    def edited(self) -> slice:
        """The columns where mediators are patched: template tail and forced response, up to the last one read out."""
        return slice(self.prompt_width - self.tail, self.prompt_width + self.continuation_width - 1)

    @property
    def targets(self) -> Tensor:
        """The continuation's token ids, int64 [2B, C]."""
        return self.input_ids[:, self.prompt_width :]

    @property
    def reading(self) -> Tensor:
        """The real columns among `edited`, bool [2B, T_edited]: False on padding after a shorter continuation."""
        return self.attention_mask[:, self.edited].bool()


def common_tail(prompts: Sequence[Sequence[int]]) -> int:
    """The number of last tokens that all prompts share, at least 1: the template's tail, where pairs line up."""
    first, *rest = [tuple(reversed(prompt)) for prompt in prompts]
    if not rest:
        return 1
    shared = takewhile(lambda column: len(set(column)) == 1, zip(first, *rest, strict=False))
    return max(1, sum(1 for _ in shared))


def collate(
    examples: Sequence[Example],
    *,
    pad_id: int,
    device: torch.device | str = "cpu",
    prompt_width: int | None = None,
    tail: int | None = None,
) -> Batch:
    """Lay examples out as a `Batch`, prompts padded on the left to `prompt_width`, continuations on the right.

    The two batches of a contrast pair are collated with one `prompt_width` and one `tail`.
    """
    prompts = [example.prompt for example in examples]
    width = prompt_width or max(map(len, prompts))
    continuations = [example.compliance for example in examples] + [example.refusal for example in examples]
    continuation_width = max(map(len, continuations))
    rows, masks = [], []
    for prompt, continuation in zip(prompts + prompts, continuations, strict=True):
        left, right = width - len(prompt), continuation_width - len(continuation)
        rows.append([pad_id] * left + [*prompt, *continuation] + [pad_id] * right)
        masks.append([0] * left + [1] * (len(prompt) + len(continuation)) + [0] * right)
    attention_mask = torch.tensor(masks, dtype=torch.int64, device=device)  # [2B, P + C]
    return Batch(
        input_ids=torch.tensor(rows, dtype=torch.int64, device=device),
        attention_mask=attention_mask,
        position_ids=(attention_mask.cumsum(dim=1) - 1).clamp(min=0),
        continuation_mask=attention_mask[:, width:].bool(),
        prompt_width=width,
        tail=tail or common_tail(prompts),
    )
