"""The stages of a run: who is asked, answers, quality. Each takes up what an earlier run has finished of it.

Answers are kept one by one in a record, the other stages condition by condition.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn
from transformers import PreTrainedTokenizerBase

from benchmarks.safety import quality
from benchmarks.safety.answers import Asked, Interview, UnderCondition
from benchmarks.safety.conditions import Condition, conditions
from benchmarks.safety.options import Options
from benchmarks.safety.outcomes import Outcomes
from benchmarks.safety.respondents import Endpoint, InProcess
from benchmarks.safety.subject import Subject
from calibration.checkpoint import Checkpoint
from calibration.findings import StageBars
from calibration.models import load_model, weights_digest

QUICK_WINDOWS, FULL_WINDOWS = 16, 128
SERVED = "as served"


@dataclass(frozen=True)
class Loaded:
    """A model in this process, what can be put on it, and the digest of its weights."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    conditions: tuple[Condition, ...]
    weights: str


def load(options: Options, subject: Subject) -> Loaded:
    """The model and its conditions."""
    model, tokenizer = load_model(subject.model, device=options.device, dtype=options.dtype)
    found = conditions(
        model,
        tokenizer,
        subject.spec,
        subject.calibrated,
        seed=options.seed,
        allow_refuted=options.allow_refuted,
        template=options.template,
        planted=subject.planted,
    )
    return Loaded(model, tokenizer, found, weights_digest(model))


def respondents(options: Options, subject: Subject, loaded: Loaded | None) -> list[Asked]:
    """Who answers: the model under each condition, or the endpoint."""
    tokens = options.max_new_tokens
    if loaded is None:
        served = Endpoint(options.endpoint or "", model=subject.model, key=options.key, max_new_tokens=tokens)
        return [Asked(SERVED, served)]
    plain = partial(InProcess, loaded.model, loaded.tokenizer, max_new_tokens=tokens, template=options.template)
    return [Asked(one.name, UnderCondition(one, plain(system=one.system))) for one in loaded.conditions]


def answers(interview: Interview, asked: Sequence[Asked], subject: Subject, bars: StageBars) -> Outcomes:
    """Ask everyone everything that was not asked yet."""
    batches = sum(len(interview.batches(prompts)) for prompts in subject.prompts)
    for one in asked:
        with bars(f"answers: {one.condition}", batches) as advance:
            for prompts in subject.prompts:
                interview.ask(one, prompts, partial(advance, 1))
    return Outcomes(
        {
            (one.condition, prompts.name): interview.record.answers(one.condition, prompts.name)
            for one in asked
            for prompts in subject.prompts
        }
    )


def measured_quality(
    options: Options, loaded: Loaded | None, checkpoint: Checkpoint, bars: StageBars
) -> tuple[quality.Quality, ...]:
    """Quality on plain text under each condition without a system prompt; none without a model or a text."""
    text = options.data / quality.WIKITEXT if options.data else None
    if loaded is None or text is None or not text.exists():
        return ()
    ids = quality.windows(loaded.tokenizer, text, QUICK_WINDOWS if options.suite == "quick" else FULL_WINDOWS)
    found = []
    for one in loaded.conditions:
        if one.system is None:
            measure = partial(quality.measure, loaded.model, ids, one.name, one.installed, seed=options.seed)
            with bars(f"quality: {one.name}", None):
                found.append(checkpoint.stage(stage_name("quality", one.name), quality.Quality, measure))
    return tuple(found)


def stage_name(stage: str, condition: str) -> str:
    """The name under which a stage's result for a condition is kept."""
    return f"{stage}-{condition.replace(' ', '-')}"
