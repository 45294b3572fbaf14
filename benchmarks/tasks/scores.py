"""Scores of a model on the field's tasks under one condition, row by row, with intervals.

Each finished task of a condition is kept in a file of its own, named after all that decides it, so that a run that was
killed goes on with the next and ends the same, and a changed setting never meets an old score. The quick suite scores
rows drawn by the seed, the same for every condition: differences between conditions are then paired. Nothing that a
model is asked or answers is kept.

    scoring = Scoring(folder=output, data=data, limit=100, seed=0, of={"model": ..., "spec": ..., "dtype": ...})
    scores = score(ScoredModel(model, tokenizer, condition), scoring)
    sentences = left_out(ScoredModel(model, tokenizer, condition), scoring)
"""

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from benchmarks.tasks.answering import Answering
from benchmarks.tasks.catalogue import TASKS, Scored, without_rows
from calibration.effects.statistics import bootstrap_estimate, wilson_estimate
from guard.errors import NeuronGuardError
from guard.spec.atomic_files import write
from guard.spec.measures import Estimate

FOLDER = "tasks"
FEWEST = 2  # rows that an interval needs
PACKAGE = "lm-eval"


class HarnessMissingError(NeuronGuardError):
    """lm-eval is not installed."""


class TaskScore(BaseModel):
    """One metric of a task under a condition: over rows, with `shots` examples before each question."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    condition: str
    task: str
    metric: str
    estimate: Estimate
    shots: int


@dataclass(frozen=True)
class Scoring:
    """What decides scores beside who is scored.

    Finished tasks are kept in `folder`. `data` is a folder with the rows (None: the hub), `limit` how many rows of a
    task are scored, drawn by `seed` (None: all); `of` what the scores are of: the model, the spec's digest, the
    precision.
    """

    folder: Path
    data: Path | None
    limit: int | None
    seed: int
    of: Mapping[str, object]

    def rows(self, count: int) -> list[int]:
        """Which of a task's rows are scored."""
        if self.limit is None or self.limit >= count:
            return list(range(count))
        return sorted(random.Random(self.seed).sample(range(count), self.limit))

    def path(self, answering: Answering, task: Scored) -> Path:
        """Where a task's scores are kept: named after all that decides them."""
        decides = {
            "of": dict(self.of),
            "condition": answering.name,
            "system": answering.system,
            "template": answering.template,
            "task": task.name,
            "rows": list(self._digests(task)),
            "limit": self.limit,
            "seed": self.seed,
            "harness": _harness_version(),
        }
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
        return self.folder / FOLDER / f"{task.task}-{digest[:16]}.json"

    def _digests(self, task: Scored) -> Iterator[str]:
        if self.data is not None:
            yield from (hashlib.sha256((self.data / file).read_bytes()).hexdigest() for file in task.files)


class _Kept(BaseModel):
    """A finished task: its scores, and why it has none or not all rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: tuple[TaskScore, ...]
    without: str | None = None


def score(
    answering: Answering,
    scoring: Scoring,
    tasks: Sequence[Scored] = TASKS,
    on_task: Callable[[str], None] | None = None,
) -> tuple[TaskScore, ...]:
    """The scores of what answers on every task that can be had, those kept already without asking again.

    `on_task` is told each task's name. Raises HarnessMissingError without lm-eval and EndpointError where an endpoint
    stops answering.
    """
    found: list[TaskScore] = []
    lacking = _lacking(answering, scoring, tasks)
    for task in tasks:
        if task.name in lacking:
            continue
        if on_task is not None:
            on_task(task.name)
        path = scoring.path(answering, task)
        if not path.exists():
            kept = _run(answering, scoring, task)
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, kept.model_dump_json(indent=1).encode() + b"\n")
        found.extend(_Kept.model_validate_json(path.read_bytes()).scores)
    return tuple(found)


def left_out(answering: Answering, scoring: Scoring, tasks: Sequence[Scored] = TASKS) -> tuple[str, ...]:
    """Why tasks have no score or not all rows, a sentence each: asked after `score` with the same arguments."""
    lacking = _lacking(answering, scoring, tasks)
    paths = [scoring.path(answering, task) for task in tasks if task.name not in lacking]
    kept = (_Kept.model_validate_json(path.read_bytes()).without for path in paths if path.exists())
    return (*lacking.values(), *(sentence for sentence in kept if sentence is not None))


def _run(answering: Answering, scoring: Scoring, scored: Scored) -> _Kept:
    from benchmarks.tasks.harness import fitting, load_task, prepare, values_by_row

    task = load_task(scored, scoring.data)
    harness, context = answering.harness(scored)
    shots = prepare(task, scored, context)
    template = answering.template and scored.generates
    chosen = scoring.rows(len(task.eval_docs))
    rows = fitting(harness, task, scored, chosen, context)
    short = None
    if len(rows) < len(chosen):
        count = f"{len(chosen) - len(rows)} of {len(chosen)} rows"
        short = f"{scored.name} under {answering.name} is without {count}: a choice does not fit into {context} tokens."
    if len(rows) < FEWEST:
        return _Kept(scores=(), without=short)
    values = values_by_row(harness, task, scored, rows, template=template, system=answering.system)
    wrong = sum(not math.isfinite(value) for column in values.values() for value in column)
    if wrong:  # the probability of every choice of a question is 0 in float64
        sentence = f"{scored.name} is left out under {answering.name}: {wrong} values are not finite."
        return _Kept(scores=(), without=sentence)
    scores = [
        TaskScore(
            condition=answering.name,
            task=scored.name,
            metric=metric if through == "none" else f"{metric}, {through}",
            estimate=_estimate(column, scoring.seed),
            shots=shots,
        )
        for (metric, through), column in values.items()
    ]
    return _Kept(scores=tuple(scores), without=short)


def _estimate(values: Sequence[float], seed: int) -> Estimate:
    """The mean over rows: Wilson's interval where each is right or wrong, else a bootstrap one."""
    if set(values) <= {0.0, 1.0}:
        return wilson_estimate(sum(values), len(values))
    return bootstrap_estimate(values, seed=seed)


def _lacking(answering: Answering, scoring: Scoring, tasks: Sequence[Scored]) -> dict[str, str]:
    """Why tasks cannot be run here, by name."""
    _harness_version()
    from benchmarks.tasks.harness import lacking

    absent = without_rows(scoring.data)
    found = {task.name: absent.get(task.name) or answering.without(task) or lacking(task) for task in tasks}
    return {name: sentence for name, sentence in found.items() if sentence is not None}


def _harness_version() -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        raise HarnessMissingError(f"{PACKAGE} is needed for scores: pip install 'neuron-guard[bench]'.") from None
