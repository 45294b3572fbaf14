"""The first stages of a run: what is compared, who is asked, and their answers, each kept as it comes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version

from torch import nn
from transformers import PreTrainedTokenizerBase

from benchmarks.safety import context
from benchmarks.safety.conditions.catalogue import GUARDED, LEARNT, PLAIN, Condition, conditions
from benchmarks.safety.conditions.kept import digest_of_lesson
from benchmarks.safety.conditions.respondents import Endpoint, InProcess
from benchmarks.safety.conditions.strength import Strength, strengths
from benchmarks.safety.measures.answers import Asked, Interview, UnderCondition
from benchmarks.safety.measures.outcomes import Outcomes
from benchmarks.safety.options import Options
from benchmarks.safety.report import DECISIVE_PACKAGES
from benchmarks.safety.subject import NothingToAskError, Subject
from calibration.prompts.request_sets import encode
from calibration.report.display import listed
from calibration.runs.identity import identity
from calibration.runs.store import Store
from calibration.search.findings import StageBars
from guard.loading import load_model

SERVED = "as served"
KEPT = "baselines"
ENDS = (PLAIN, GUARDED)


@dataclass(frozen=True)
class Loaded:
    """A model in this process, what can be put on it, and the digests of what it is (`identity`).

    `strengths` are the guard made weaker, from no guard to the guard; its ends are asked as `conditions` are.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    conditions: tuple[Condition, ...]
    strengths: tuple[Strength, ...]
    identity: dict[str, str]

    @property
    def asked(self) -> tuple[Condition, ...]:
        """Every condition once."""
        return (*self.conditions, *(one for one in self.strengths if one.name not in ENDS))


def load(options: Options, subject: Subject) -> Loaded:
    """The model, its conditions, and with a spec the strengths of the guard."""
    model, tokenizer = load_model(subject.model, device=options.device, dtype=options.dtype)
    spec, calibrated, of_model = subject.spec, subject.calibrated, identity(model, tokenizer)
    work = Store(options.output / KEPT, learning_key(options, subject, of_model)) if calibrated else None
    found = conditions(
        model,
        tokenizer,
        spec,
        calibrated,
        seed=options.seed,
        allow_refuted=options.allow_refuted,
        template=options.template,
        planted=subject.planted,
        work=work,
    )
    swept: tuple[Strength, ...] = ()
    if spec is not None and options.curve:
        known = () if calibrated is None else (*calibrated.harmful, *calibrated.benign)
        seen = [encode(tokenizer, request.prompt, template=options.template) for request in known]
        swept = strengths(model, spec, seen)
    return Loaded(model, tokenizer, found, swept, of_model)


def learning_key(options: Options, subject: Subject, of_model: Mapping[str, str]) -> dict[str, str]:
    """All that decides what baselines learn."""
    decisive = {"seed", "template", "device", "dtype"}
    return {
        **{name: str(value) for name, value in options.model_dump(include=decisive).items()},
        **{package: version(package) for package in DECISIVE_PACKAGES},
        **of_model,
        "spec": subject.spec.digest if subject.spec else "",
        "requests": digest_of_lesson(subject.calibrated) if subject.calibrated else "",
    }


def readable(options: Options, subject: Subject, loaded: Loaded) -> Subject:
    """The subject with the requests that the model has positions for, and what was left out said.

    Raises NothingToAskError where no request fits.
    """
    respondent, positions = plain_respondent(options, loaded), context.positions_of(loaded.model)
    kept, sentences = [], list(subject.left_out)
    for prompts in subject.prompts:
        lengths = [len(ids) for ids in respondent.encoded([one.prompt for one in prompts.requests])]
        fitting, long = context.readable(prompts, lengths, positions, options.max_new_tokens)
        kept += [fitting] * bool(fitting.requests)
        sentences += [long] if long else []
    if not kept:
        raise NothingToAskError("no request fits into the model's context with an answer: lower --max-new-tokens.")
    return replace(subject, prompts=tuple(kept), left_out=tuple(sentences))


def plain_respondent(options: Options, loaded: Loaded, system: str | None = None) -> InProcess:
    """The model as it is at the time, asked with a system prompt or without."""
    return InProcess(
        loaded.model,
        loaded.tokenizer,
        max_new_tokens=options.max_new_tokens,
        template=options.template,
        system=system,
    )


def respondents(options: Options, subject: Subject, loaded: Loaded | None) -> list[Asked]:
    """Who answers: the model under each condition, or the endpoint."""
    if loaded is None:
        url, tokens = options.endpoint or "", options.max_new_tokens
        return [Asked(SERVED, Endpoint(url, model=subject.model, key=options.key, max_new_tokens=tokens))]
    return [Asked(one.name, UnderCondition(one, plain_respondent(options, loaded, one.system))) for one in loaded.asked]


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


def not_compared(subject: Subject, loaded: Loaded | None) -> tuple[str, ...]:
    """Which conditions there are none of, and why."""
    if loaded is None:
        return ("Other conditions, quality and strengths: an endpoint shows what it serves and nothing else.",)
    sentences = []
    if subject.spec is None:
        sentences.append("The guard and its strengths: there is no spec to install.")
    there = {one.name for one in loaded.conditions}
    if subject.calibrated is None:
        sentences.append(f"{listed(list(LEARNT)).capitalize()}: they learn from the calibration's requests, not named.")
    elif missing := [name for name in LEARNT if name not in there]:
        sentences.append(f"{listed(missing).capitalize()}: there is no spec whose number of neurons it could have.")
    return tuple(sentences)
