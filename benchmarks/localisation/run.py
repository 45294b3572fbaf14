"""`neuron-guard bench localisation`: ours against other ways of finding a gate, on models whose gates are known.

Every method sees the same calibration requests and is judged on the same held-out ones: does it name the neurons that
carry effect, and does editing what it names give the behaviour back? The organisms without a planted gate have no
recall; there only behaviour and the verdict count, and on the one without refusal the right verdict is `refuted`.
Three more tables follow: all methods within one benign budget, what is claimed of each gate beside the truth, and what
a trigger buys on the natural organism.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.localisation import claims, confined, equal_budget
from benchmarks.localisation.claims import ClaimRow
from benchmarks.localisation.confined import Confined
from benchmarks.localisation.equal_budget import BudgetRow
from benchmarks.localisation.ranking import METHODS, best, scores
from benchmarks.localisation.subject import Subject, names_in
from benchmarks.localisation.truth import ablation, effect_weighted_recall, precision, restored
from benchmarks.organisms.catalogue import DEFINITIONS, WEIGHTS
from calibration.search.findings import Findings, Settings
from calibration.search.gate import Late, TriggerMode
from guard.errors import NeuronGuardError
from guard.spec import atomic_files as files
from guard.spec.edit_spec import OffOn

OURS = "neuron-guard"


class Row(BaseModel):
    """One method on one organism. Rates are of held-out requests; recall, precision, restored need a planted gate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    organism: str
    method: str
    neurons: int
    recall: float | None
    precision: float | None
    restored: float | None
    harmful_compliance_off: float
    harmful_compliance_on: float
    benign_refusal: float | None
    benign_kl: float | None
    trigger: bool
    verdict: str | None
    seconds: float


@dataclass(frozen=True)
class Found:
    """One whole calibration: under which name it is shown, how it searched, what it found, and how long it took."""

    method: str
    settings: Settings
    findings: Findings
    seconds: float


class UnknownOrganismError(NeuronGuardError):
    """An organism was asked for that is not there."""


def calibrated(subject: Subject, method: str, settings: Settings) -> Found:
    """Calibrate on one organism, and keep the time."""
    started = time.perf_counter()
    findings = subject.found(settings)
    return Found(method, settings, findings, time.perf_counter() - started)


def our_row(subject: Subject, true_gate: float | None, found: Found) -> Row:
    """A calibration as a row."""
    findings = found.findings
    named = [(member.layer, member.neuron) for member in findings.gate.members]
    held_out = findings.examined.held_out
    compliance: OffOn = held_out.harmful_compliance
    return Row(
        organism=subject.organism.name,
        method=found.method,
        neurons=len(named),
        recall=effect_weighted_recall(subject.weights, named) if subject.planted else None,
        precision=precision(subject.planted, named, len(subject.planted)) if subject.planted else None,
        restored=None if true_gate is None else restored(compliance.off.value, compliance.on.value, true_gate),
        harmful_compliance_off=compliance.off.value,
        harmful_compliance_on=compliance.on.value,
        benign_refusal=held_out.benign_refusal.on.value,
        benign_kl=held_out.benign_kl.value,
        trigger=findings.gate.trigger is not None,
        verdict=findings.examined.verdict.outcome,
        seconds=found.seconds,
    )


def peer_rows(subject: Subject, late: Late, off: float, true_gate: float, *, seed: int) -> list[Row]:
    """Every other method on a planted organism, each with the true number of neurons, ablated to 0."""
    rows = []
    for method in METHODS:
        started = time.perf_counter()
        named = best(scores(method, late, seed=seed), late.layers, len(subject.planted))
        seconds = time.perf_counter() - started
        on = subject.compliance(ablation(named))
        rows.append(
            Row(
                organism=subject.organism.name,
                method=method,
                neurons=len(named),
                recall=effect_weighted_recall(subject.weights, named),
                precision=precision(subject.planted, named, len(named)),
                restored=restored(off, on, true_gate),
                harmful_compliance_off=off,
                harmful_compliance_on=on,
                benign_refusal=None,
                benign_kl=None,
                trigger=False,
                verdict=None,
                seconds=seconds,
            )
        )
    return rows


class Report(BaseModel):
    """What the benchmark writes: rows by method, within one budget, by claim, and what a trigger buys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    rows: tuple[Row, ...] = ()
    budget: tuple[BudgetRow, ...] = ()
    claims: tuple[ClaimRow, ...] = ()
    confined: tuple[Confined, ...] = ()

    def __add__(self, other: "Report") -> "Report":
        """The rows of both."""
        return Report(
            seed=self.seed,
            rows=self.rows + other.rows,
            budget=self.budget + other.budget,
            claims=self.claims + other.claims,
            confined=self.confined + other.confined,
        )


def measure(name: str, root: Path, *, seed: int) -> Report:
    """All methods on one organism; one without a planted gate is calibrated with a trigger and without."""
    subject = Subject(name, root, seed=seed)
    refutable = subject.organism.expected == "refuted"
    modes: tuple[TriggerMode, ...] = ("auto",) if subject.planted or refutable else ("auto", "always", "never")
    ours = [
        calibrated(subject, OURS if len(modes) == 1 else f"{OURS}, trigger {mode}", Settings(seed=seed, trigger=mode))
        for mode in modes
    ]
    first, late = ours[0], ours[0].findings.late
    true_gate = subject.compliance(ablation(subject.planted)) if subject.planted else None
    rows = [our_row(subject, true_gate, found) for found in ours]
    if true_gate is not None:
        rows += peer_rows(subject, late, rows[0].harmful_compliance_off, true_gate, seed=seed)
    budget = [equal_budget.our_row(subject, found.findings, found.method, found.seconds) for found in ours]
    both = [confined.confined(subject, ours[1].findings, ours[2].findings)] if len(ours) > 1 else []
    return Report(
        seed=seed,
        rows=tuple(rows),
        budget=(*budget, *equal_budget.peer_rows(subject, late, seed=seed)),
        claims=tuple(claims.claim_rows(subject, first.findings, first.settings)),
        confined=tuple(reading for reading in both if reading is not None),
    )


HEADINGS = (
    *("organism", "method", "neurons", "recall", "precision", "restored"),
    *("harmful compliance", "benign refusal", "benign KL", "verdict", "seconds"),
)
TEXTS = ("organism", "method", "verdict")


def table(rows: Sequence[Row]) -> Table:
    """The rows as a table, one block an organism."""
    shown = Table(
        title="Finding gates that are known", caption="rates on held-out requests; peers are told the gate's size"
    )
    for heading in HEADINGS:
        shown.add_column(heading, justify="left" if heading in TEXTS else "right")
    for place, row in enumerate(rows):
        first = place == 0 or rows[place - 1].organism != row.organism
        if first and place:
            shown.add_section()
        shown.add_row(
            row.organism if first else "",
            row.method,
            str(row.neurons),
            *(_share(value) for value in (row.recall, row.precision, row.restored)),
            f"{row.harmful_compliance_off:.1%} → {row.harmful_compliance_on:.1%}",
            "" if row.benign_refusal is None else f"{row.benign_refusal:.1%}",
            "" if row.benign_kl is None else f"{row.benign_kl:.1e}",
            "" if row.verdict is None else row.verdict + (", triggered" if row.trigger else ""),
            f"{row.seconds:.1f}",
        )
    return shown


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def run(
    *,
    seed: int = 0,
    output: Path | None = None,
    folder: Path | None = None,
    organisms: Sequence[str] = (),
) -> Report:
    """Measure `organisms` (all of them unless told) in `folder` (the embedded ones unless told).

    Prints the tables and writes JSON to `output`. UnknownOrganismError for one that is not there.
    """
    root = folder or WEIGHTS
    known = list(DEFINITIONS) if folder is None else list(names_in(root))
    unknown = sorted(set(organisms) - set(known))
    if unknown:
        raise UnknownOrganismError(f"there is no organism {', '.join(unknown)}: there are {', '.join(known)}.")
    report = Report(seed=seed)
    for name in track(organisms or known, "organisms", console=Console(stderr=True), transient=True):
        report += measure(name, root, seed=seed)
        if output is not None:
            files.write(output, (report.model_dump_json(indent=1) + "\n").encode())
    shown = [table(report.rows), equal_budget.table(report.budget), claims.table(report.claims)]
    Console().print(*shown, *map(confined.table, report.confined))
    return report
