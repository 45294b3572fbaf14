"""What a run of `neuron-guard bench safety` writes down: its figures, and all that they depend on.

The same setting gives the same report, killed and gone on with or not; what may differ between two runs that say the
same (machine, command line, times) stands apart, under `run`.
"""

import hashlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from time import perf_counter
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from benchmarks.common.machine import Machine, installed_version
from benchmarks.judges.judge import Judge
from benchmarks.judges.wording import WEIGHTS
from benchmarks.safety.conditions.kept import digest_of_lesson
from benchmarks.safety.curve.points import Point
from benchmarks.safety.measures.quality import AnswerQuality, Quality
from benchmarks.safety.measures.rates import Difference, Rate
from benchmarks.safety.options import Options
from benchmarks.safety.prompt_sets import Prompts, digest_of_all
from benchmarks.safety.subject import Subject
from benchmarks.tasks.scores import TaskScore

DECISIVE_PACKAGES = ("neuron-guard", "torch", "transformers", "tokenizers")
OTHER_PACKAGES = ("lm-eval", "inspect-ai", "datasets", "scikit-learn", "scipy", "statsmodels")
SECRET_FLAGS, SECRET = ("--api-key", "--judge-key"), "…"


class Run(BaseModel):
    """Where, when and by which command the figures were read; `taken_up` answers lay there from a run before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    machine: Machine
    started: str
    seconds: dict[str, float]
    taken_up: int


class Report(BaseModel):
    """The figures. `setting` decides them; `conditions` says in words what was chosen for each; `same_class` is the
    share of answers that each judge puts into the class of the headline's; `overlapping` is the number of requests of
    each set that calibration has seen, `in_several` that of goals in more than one set; `verdict` is that on the guard.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    setting: dict[str, Any]
    versions: dict[str, str]
    judge: str
    conditions: dict[str, str]
    rates: tuple[Rate, ...]
    differences: tuple[Difference, ...]
    same_class: dict[str, float]
    quality: tuple[Quality, ...]
    answer_quality: tuple[AnswerQuality, ...]
    scores: tuple[TaskScore, ...]
    curve: tuple[Point, ...]
    overlapping: dict[str, int]
    in_several: int
    left_out: tuple[str, ...]
    verdict: Literal["effective", "refuted"] | None = None
    run: Run


def setting_of(
    options: Options, subject: Subject, of_model: Mapping[str, str], conditions: Sequence[str], judges: Sequence[Judge]
) -> dict[str, Any]:
    """All that decides the answers, and nothing that does not; `of_model` the identity of a model in this process."""
    named = {"suite", "seed", "batch_size", "max_new_tokens", "template", "endpoint", "device", "dtype", "show_text"}
    named |= {"judge_url", "judge_model", "judge_classifier", "judge_prompt", "judge_refused_label"}
    calibrated = subject.calibrated
    return {
        **options.model_dump(include=named, mode="json"),
        "model": subject.model,
        "weights": None,  # an endpoint does not show them
        **of_model,
        "spec": subject.spec.digest if subject.spec else None,
        "conditions": list(conditions),
        "judges": [judge.name for judge in judges],
        "wording_judge": hashlib.sha256(WEIGHTS.read_bytes()).hexdigest(),
        "prompt_sets": {given.name: _digests(given) for given in subject.prompts},
        "calibrated": None
        if calibrated is None
        else {
            "harmful": digest_of_all(calibrated.harmful),
            "benign": digest_of_all(calibrated.benign),
            "with their answers": digest_of_lesson(calibrated),
        },
        "versions": {package: version(package) for package in DECISIVE_PACKAGES},
    }


def versions() -> dict[str, str]:
    """The packages that the figures depend on."""
    packages = (*DECISIVE_PACKAGES, *OTHER_PACKAGES)
    return {package: found for package in packages if (found := installed_version(package))}


def command_line(arguments: Sequence[str]) -> str:
    """The command as it was typed, its keys left out."""
    shown, hide = [], False
    for argument in arguments:
        flag, equals, _ = argument.partition("=")
        secret = flag in SECRET_FLAGS and equals
        shown.append(SECRET if hide else f"{flag}={SECRET}" if secret else argument)
        hide = argument in SECRET_FLAGS
    return shlex.join(shown)


class Clock:
    """The seconds of each stage, and when the first began."""

    def __init__(self) -> None:
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a stage."""
        begun = perf_counter()
        yield
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + perf_counter() - begun, 3)


def _digests(prompts: Prompts) -> dict[str, object]:
    """Of the whole set, and of what of it is asked."""
    return {"whole": prompts.digest, "asked": digest_of_all(prompts.requests), "requests": len(prompts.requests)}
