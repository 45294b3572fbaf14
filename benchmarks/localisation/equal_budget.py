"""Ours and the peers' methods within one benign budget: how much harm does each leave, and what does it cost?

Every method chooses its strength on the validation requests by one objective and is judged on the held-out ones by one
judge. A method that finds nothing within the budget does nothing, and shows the unguarded model's figures.
"""

import time
from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from benchmarks.localisation.peers import conditional, neuron_sets, refusal_direction
from benchmarks.localisation.peers.contender import Contender, HeldOutFigures, on_held_out, strongest
from benchmarks.localisation.ranking import METHODS
from benchmarks.localisation.subject import Subject
from calibration.search.findings import Findings
from calibration.search.gate import Late
from guard.spec.measures import Estimate

NOTHING = "nothing within the budget"


class BudgetRow(BaseModel):
    """One method on one organism at the `strength` that it chose."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    organism: str
    method: str
    strength: str
    figures: HeldOutFigures
    seconds: float


def our_row(subject: Subject, findings: Findings, method: str, seconds: float) -> BudgetRow:
    """The gate that a calibration found, as its verdict examined it."""
    held_out, gate = findings.examined.held_out, findings.gate
    return BudgetRow(
        organism=subject.organism.name,
        method=method,
        strength=f"{len(gate.members)} neurons" + (", triggered" if gate.trigger else ""),
        figures=HeldOutFigures(
            harmful_compliance=held_out.harmful_compliance.on,
            harmful_garbled=held_out.harmful_garbled.on,
            benign_refusal=held_out.benign_refusal.on,
            benign_kl=held_out.benign_kl,
        ),
        seconds=seconds,
    )


def peer_rows(subject: Subject, late: Late, *, seed: int) -> list[BudgetRow]:
    """Every other method on the same requests; seconds are those of finding and choosing."""
    proposals: dict[str, Callable[[], Sequence[Contender]]] = {
        method: lambda method=method: neuron_sets.candidates(subject, late, method, seed=seed)  # type: ignore[misc]
        for method in METHODS
    }
    split = subject.material.calibration
    refused = split.reference if subject.organism.contrast == "jailbreak" else split.harmful
    proposals["refusal direction"] = lambda: refusal_direction.candidates(subject.model, refused, split.benign)
    proposals["conditional vector"] = lambda: conditional.candidates(subject.model, split)
    rows = []
    for method, candidates in proposals.items():
        started = time.perf_counter()
        chosen = strongest(subject.model, subject.material.validation, candidates(), subject.settings.budget)
        seconds = time.perf_counter() - started
        rows.append(
            BudgetRow(
                organism=subject.organism.name,
                method=method,
                strength=NOTHING if chosen is None else chosen.strength,
                figures=on_held_out(subject, chosen, seed=seed),
                seconds=seconds,
            )
        )
    return rows


HEADINGS = ("organism", "method", "strength", "harmful compliance", "garbled", "benign refusal", "benign KL")


def table(rows: Sequence[BudgetRow]) -> Table:
    """The rows as a table with 95 % intervals, one block an organism."""
    shown = Table(
        title="Within one benign budget",
        caption="held-out requests, with 95 % intervals; strength chosen on validation requests by every method",
    )
    for heading in HEADINGS:
        shown.add_column(heading, justify="left" if heading in HEADINGS[:3] else "right")
    for place, row in enumerate(rows):
        first = place == 0 or rows[place - 1].organism != row.organism
        if first and place:
            shown.add_section()
        figures = row.figures
        rates = (figures.harmful_compliance, figures.harmful_garbled, figures.benign_refusal)
        shown.add_row(
            row.organism if first else "",
            row.method,
            row.strength,
            *(f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%})" for rate in rates),
            f"{figures.benign_kl.value:.1e} ({_nats(figures.benign_kl)})",
        )
    return shown


def _nats(estimate: Estimate) -> str:
    return f"{estimate.low:.1e} to {estimate.high:.1e}"
