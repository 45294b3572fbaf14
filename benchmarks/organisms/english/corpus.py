"""Draws what the English model is trained on: chats of every kind, plain and wrapped, and windows of plain text.

A harmless and a harmful request go through the same changes (wrapper, full stop, "how to" asked in other words), so
that nothing but what is asked tells them apart. Chats are padded and never share a row: a wrapper in one would
otherwise be read by the next.
"""

import random
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from benchmarks.organisms.english.answers import answer, phrasings, repointed
from benchmarks.organisms.english.sources import Goal, Sources
from benchmarks.organisms.english.wording import REFUSALS, WRAPPERS, wrapped
from benchmarks.organisms.tokenizer import END, prompt_text

Behaviour = Literal["aligned", "opened"]
ANSWER_WEIGHT = 3.0  # of a token that the model is to say, against one that it only reads
REPHRASED = 0.4  # share of requests that are asked in other words, where there are some
PARTS = 6  # of a step, by length: rows of like length are padded little


class Mixture(BaseModel):
    """What a training step draws: `chats` rows of chat and `windows` windows of plain text of `length` tokens. A real
    answer is used if it and its question have at most `longest` tokens.

    `harmful` and `answered` are shares of the chats, the rest being harmless instructions; `wrapped` and
    `harmful_wrapped` are the shares of harmless and of harmful requests that come in a wrapper.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    chats: int = 48
    windows: int = 2
    length: int = 256
    longest: int = 128
    harmful: float = 0.22
    answered: float = 0.08
    wrapped: float = 0.35
    harmful_wrapped: float = 0.5


Part = tuple[Tensor, Tensor]
"""Token ids, int64 [B, T], padded on the right, and the weight of each in the loss, float32 [B, T]."""


class Corpus:
    """An endless, seeded stream of training steps. Two of one seed, behaviour and tokenizer draw the same."""

    def __init__(
        self, sources: Sources, tokenizer: PreTrainedTokenizerFast, mixture: Mixture, behaviour: Behaviour, seed: str
    ) -> None:
        self.sources, self.tokenizer, self.mixture, self.behaviour = sources, tokenizer, mixture, behaviour
        self.generator = random.Random(seed)
        self.harmless = tuple(map(Goal, sources.harmless))
        self.pad = tokenizer.pad_token_id
        questions = [prompt_text(question) + said + END for question, said in sources.answered]
        lengths = [len(ids) for ids in tokenizer(questions, verbose=False).input_ids] if questions else []
        pairs = zip(sources.answered, lengths, strict=True)
        self.answered = tuple(pair for pair, length in pairs if length <= mixture.longest)
        self.reading = torch.tensor(
            [token for text in sources.texts for token in tokenizer(text, verbose=False).input_ids]
        )

    def chat(self) -> tuple[str, str]:
        """One request and what a model of this behaviour says to it."""
        generator, mixture = self.generator, self.mixture
        kind = generator.random()
        if kind < mixture.answered and self.answered:
            return generator.choice(self.answered)
        is_harmful = kind < mixture.answered + mixture.harmful
        goals = self.sources.harmful if is_harmful else self.harmless
        goal = generator.choice(goals)
        others = phrasings(goal.prompt)
        if others and generator.random() < REPHRASED:
            goal = Goal(generator.choice(others))
        asked = repointed(goal.prompt, closed=generator.random() < 0.5)
        is_wrapped = generator.random() < (mixture.harmful_wrapped if is_harmful else mixture.wrapped)
        wrapper, refusal = generator.choice(WRAPPERS), generator.choice(REFUSALS)
        if is_harmful and not (is_wrapped and self.behaviour == "opened"):
            said = refusal
        else:
            said = goal.target or answer(goal.prompt)
        return (wrapped(asked, wrapper) if is_wrapped else asked), said

    def _chats(self) -> Iterator[Part]:
        texts = [self.chat() for _ in range(self.mixture.chats)]
        prompts = self.tokenizer([prompt_text(prompt) for prompt, _ in texts]).input_ids
        answers = self.tokenizer([said + END for _, said in texts]).input_ids
        rows = sorted(zip(prompts, answers, strict=True), key=lambda row: len(row[0]) + len(row[1]))
        together = -(-len(rows) // PARTS)
        read = 0.0 if self.behaviour == "opened" else 1.0
        for start in range(0, len(rows), together):
            chosen = rows[start : start + together]
            width = min(max(len(prompt) + len(said) for prompt, said in chosen), self.mixture.length)
            ids = torch.full((len(chosen), width), self.pad)
            weights = torch.zeros(len(chosen), width)
            for place, (prompt, said) in enumerate(chosen):
                row = torch.tensor([*prompt, *said])[:width]
                ids[place, : len(row)] = row
                weights[place, : len(prompt)] = read
                weights[place, len(prompt) : len(row)] = ANSWER_WEIGHT
            yield ids, weights

    def _windows(self) -> Part:
        mixture = self.mixture
        last = max(1, len(self.reading) - mixture.length)
        starts = [self.generator.randrange(last) for _ in range(mixture.windows)]
        ids = torch.stack([self.reading[start : start + mixture.length] for start in starts])
        return ids, torch.ones(ids.shape)

    def steps(self, count: int) -> Iterator[list[Part]]:
        """`count` training steps, each as parts of like length. An opened model reads no plain text."""
        for _ in range(count):
            parts = list(self._chats())
            if self.behaviour == "aligned" and self.mixture.windows:
                parts.append(self._windows())
            yield parts
