"""`neuron-guard bench localisation`: ours against other ways of finding a gate, on models whose gates are known.

Every method sees the same calibration requests and is judged on the same held-out ones: does it name the neurons that
carry effect, and does editing what it names give the behaviour back? The organisms without a planted gate have no
recall; there only behaviour and the verdict count, and on the one without refusal the right verdict is `refuted`.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.organisms.catalogue import DEFINITIONS, WEIGHTS, load_organism, prompts_folder
from benchmarks.ranking import METHODS, best, scores
from benchmarks.truth import Neuron, ablation, effect_weighted_recall, effect_weights, precision, restored
from calibration.behaviour import Behaviour, refusal_openings
from calibration.findings import Settings, find
from calibration.gate import Late, TriggerMode, prepare
from calibration.material import Answers, Encoder, Material, pair_up, prepare_material
from calibration.prompts import load_jailbreaks, load_requests
from calibration.verdict import Examination, outputs
from guard.hf import install_edits
from guard.spec import LayerEdit, OffOn

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


class Subject:
    """An organism with its material, ready for every method."""

    def __init__(self, name: str, root: Path, *, seed: int) -> None:
        self.settings = Settings(seed=seed)
        self.model, self.tokenizer, self.organism = load_organism(name, root)
        folder = prompts_folder(name, root)
        wrapped = self.organism.contrast == "jailbreak"
        sources = pair_up(
            load_requests(str(folder / "harmful.jsonl")).requests,
            load_requests(str(folder / "benign.jsonl")).requests,
            load_jailbreaks(str(folder / "jailbreak.jsonl")) if wrapped else None,
            seed=seed,
            max_requests=None,
        )
        encoder = Encoder(self.model, self.tokenizer, True, self.settings.batch_size, self.settings.max_new_tokens)
        self.material: Material = prepare_material(sources, encoder, computed)
        self.planted: list[Neuron] = [
            (layer, neuron) for layer, neurons in self.organism.planted.items() for neuron in neurons
        ]
        self.weights = effect_weights(self.model, self.material.held_out.harmful, self.planted) if self.planted else {}

    def compliance(self, edits: Sequence[LayerEdit]) -> float:
        """Harmful compliance on held-out requests with `edits` installed."""
        exam = Examination(
            model=self.model,
            tokenizer=self.tokenizer,
            harmful=self.material.held_out_harmful,
            benign=(),
            benign_batches=(),
            refusals=refusal_openings(self.material.refusals),
            budget=self.settings.budget,
            max_new_tokens=self.settings.max_new_tokens,
            batch_size=self.settings.batch_size,
        )
        judged = outputs(exam, exam.harmful, partial(install_edits, self.model, edits), np.inf)
        return sum(output.behaviour is Behaviour.COMPLIED for output in judged) / len(judged)


def computed(_: str, compute: Callable[[], Answers]) -> Answers:
    """The model's own answers, computed and not kept."""
    return compute()


def our_row(subject: Subject, true_gate: float | None, settings: Settings) -> Row:
    """The whole calibration on one organism, as a row."""
    started = time.perf_counter()
    findings = find(subject.model, subject.tokenizer, subject.material, settings)
    seconds = time.perf_counter() - started
    named = [(member.layer, member.neuron) for member in findings.gate.members]
    held_out = findings.examined.held_out
    compliance: OffOn = held_out.harmful_compliance
    return Row(
        organism=subject.organism.name,
        method=OURS,
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
        seconds=seconds,
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


def measure(name: str, root: Path, *, seed: int) -> list[Row]:
    """All methods on one organism; the natural one is measured with a trigger and without, for comparison."""
    subject = Subject(name, root, seed=seed)
    if not subject.planted:
        modes: tuple[TriggerMode, ...] = ("auto", "never") if subject.organism.expected == "effective" else ("auto",)
        return [
            our_row(subject, None, Settings(seed=seed, trigger=mode)).model_copy(
                update={"method": f"{OURS}, trigger {mode}"}
            )
            for mode in modes
        ]
    true_gate = subject.compliance(ablation(subject.planted))
    ours = our_row(subject, true_gate, subject.settings)
    late = prepare(subject.model, subject.material.calibration, subject.material.validation)
    return [ours, *peer_rows(subject, late, ours.harmful_compliance_off, true_gate, seed=seed)]


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


class Report(BaseModel):
    """What the benchmark writes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    rows: tuple[Row, ...]


def run(*, seed: int = 0, output: Path | None = None, folder: Path | None = None) -> Report:
    """Measure every organism in `folder` (the embedded ones unless told), print the table, write JSON to `output`."""
    root = folder or WEIGHTS
    found = sorted(path.parent.name for path in root.glob("*/organism.json"))
    names = list(DEFINITIONS) if folder is None else found
    rows: list[Row] = []
    for name in track(names, "organisms", console=Console(stderr=True), transient=True):
        rows += measure(name, root, seed=seed)
    report = Report(seed=seed, rows=tuple(rows))
    Console().print(table(rows))
    if output is not None:
        output.write_text(report.model_dump_json(indent=1) + "\n", "utf-8")
    return report
