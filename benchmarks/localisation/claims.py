"""What is claimed of a gate, against the truth: late or early, MLP or attention, sparse or spread, specific, one gate.

The truth is in the organism by construction (`Organism.claims`); what is said comes from the analyses that a
calibration makes. A claim that no analysis made is shown as nothing, never as right.
"""

from collections.abc import Sequence
from typing import get_args

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from benchmarks.localisation.subject import Subject
from benchmarks.organisms.catalogue import ClaimName
from calibration.analyses.registry import analyse, makers
from calibration.search.findings import Findings, Settings
from guard.spec.claim import Said

HEADINGS: dict[ClaimName, str] = {
    "late": "late, not early",
    "mlp": "MLP, not attention",
    "sparse": "sparse, not spread",
    "specific": "specific",
    "one_gate": "one gate",
    "early_signal": "early signal",
}


class ClaimRow(BaseModel):
    """One claim on one organism: its truth, None where construction does not decide it, and what was said of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    organism: str
    claim: ClaimName
    truth: bool | None
    said: Said | None

    @property
    def is_wrong(self) -> bool:
        """Whether something was said that is not so."""
        return self.truth is not None and self.said == ("no" if self.truth else "yes")


def claim_rows(
    subject: Subject, findings: Findings, settings: Settings, claims: Sequence[ClaimName] = get_args(ClaimName)
) -> list[ClaimRow]:
    """What the analyses say of `claims` on what was found, beside the truth."""
    made = analyse(subject.analysed(findings, settings), makers(claims))
    said = {claim.name: claim.said for claim in made.claims}
    organism = subject.organism
    return [
        ClaimRow(organism=organism.name, claim=name, truth=organism.claims.get(name), said=said.get(name))
        for name in claims
    ]


def table(rows: Sequence[ClaimRow]) -> Table:
    """Truth and what was said, one line an organism."""
    wrong = sum(row.is_wrong for row in rows)
    decided = sum(row.truth is not None and row.said in ("yes", "no") for row in rows)
    shown = Table(
        title="What is claimed of a gate: the truth, and what the analyses say",
        caption=f"of {decided} claims with a known truth that were decided, {wrong} wrongly",
    )
    shown.add_column("organism")
    for heading in HEADINGS.values():
        shown.add_column(heading)
    for organism in dict.fromkeys(row.organism for row in rows):
        by_claim = {row.claim: row for row in rows if row.organism == organism}
        shown.add_row(organism, *(_cell(by_claim.get(name)) for name in HEADINGS))
    return shown


def _cell(row: ClaimRow | None) -> str:
    if row is None or row.said is None:
        return "" if row is None or row.truth is None else f"{_word(row.truth)} / "
    truth = "?" if row.truth is None else _word(row.truth)
    return f"{truth} / {row.said}" + (" ✗" if row.is_wrong else "")


def _word(truth: bool) -> str:
    return "yes" if truth else "no"
