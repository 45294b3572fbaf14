"""Claims beside their truth: what counts as wrong, and which false claims are asked for."""

import pytest

from benchmarks.localisation.claims import HEADINGS, ClaimRow, claim_rows
from benchmarks.localisation.false_claims import (
    REQUESTS,
    Report,
    Tally,
    given_findings,
    one_gate_organisms,
    tallied,
    true_gate,
    true_table,
)
from benchmarks.localisation.subject import Subject
from benchmarks.localisation.truth import ablation
from benchmarks.organisms.catalogue import DEFINITIONS, WEIGHTS, ClaimName
from calibration.search.gate import prepare
from guard.spec.claim import Said
from guard.spec.measures import Estimate


def row(truth: bool | None, said: Said | None, claim: ClaimName = "late") -> ClaimRow:
    return ClaimRow(organism="o", claim=claim, truth=truth, said=said)


@pytest.mark.parametrize("said", ["undecided", None])
@pytest.mark.parametrize("truth", [True, False, None])
def test_saying_nothing_is_never_wrong(truth: bool | None, said: Said | None) -> None:
    assert not row(truth, said).is_wrong


def test_saying_the_opposite_of_the_truth_is_wrong_and_the_truth_is_not() -> None:
    assert row(False, "yes").is_wrong
    assert row(True, "no").is_wrong
    assert not row(True, "yes").is_wrong
    assert not row(False, "no").is_wrong
    assert not row(None, "yes").is_wrong


def test_every_claim_but_that_of_an_early_signal_is_false_of_some_organism_and_true_of_another() -> None:
    for claim in HEADINGS.keys() - {"early_signal"}:  # any aligned base knows harm early, as far as we can tell
        truths = [definition.claims[claim] for definition in DEFINITIONS.values() if claim in definition.claims]
        assert {True, False} == set(truths), claim


def test_one_gate_is_asked_for_where_it_is_true_as_well_and_of_several_organisms() -> None:
    names = one_gate_organisms()
    assert "two-gates" not in names
    assert {"last-layer", "two-layer", "weak", "wide", "distractors", "jailbreak", "shared"} <= set(names)


def test_a_denied_truth_is_shown_beside_those_that_were_made() -> None:
    tallies = tuple(tallied([row(True, "no", "one_gate"), row(True, "yes", "one_gate")]))
    report = Report(
        seed=0, tallies=(), asserted=None, true_tallies=tallies, denied=Estimate(value=0.5, low=0.1, high=0.9, n=2)
    )
    shown = true_table(report)
    assert [list(column.cells) for column in shown.columns] == [["o"], ["one gate"], ["1"], ["1"], ["0"]]
    assert str(shown.caption).startswith("denied in 50.0% of 2 runs")


@pytest.mark.slow
@pytest.mark.parametrize(("organism", "said"), [("two-gates", "no"), ("last-layer", "yes")])
def test_two_gates_are_told_from_one(organism: str, said: Said) -> None:
    subject = Subject(organism, WEIGHTS, seed=0, max_requests=REQUESTS)
    (found,) = claim_rows(subject, given_findings(subject, subject.settings), subject.settings, ("one_gate",))
    assert found.said == said


def test_a_tally_counts_what_was_said_and_leaves_out_what_was_not() -> None:
    (tally,) = tallied([row(False, "yes"), row(False, "no"), row(False, "undecided"), row(False, None)])
    assert (tally.yes, tally.no, tally.undecided) == (1, 1, 1)
    assert tally.asserted is not None
    assert tally.asserted.value == pytest.approx(1 / 3)


def test_a_claim_that_no_analysis_made_has_no_share() -> None:
    assert tallied([row(False, None)]) == [Tally(organism="o", claim="late", yes=0, no=0, undecided=0, asserted=None)]


def test_the_gate_that_is_given_is_the_planted_one_at_zero() -> None:
    subject = Subject("two-layer", WEIGHTS, seed=0, max_requests=30)
    late = prepare(subject.model, subject.material.calibration, subject.material.validation)
    gate = true_gate(subject, late)
    assert gate.searched is not None
    for edit, expected in zip(gate.searched.edits, ablation(subject.planted), strict=True):
        assert (edit.layer, edit.neurons) == (expected.layer, expected.neurons)
        assert set(edit.lower + edit.upper) == {0.0}
