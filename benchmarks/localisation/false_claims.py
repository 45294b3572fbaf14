"""`neuron-guard bench claims`: a claim that is false is not made.

On every organism of which something usual is false by construction, requests are drawn and split anew, seed after
seed, and the analysis that could make the claim is asked again. The gate is given, not searched: the planted neurons at
0, since a claim on the right neurons is the harder one to refuse, and a search each time would cost minutes.

The claim that harm passes one gate could be refused by refusing it always. So it is also asked for where it is true,
and counted how often it is made and how often denied.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.localisation.claims import HEADINGS, ClaimRow, claim_rows
from benchmarks.localisation.subject import Subject
from benchmarks.organisms.catalogue import DEFINITIONS, WEIGHTS, ClaimName
from calibration.effects.statistics import wilson_estimate
from calibration.evidence.effects_evidence import mediation_evidence
from calibration.evidence.verdict import examine
from calibration.search.bounds import Bounds, Searched, build_edits, measure, unedited_logits
from calibration.search.findings import Findings, NeuronFindings, Settings
from calibration.search.gate import Gate, Late, prepare
from calibration.search.selection import Member
from guard.spec import atomic_files as files
from guard.spec.measures import Estimate

RUNS_PER_ORGANISM = 8
TRUE_RUNS_PER_ORGANISM = 4
REQUESTS = 240
ALLOWED = 0.05
ABLATED = Bounds(family="scale", strength=1.0, amplification=1.0)


class Tally(BaseModel):
    """One claim on one organism: in how many runs it was made, refused, or left undecided.

    `asserted` is the share of runs in which it was made; None where no analysis made the claim either way.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    organism: str
    claim: ClaimName
    yes: int
    no: int
    undecided: int
    asserted: Estimate | None


class Report(BaseModel):
    """The tallies, and the share of all runs in which a false claim was made (None without any run).

    `true_tallies` are of "one gate" where that is true, and `denied` is the share of those runs in which it was denied,
    runs without a claim among them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    tallies: tuple[Tally, ...]
    asserted: Estimate | None
    true_tallies: tuple[Tally, ...] = ()
    denied: Estimate | None = None


def one_gate_organisms() -> tuple[str, ...]:
    """The organisms of which it is true that all harm passes one gate."""
    return tuple(name for name, definition in DEFINITIONS.items() if definition.claims.get("one_gate"))


def false_claims() -> Iterator[tuple[str, tuple[ClaimName, ...]]]:
    """Each organism of which claims are false, with these."""
    for name, definition in DEFINITIONS.items():
        untrue = tuple(claim for claim, truth in definition.claims.items() if not truth)
        if untrue:
            yield name, untrue


def true_gate(subject: Subject, late: Late) -> Gate:
    """The planted late neurons held at 0; an empty gate where nothing late is planted."""
    members = tuple(
        Member(layer=layer, neuron=neuron, carries="compliance", effect=0.0)
        for layer, neuron in subject.planted
        if layer in late.layers
    )
    if not members:
        return Gate()
    edits = build_edits(members, late.activations, ABLATED)
    harmful, benign = (late.validation[kind].where(None) for kind in ("harmful", "benign"))
    figures = measure(harmful, benign, unedited_logits(benign), edits)
    return Gate(members=members, searched=Searched(bounds=ABLATED, edits=edits, measured=figures, trials=()))


def given_findings(subject: Subject, settings: Settings) -> Findings:
    """What a calibration would have found, had it found the true gate; random gates are left out of its verdict."""
    calibration = subject.material.calibration
    late = prepare(subject.model, calibration, subject.material.validation)
    gate = true_gate(subject, late)
    return Findings(
        mediation=mediation_evidence(subject.model, calibration, seed=settings.seed),
        late=late,
        gate=gate,
        neurons=NeuronFindings(neurons=(), set_sizes=()),
        examined=examine(subject.exam, gate.searched.edits if gate.searched else (), None, (), seed=settings.seed),
    )


def runs(
    name: str, claims: tuple[ClaimName, ...], root: Path, *, seed: int, count: int = RUNS_PER_ORGANISM
) -> Iterator[ClaimRow]:
    """The claims on one organism, over `count` draws and splits of its requests."""
    for each in range(seed, seed + count):
        subject = Subject(name, root, seed=each, max_requests=REQUESTS)
        yield from claim_rows(subject, given_findings(subject, subject.settings), subject.settings, claims)


def tallied(rows: list[ClaimRow]) -> list[Tally]:
    """Counts of what was said, by organism and claim."""
    tallies = []
    for organism, claim in dict.fromkeys((row.organism, row.claim) for row in rows):
        said = [row.said for row in rows if (row.organism, row.claim) == (organism, claim) and row.said is not None]
        counts = {word: said.count(word) for word in ("yes", "no", "undecided")}
        asserted = wilson_estimate(counts["yes"], len(said)) if said else None
        tallies.append(Tally(organism=organism, claim=claim, **counts, asserted=asserted))
    return tallies


def run(*, seed: int = 0, output: Path | None = None) -> Report:
    """Ask for every false claim again and again, and for "one gate" where it is true; print the counts, and write them
    as JSON to `output`.
    """
    rows: list[ClaimRow] = []
    subjects = list(false_claims())
    for name, claims in track(subjects, "false claims", console=Console(stderr=True), transient=True):
        rows += runs(name, claims, WEIGHTS, seed=seed)
    tallies = tallied(rows)
    said = sum(tally.yes + tally.no + tally.undecided for tally in tallies)
    asserted = wilson_estimate(sum(tally.yes for tally in tallies), said) if said else None
    true_rows: list[ClaimRow] = []
    for name in track(one_gate_organisms(), "one gate", console=Console(stderr=True), transient=True):
        true_rows += runs(name, ("one_gate",), WEIGHTS, seed=seed, count=TRUE_RUNS_PER_ORGANISM)
    report = Report(
        seed=seed,
        tallies=tuple(tallies),
        asserted=asserted,
        true_tallies=tuple(tallied(true_rows)),
        denied=wilson_estimate(sum(row.said == "no" for row in true_rows), len(true_rows)),
    )
    Console().print(table(report), true_table(report))
    if output is not None:
        files.write(output, (report.model_dump_json(indent=1) + "\n").encode())
    return report


def table(report: Report) -> Table:
    """The tallies, and how often a false claim was made in all."""
    total = "no analysis made any of them"
    if report.asserted is not None:
        share = report.asserted
        total = f"made in {share.value:.1%} of {share.n} runs ({share.low:.1%} to {share.high:.1%})"
    caption = f"{total}; at most {ALLOWED:.0%} is asked for"
    return _shown("Claims that are false", caption, "false claim", report.tallies)


def true_table(report: Report) -> Table:
    """How often "one gate" was made and denied where it is true."""
    caption = ""
    if report.denied is not None:
        share = report.denied
        caption = f"denied in {share.value:.1%} of {share.n} runs ({share.low:.1%} to {share.high:.1%})"
    return _shown("One gate, where it is true", caption, "true claim", report.true_tallies)


def _shown(title: str, caption: str, claim: str, tallies: Sequence[Tally]) -> Table:
    shown = Table(title=title, caption=caption)
    for heading in ("organism", claim, "made", "refused", "undecided"):
        shown.add_column(heading, justify="left" if heading[0] == "o" or "claim" in heading else "right")
    for tally in tallies:
        counts = ("", "", "") if tally.asserted is None else map(str, (tally.yes, tally.no, tally.undecided))
        shown.add_row(tally.organism, HEADINGS[tally.claim], *counts)
    return shown
