"""What a condition costs in predictions: on plain text, and on the answers that the model gives to harmless requests.

On WikiText-2: perplexity, and how far predictions move. On requests, where a guard is meant to act or not to act: the
same two over the unguarded model's own greedy answers, token by token, and how likely the unguarded model finds what is
answered under the condition. Plain text alone would miss a guard that changes answers and nothing else. All conditions
are read on the same windows and requests, so they are compared pair by pair.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from benchmarks.judges.judge import Exchange
from benchmarks.safety.conditions.condition import Condition
from benchmarks.safety.conditions.respondents import InProcess
from calibration.effects.outcome import continuation_log_probability, full_sequence_kl, readout_logits
from calibration.effects.statistics import bootstrap_estimate
from calibration.judging.behaviour import Continuations, generate, pad_token
from calibration.prompts.sequences import Batch, Example, collate
from guard.spec.measures import Estimate

WINDOW = 256
WIKITEXT = "wikitext2/test.txt"
CHARACTERS_PER_TOKEN = 8  # more than a token has in English: enough text is read, not all of it
FEWEST = 2  # values that an interval needs

Acts = Callable[[Sequence[tuple[int, ...]]], list[bool]]


class Quality(BaseModel):
    """One condition on plain text: perplexity, and KL(no guard || it) in nats per token, over windows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    condition: str
    perplexity: Estimate
    kl: Estimate


class AnswerQuality(BaseModel):
    """One condition on answers to harmless requests, over requests; None where fewer than two have a value.

    Over the unguarded model's own answers: `kl` is KL(no guard || it) in nats per token, `first_token_kl` at their
    first token, `own_perplexity` theirs under the condition; none of the three where finished answers are rewritten,
    which changes no probability. `answer_perplexity` is that of the condition's answers to the unguarded model. An
    empty answer has none of them, so n is the number of requests that do.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    condition: str
    kl: Estimate | None
    first_token_kl: Estimate | None
    own_perplexity: Estimate | None
    answer_perplexity: Estimate | None


@dataclass(frozen=True, repr=False)
class OwnAnswers:
    """Harmless requests, and the greedy answers of the model that `respondent` asks, with nothing on it."""

    respondent: InProcess
    requests: tuple[str, ...]
    answers: Continuations


def windows(tokenizer: PreTrainedTokenizerBase, text: Path, count: int) -> Tensor:
    """The first `count` windows of `WINDOW` tokens of the text, [windows, WINDOW] int64."""
    with text.open(encoding="utf-8") as file:
        start = file.read(count * WINDOW * CHARACTERS_PER_TOKEN)
    ids = tokenizer(start, add_special_tokens=False)["input_ids"][: count * WINDOW]
    return torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).reshape(-1, WINDOW)


@torch.inference_mode()
def measure(
    model: nn.Module,
    ids: Tensor,
    condition: str,
    installed: Callable[[], AbstractContextManager[object]],
    *,
    seed: int,
    acts: Acts | None = None,
) -> Quality:
    """Quality under a condition on windows `ids` [windows, WINDOW]; each is run with the condition and without.

    `acts` says on which windows the condition is installed at all (None: on all).
    """
    losses, divergences = [], []
    acting = acts([tuple(window) for window in ids.tolist()]) if acts is not None else [True] * len(ids)
    for window, on in zip(ids.to(next(model.parameters()).device), acting, strict=True):
        row = window[None]  # [1, WINDOW]
        changed = plain = model(input_ids=row, use_cache=False).logits[:, :-1]  # [1, WINDOW - 1, V]
        if on:
            with installed():
                changed = model(input_ids=row, use_cache=False).logits[:, :-1]
        chosen = changed.float().log_softmax(-1).gather(-1, row[:, 1:, None])
        losses.append(float(-chosen.mean()))
        mask = torch.ones(plain.shape[:2], dtype=torch.bool, device=plain.device)
        divergences.append(float(full_sequence_kl(plain, changed, mask)[0]))
    return Quality(
        condition=condition,
        perplexity=_perplexity(bootstrap_estimate(losses, seed=seed)),
        kl=bootstrap_estimate(divergences, seed=seed),
    )


def own_answers(respondent: InProcess, requests: Sequence[str], *, batch_size: int) -> OwnAnswers:
    """What the model answers as it is now: to be asked with nothing on it, once for all conditions."""
    prompts = respondent.encoded(requests)
    return OwnAnswers(respondent, tuple(requests), _generated(respondent, prompts, batch_size))


@torch.inference_mode()
def measure_answers(own: OwnAnswers, condition: Condition, *, batch_size: int, seed: int) -> AnswerQuality:
    """Quality of answers under a condition; every batch is run with it and without."""
    plain = own.respondent
    asking = InProcess(
        plain.model,
        plain.tokenizer,
        max_new_tokens=plain.max_new_tokens,
        template=plain.template,
        system=condition.system,
    )
    unguarded, prompts = plain.encoded(own.requests), asking.encoded(own.requests)
    acts = condition.acts(prompts) if condition.acts is not None else [True] * len(prompts)
    answers = _answers_under(condition, own, asking, prompts, acts, batch_size)
    figures = _Figures()
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        texts = list(zip(own.answers.tokens[part], answers[part], strict=True))
        if not any(len(answer) for pair in texts for answer in pair):
            continue
        before = _collated(plain, unguarded[part], texts)
        base = readout_logits(plain.model, before)
        after = _collated(plain, prompts[part], texts)
        with condition.installed():
            changed = readout_logits(plain.model, after)
        acting = torch.tensor(acts[part], device=base.device).repeat(2)[:, None, None]  # [2B, 1, 1]
        figures.add(base, torch.where(acting, changed, base), before)
    rewritten = condition.rewrite is not None
    return AnswerQuality(
        condition=condition.name,
        kl=None if rewritten else _estimate(figures.kl, seed),
        first_token_kl=None if rewritten else _estimate(figures.first, seed),
        own_perplexity=None if rewritten else _perplexity(_estimate(figures.own, seed)),
        answer_perplexity=_perplexity(_estimate(figures.answer, seed)),
    )


class _Figures:
    """The figures of each request whose answer is not empty, in nats."""

    def __init__(self) -> None:
        self.kl: list[float] = []
        self.first: list[float] = []
        self.own: list[float] = []
        self.answer: list[float] = []

    def add(self, base: Tensor, changed: Tensor, batch: Batch) -> None:
        """Take in a batch: logits [2B, C, V] without the condition and with it, own answers first."""
        spoken = batch.continuation_mask.any(dim=1)  # [2B]
        own, answered = spoken.chunk(2)
        first_rows = slice(0, batch.size)
        kl, first = full_sequence_kl(base[first_rows], changed[first_rows], batch.continuation_mask[first_rows])
        self.kl += kl[own].tolist()
        self.first += first[own].tolist()
        self.own += (-continuation_log_probability(changed, batch)[first_rows][own]).tolist()
        self.answer += (-continuation_log_probability(base, batch)[batch.size :][answered]).tolist()


def _answers_under(
    condition: Condition,
    own: OwnAnswers,
    asking: InProcess,
    prompts: Sequence[tuple[int, ...]],
    acts: Sequence[bool],
    batch_size: int,
) -> list[tuple[int, ...]]:
    """Token ids of the answers that leave; where the condition does not act they are the model's own."""
    chosen = [prompt for prompt, acting in zip(prompts, acts, strict=True) if acting]
    with condition.installed():
        said = _generated(asking, chosen, batch_size) if chosen else Continuations((), ())
    changed = iter(zip(said.tokens, said.texts, strict=True))
    plain = zip(own.answers.tokens, own.answers.texts, strict=True)
    answers = [next(changed) if acting else mine for mine, acting in zip(plain, acts, strict=True)]
    if condition.rewrite is None:
        return [tokens for tokens, _ in answers]
    exchanges = [Exchange(request, text) for request, (_, text) in zip(own.requests, answers, strict=True)]
    texts = condition.rewrite(exchanges)
    return [
        tokens if left == text else tuple(asking.tokenizer(left, add_special_tokens=False)["input_ids"])
        for (tokens, text), left in zip(answers, texts, strict=True)
    ]


def _generated(respondent: InProcess, prompts: Sequence[tuple[int, ...]], batch_size: int) -> Continuations:
    return generate(
        respondent.model,
        respondent.tokenizer,
        prompts,
        max_new_tokens=respondent.max_new_tokens,
        batch_size=batch_size,
    )


def _collated(
    respondent: InProcess,
    prompts: Sequence[tuple[int, ...]],
    answers: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
) -> Batch:
    """Prompts with the model's own answers in the first rows and the condition's in the others."""
    return collate(
        [Example(prompt, own, other) for prompt, (own, other) in zip(prompts, answers, strict=True)],
        pad_id=pad_token(respondent.tokenizer),
        device=next(respondent.model.parameters()).device,
    )


def _estimate(values: Sequence[float], seed: int) -> Estimate | None:
    return bootstrap_estimate(values, seed=seed) if len(values) >= FEWEST else None


@overload
def _perplexity(nats: Estimate) -> Estimate: ...
@overload
def _perplexity(nats: Estimate | None) -> Estimate | None: ...
def _perplexity(nats: Estimate | None) -> Estimate | None:
    """The perplexity of a mean of nats per token."""
    if nats is None:
        return None
    return Estimate(value=math.exp(nats.value), low=math.exp(nats.low), high=math.exp(nats.high), n=nats.n)
