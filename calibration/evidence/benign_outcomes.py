"""Outcomes that a gate of harm leaves alone and a modulator of output as such does not.

A request's outcome here is A, the mean per-token log-probability of what the model itself says to it: its compliance
to a harmful request, its own answer to a benign one. One outcome for both, so that effects on them can be compared.
The benign requests are the user's, by the kinds that the file gives, and kinds of our own whose answers vary much. What
A is contrasted with is the answer to another request, of another kind where there is one: the larger the contrast, the
more there is to carry. Each request costs two rows of a forward pass; a kind has at most `MOST` requests.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from torch import nn
from transformers import PreTrainedTokenizerBase

from calibration.judging.behaviour import pad_token
from calibration.prompts.request_sets import ContrastPair, Request, load_requests
from calibration.prompts.sequences import Batch, Example, common_tail
from calibration.runs.stage import collate_all

BUILT_IN = Path(__file__).parent / "benign_outcomes.json"
UNNAMED = "benign requests"
MOST, FEWEST = 24, 5
ANSWER_TOKENS = 8
FRAGMENTED = 1.5  # times as many tokens per letter as the user's own requests have

Tokens = tuple[int, ...]


class Encoder(Protocol):
    """Requests to token ids, for one model and tokenizer (`material.Encoder`)."""

    @property
    def model(self) -> nn.Module:
        """The model."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""

    @property
    def batch_size(self) -> int:
        """Requests in one forward pass."""

    def prompt(self, request: Request) -> Tokens:
        """The templated prompt."""

    def text(self, text: str) -> Tokens:
        """A text's ids, no special tokens added."""


@dataclass(frozen=True)
class Contrast:
    """A request with the model's own answer, the `reference` prompt it is compared with, and another request's answer.

    `kind` is None for a harmful request.
    """

    kind: str | None
    prompt: Tokens
    answer: Tokens
    reference: Tokens
    other: Tokens


@dataclass(frozen=True)
class Outcomes:
    """N requests of all kinds, harmful ones first. `kinds[i]` is request i's, None for a harmful one.

    In `own` a request's two rows are its prompt with its own answer and with the other one; in `reference` they are the
    other prompt with the same two answers, so that columns line up. `left_out` says by kind why it is not among them.
    """

    kinds: tuple[str | None, ...] = ()
    own: tuple[Batch, ...] = ()
    reference: tuple[Batch, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()


@cache
def built_in(half: int) -> dict[str, tuple[Request, ...]]:
    """Our own harmless requests by kind: every second one, from number `half` (0 or 1) on."""
    return {kind: found[half::2] for kind, found in by_kind(load_requests(str(BUILT_IN)).requests).items()}


def by_kind(requests: Sequence[Request]) -> dict[str, tuple[Request, ...]]:
    """The requests by the kind that their file gives, `UNNAMED` where it gives none."""
    found: dict[str, list[Request]] = {}
    for request in requests:
        found.setdefault(request.kind or UNNAMED, []).append(request)
    return {kind: tuple(requests) for kind, requests in found.items()}


def prepare_outcomes(
    pairs: Sequence[ContrastPair],
    benign: Sequence[Request],
    said: tuple[Sequence[Tokens], Sequence[Tokens]],
    encoder: Encoder,
    answers: Callable[[Sequence[Request]], Sequence[Tokens]],
    half: int,
) -> Outcomes:
    """The outcomes of one split. `said` is the model's compliance to each pair's x* and its answer to each benign
    request; `answers` has it answer our own requests, of which `half` (0 or 1) is taken.
    """
    compliances, own_answers = said
    harmful = [
        Contrast(
            None,
            encoder.prompt(pair.harmful),
            answer[:ANSWER_TOKENS],
            encoder.prompt(pair.reference),
            other[:ANSWER_TOKENS],
        )
        for pair, answer, other in zip(pairs, compliances, [*compliances[1:], *compliances[:1]], strict=True)
    ][: 2 * MOST]
    kinds = {kind: requests[:MOST] for kind, requests in by_kind(benign).items()}
    left_out = {kind: f"has {len(r)} requests, {FEWEST} are needed" for kind, r in kinds.items() if len(r) < FEWEST}
    ours = dict(built_in(half))
    usual = FRAGMENTED * _tokens_per_letter(benign, encoder)
    for kind in list(ours):
        if kind in kinds:
            left_out[f"{kind}, our own"] = "the file has a kind of that name"
        elif _tokens_per_letter(ours[kind], encoder) > usual:
            left_out[kind] = "its words are not in the model's vocabulary"
        else:
            continue
        del ours[kind]
    asked = [request for requests in ours.values() for request in requests]
    replies = dict(zip([*benign, *asked], [*own_answers, *answers(asked)], strict=True))
    spoken = {
        kind: [(encoder.prompt(r), replies[r][:ANSWER_TOKENS]) for r in requests]
        for kind, requests in {**kinds, **ours}.items()
        if kind not in left_out
    }
    return _collated(harmful, _contrasts(spoken), left_out, encoder)


def _tokens_per_letter(requests: Sequence[Request], encoder: Encoder) -> float:
    """How far the tokenizer breaks up the requests' words: those that it has not got come out as letters."""
    words = [" ".join(re.findall(r"[^\W\d_]+", request.prompt)) for request in requests]
    return sum(len(encoder.text(text)) for text in words) / max(1, sum(map(len, words)))


def _contrasts(said: Mapping[str, Sequence[tuple[Tokens, Tokens]]]) -> list[Contrast]:
    """Each (prompt, answer) against one of another kind, in turn; of its own kind where there is no other."""
    found = []
    for kind, own in said.items():
        others = [pair for name, pairs in said.items() if name != kind for pair in pairs]
        for place, (prompt, answer) in enumerate(own):
            reference, other = others[place * 7 % len(others)] if others else own[(place + 1) % len(own)]
            found.append(Contrast(kind, prompt, answer, reference, other))
    return found


def _collated(
    harmful: Sequence[Contrast], benign: Sequence[Contrast], left_out: Mapping[str, str], encoder: Encoder
) -> Outcomes:
    """The contrasts as batches; harmful and benign requests in batches of their own, since their lengths differ."""
    pad, device = pad_token(encoder.tokenizer), next(encoder.model.parameters()).device
    own: list[Batch] = []
    reference: list[Batch] = []
    for contrasts in (harmful, benign):
        prompts = [prompt for contrast in contrasts for prompt in (contrast.prompt, contrast.reference)]
        width, tail = max(map(len, prompts), default=1), common_tail(prompts) if prompts else 1
        for name, batches in (("prompt", own), ("reference", reference)):
            batches += collate_all(
                [Example(getattr(contrast, name), contrast.answer, contrast.other) for contrast in contrasts],
                pad_id=pad,
                device=device,
                batch_size=encoder.batch_size,
                prompt_width=width,
                tail=tail,
            )
    kinds = tuple(contrast.kind for contrast in (*harmful, *benign))
    return Outcomes(kinds, tuple(own), tuple(reference), tuple(sorted(left_out.items())))
