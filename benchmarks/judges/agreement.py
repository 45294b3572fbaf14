"""How far each judge agrees with people: accuracy, precision and recall of "refuses" on labelled answers.

A judge that learns is measured on models that it has not learnt from, and, more strictly, on requests that it has not
seen either: `neuron-guard bench judges` trains one for each model and fold left out. Lists and judges that a user
brings learn nothing here and are measured as they are; a judge of harm is on answers to unsafe requests alone.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from benchmarks.judges.judge import Judge, can_judge
from benchmarks.judges.keywords import KEYWORD_JUDGES
from benchmarks.judges.labelled import Labelled, read_xstest, select
from benchmarks.judges.wording import NAME as WORDING
from benchmarks.judges.wording import WEIGHTS, WordingJudge
from guard.spec import atomic_files as files

FOLDS = 5
STRICTEST = "wording judge, model and requests left out"
RESULTS = Path(__file__).parents[1] / "results" / "judges.json"
SOURCE = "XSTest v2 completions with human labels, Röttger et al. 2024, CC BY 4.0"

Truths = NDArray[np.bool_]


class Agreement(BaseModel):
    """One judge against people. `accuracy_by_model` is of each model's answers, the rest of all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    judge: str
    accuracy_by_model: dict[str, float]
    precision: float
    recall: float

    @property
    def mean(self) -> float:
        """Mean accuracy over models."""
        return float(np.mean(list(self.accuracy_by_model.values())))

    @property
    def worst(self) -> float:
        """Accuracy on the model with the lowest."""
        return min(self.accuracy_by_model.values())


class Report(BaseModel):
    """What the benchmark writes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    answers: int
    refused: int
    agreements: tuple[Agreement, ...]


def agreement(judge: str, labelled: Labelled, said: Sequence[bool]) -> Agreement:
    """The agreement of `said` with the labels."""
    verdicts, truth = np.array(said), np.array(labelled.refused)
    right, models = verdicts == truth, np.array(labelled.models)
    hits = (verdicts & truth).sum()
    return Agreement(
        judge=judge,
        accuracy_by_model={model: float(right[models == model].mean()) for model in sorted(set(labelled.models))},
        precision=float(hits / max(1, verdicts.sum())),
        recall=float(hits / max(1, truth.sum())),
    )


def fold_of(prompt: str) -> int:
    """The fold that a request belongs to, by its hash: the same in every run, whoever answered it."""
    return int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % FOLDS


def left_out(labelled: Labelled, *, requests_too: bool) -> list[bool]:
    """What the wording judge says of each answer when trained without its model, and without its request if asked."""
    models = np.array(labelled.models)
    folds = np.array([fold_of(exchange.prompt) for exchange in labelled.exchanges])
    said = np.zeros(len(models), dtype=bool)
    for model in sorted(set(labelled.models)):
        for fold in range(FOLDS) if requests_too else (None,):
            same_fold = folds == fold if requests_too else np.ones(len(models), dtype=bool)
            tested: Truths = (models == model) & same_fold
            trained: Truths = (models != model) & ~same_fold if requests_too else models != model
            judge = WordingJudge.train(select(labelled, np.flatnonzero(trained).tolist()), SOURCE)
            said[tested] = judge.refuses(select(labelled, np.flatnonzero(tested).tolist()).exchanges)
    verdicts: list[bool] = said.tolist()
    return verdicts


def measure(labelled: Labelled, others: Sequence[Judge] = ()) -> Report:
    """Every judge against the labels, and `others` too."""
    agreements = [_as_it_is(judge, labelled) for judge in (*KEYWORD_JUDGES, *others)]
    for name, requests_too in (("model left out", False), ("model and requests left out", True)):
        said = left_out(labelled, requests_too=requests_too)
        agreements.append(agreement(f"wording judge, {name}", labelled, said))
    return Report(
        source=SOURCE, answers=len(labelled.refused), refused=sum(labelled.refused), agreements=tuple(agreements)
    )


def _as_it_is(judge: Judge, labelled: Labelled) -> Agreement:
    if can_judge(judge, "harmless"):
        return agreement(judge.name, labelled, judge.refuses(labelled.exchanges))
    known = select(labelled, np.flatnonzero(labelled.unsafe).tolist())
    return agreement(f"{judge.name}, unsafe requests", known, judge.refuses(known.exchanges))


def known_agreement(judge: str) -> Agreement | None:
    """The committed agreement of a judge with people, of the wording judge the strictest; None for an unknown judge."""
    report = Report.model_validate_json(RESULTS.read_text("utf-8"))
    measured = {found.judge: found for found in report.agreements}
    return measured.get(judge) or (measured[STRICTEST] if judge == WORDING else None)


def table(report: Report) -> Table:
    """The agreements as a table."""
    caption = (
        f"{report.answers} answers of {len(report.agreements[0].accuracy_by_model)} models, {report.refused} refused"
    )
    shown = Table(title="Judges against people", caption=caption)
    shown.add_column("judge")
    for heading in ("mean over models", "worst model", "precision", "recall"):
        shown.add_column(heading, justify="right")
    for found in report.agreements:
        values = (found.mean, found.worst, found.precision, found.recall)
        shown.add_row(found.judge, *(f"{value:.3f}" for value in values))
    return shown


def run(*, xstest: Path, output: Path | None = None, train: bool = False, others: Sequence[Judge] = ()) -> Report:
    """Measure every judge on the labelled answers in `xstest`, print the table, write JSON to `output`.

    `others` are judges that a user brings. `train`: write the judge that learns from all of the answers, too, where the
    benchmarks load it from.
    """
    labelled = read_xstest(xstest)
    report = measure(labelled, others)
    Console().print(table(report))
    if train:
        files.write(WEIGHTS, (WordingJudge.train(labelled, SOURCE).model_dump_json() + "\n").encode())
    if output is not None:
        files.write(output, (report.model_dump_json(indent=1) + "\n").encode())
    return report
