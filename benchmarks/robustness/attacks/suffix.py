"""A search for the suffix that leans one request furthest to compliance, within a budget.

Greedy coordinate gradient (Zou et al. 2023), one suffix for each request: the gradient of the objective, through the
guarded model, proposes replacements of single tokens, exact scores decide, and the best is kept if it is better. The
control draws as many suffixes at random. Suffixes are words that the tokenizer reads back as the tokens they are, so
that what is found can be typed. What runs it is suffix_attack.py, on the project's own organisms alone.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from benchmarks.robustness.attacks.suffix_objective import Objective, Place
from guard.spec.measures import Frozen

Propose = Callable[[Tensor], Tensor]


class Budget(Frozen):
    """What a search for one suffix may cost: `tokens` long, at most `steps` rounds of `candidates` scored suffixes.

    Each candidate replaces one token by one of the `best` that the gradient names for its place.
    """

    tokens: int = 4
    steps: int = 32
    candidates: int = 64
    best: int = 48


@dataclass(frozen=True, repr=False)
class Found:
    """A search's best suffix (int64 [L]), the objective of its first and of its best, and how many were scored."""

    suffix: Tensor
    course: tuple[float, ...]
    tried: int


def alphabet(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The tokens that suffixes are made of, int64 [n]: a space and letters, which read back as that token."""
    vocabulary = range(len(tokenizer))
    texts = [str(tokenizer.decode([token])) for token in vocabulary]
    words = [token for token, text in zip(vocabulary, texts, strict=True) if re.fullmatch(" [a-z]+", text)]
    return torch.tensor(
        [token for token in words if tokenizer(texts[token], add_special_tokens=False)["input_ids"] == [token]]
    )


def by_gradient(objective: Objective, place: Place, words: Tensor, budget: Budget, draw: torch.Generator) -> Propose:
    """Proposes candidates [N, L] near a suffix [L]: one token replaced, where the objective should rise most."""

    def propose(suffix: Tensor) -> Tensor:
        slopes = objective.gradient(place, suffix)[:, words]  # [L, words]
        best = words[slopes.topk(min(budget.best, len(words)), dim=1).indices]  # [L, best]
        places = torch.randint(len(suffix), (budget.candidates,), generator=draw)
        chosen = torch.randint(best.shape[1], (budget.candidates,), generator=draw)
        candidates = suffix.repeat(budget.candidates, 1)
        candidates[torch.arange(budget.candidates), places] = best[places, chosen]
        return candidates

    return propose


def at_random(words: Tensor, budget: Budget, draw: torch.Generator) -> Propose:
    """Proposes as many suffixes that have nothing to do with the one at hand."""
    return lambda suffix: words[torch.randint(len(words), (budget.candidates, len(suffix)), generator=draw)]


def search(
    objective: Objective,
    place: Place,
    first: Tensor,
    propose: Propose,
    succeeded: Callable[[Tensor], bool],
    steps: int,
) -> Found:
    """From the suffix `first` on, keep the best proposal where it is better; stop where one has succeeded.

    `course` is the objective of the suffix at hand, at the start and after each step: it never falls.
    """
    suffix, course, tried = first, [float(objective.scores(place, first[None])[0])], 1
    for _ in range(steps):
        if succeeded(suffix):
            break
        candidates = propose(suffix)
        scores = objective.scores(place, candidates)
        tried += len(candidates)
        highest = int(scores.argmax())
        if float(scores[highest]) > course[-1]:
            suffix = candidates[highest]
        course.append(max(course[-1], float(scores[highest])))
    return Found(suffix, tuple(course), tried)
