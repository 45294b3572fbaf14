"""Neurons that carry a benign task too are dropped where the gate works without them, and kept where it does not."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from calibration.evidence.specificity import Answers, KeptOutcomes, keep_outcomes
from calibration.search import specific_gate as dropping
from calibration.search.bounds import Bounds, Budget, Measured, Searched, build_edits
from calibration.search.gate import Gate, Late
from calibration.search.selection import Member
from calibration.search.specific_gate import alone, unspecific_kinds, without_unspecific
from guard.spec.edit_spec import LayerEdit, Trigger
from tests.calibration.organisms import every_kind, late, organism

BUDGET = Budget(kl=0.01, refusal=0.02)
GOOD, SHARED = (Member(layer=5, neuron=neuron, carries="compliance", effect=1.0) for neuron in (1, 2))
KINDS = (None,) * 6 + ("sums",) * 6 + ("songs",) * 6


class Told(KeptOutcomes):
    """Outcomes on which neuron 1 takes 2 nats off harm alone, and neuron 2 off harm and sums alike."""

    def edited(self, edits: Sequence[LayerEdit], trigger: Trigger | None) -> Tensor:
        neurons = {neuron for edit in edits for neuron in edit.neurons}
        fall = torch.zeros(18)
        fall[:6] = 2.0 * len(neurons)
        if 2 in neurons and trigger is None:
            fall[6:12] = 2.0
        return self.answers.own - fall


def told() -> Late:
    """The late layers of an organism with outcomes that are told."""
    own, other = torch.linspace(-0.2, -0.1, 18), torch.linspace(-4.0, -3.0, 18)
    ready = late("two-layer")
    outcomes = Told(Answers(KINDS, own, other, ()), ready.validation["benign"], ready.validation["benign"])
    return replace(ready, outcomes=outcomes)


def a_gate(*members: Member, harm: float = 0.0, trigger: Trigger | None = None) -> Gate:
    bounds = Bounds(family="scale", strength=1.0, amplification=1.0)
    edits = build_edits(members, late("two-layer").activations, bounds)
    measured = Measured(harm, 0.0, 0.0, 0.0, 0.0)
    return Gate(
        members=members, searched=Searched(bounds=bounds, edits=edits, measured=measured, trials=()), trigger=trigger
    )


def search(harm: float) -> object:
    return lambda members: a_gate(*members, harm=harm).searched


def test_the_kind_that_a_gate_moves_like_harm_is_named() -> None:
    assert [effect.kind for effect in unspecific_kinds(a_gate(SHARED), told(), seed=0)] == ["sums"]
    assert unspecific_kinds(a_gate(GOOD), told(), seed=0) == ()


def test_a_trigger_that_holds_the_gate_off_a_kind_makes_it_specific() -> None:
    trigger = Trigger(layer=1, threshold=0.0, direction=(1.0,), false_trigger_rate=0.01, calibration_size=99)
    assert unspecific_kinds(a_gate(SHARED, trigger=trigger), told(), seed=0) == ()


def test_a_neuron_that_is_not_specific_is_dropped_where_the_gate_works_without_it() -> None:
    both = a_gate(SHARED, GOOD)
    kept = without_unspecific(both, told(), search(0.05), BUDGET, seed=0)  # type: ignore[arg-type]
    assert kept.members == (GOOD,)
    assert kept.dropped == (SHARED,)


@pytest.mark.parametrize("members", [(SHARED, GOOD), (SHARED,)])
def test_a_gate_that_does_not_work_without_such_a_neuron_stays_as_it_is(members: tuple[Member, ...]) -> None:
    gate = a_gate(*members)
    assert without_unspecific(gate, told(), search(3.0), BUDGET, seed=0) == gate  # type: ignore[arg-type]


def test_a_specific_gate_is_not_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(dropping, "alone")
    gate = a_gate(GOOD)
    assert without_unspecific(gate, told(), search(0.0), BUDGET, seed=0) is gate  # type: ignore[arg-type]


def test_without_outcomes_nothing_is_asked() -> None:
    gate = a_gate(SHARED)
    assert unspecific_kinds(gate, late("two-layer"), seed=0) == ()
    assert without_unspecific(gate, late("two-layer"), search(0.0), BUDGET, seed=0) is gate  # type: ignore[arg-type]


@cache
def kept() -> KeptOutcomes:
    model, _ = organism("two-layer")
    return keep_outcomes(model, every_kind().validation_outcomes, late("two-layer").layers[0])


def test_each_member_is_measured_by_its_own_edit_alone() -> None:
    gate, ready = a_gate(GOOD, SHARED), late("two-layer")
    assert gate.searched is not None
    steps: list[int] = []
    moved = alone(gate, ready.activations, kept(), steps.append)
    assert moved.shape == (len(kept().answers.kinds), 2)
    assert sum(steps) == 2
    edits = build_edits((SHARED,), ready.activations, gate.searched.bounds)
    assert torch.equal(moved[:, 1], kept().edited(edits, None))
