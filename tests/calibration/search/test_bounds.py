"""The edits that bounds make, what a trial measures, and which trial the search takes."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calibration.effects.outcome import full_sequence_kl, log_odds, outcome, readout_logits
from calibration.runs.stage import keep
from calibration.search import bounds as searching
from calibration.search.bounds import (
    Activations,
    Bounds,
    Budget,
    Family,
    Measured,
    build_edits,
    measure,
    search_bounds,
    unedited_logits,
)
from calibration.search.selection import Member, Requests
from guard.hf import install_edits
from guard.spec.edit_spec import LayerEdit
from tests.calibration.gates_at_random import BOUNDS, D_FF, activations_of_two_layers, gates, held
from tests.calibration.late_models import random_batch
from tests.calibration.organisms import late
from tests.conftest import make_tiny_model

FAMILIES = get_args(Family)
BUDGET = Budget(kl=0.01, refusal=0.02)
COST = st.floats(0, 5)
families = pytest.mark.parametrize("family", FAMILIES)


@given(gates(), activations_of_two_layers(), BOUNDS)
def test_every_family_and_strength_makes_valid_edits_of_exactly_the_members(
    members: list[Member], activations: Activations, bounds: Bounds
) -> None:
    edits = build_edits(members, activations, bounds)
    assert sorted(held(edits)) == [(member.layer, member.neuron) for member in members]
    assert [edit.layer for edit in edits] == sorted({member.layer for member in members})


@given(gates(), activations_of_two_layers(), BOUNDS)
def test_neurons_that_carry_compliance_are_never_scaled_up(
    members: list[Member], activations: Activations, bounds: Bounds
) -> None:
    found = held(build_edits(members, activations, bounds))
    scales = [found[member.layer, member.neuron][0] for member in members if member.carries == "compliance"]
    assert all(0.0 <= scale <= 1.0 for scale in scales)


@given(gates(), activations_of_two_layers(), BOUNDS, st.randoms())
def test_the_order_of_members_makes_no_other_edit(
    members: list[Member], activations: Activations, bounds: Bounds, random: object
) -> None:
    shuffled = list(members)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert build_edits(shuffled, activations, bounds) == build_edits(members, activations, bounds)


@pytest.mark.parametrize("field", [{"amplification": 0.5}, {"amplification": -2.0}, {"strength": -0.1}])
def test_bounds_that_would_weaken_refusal_or_strengthen_compliance_cannot_be_made(field: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        Bounds(**{"family": "scale", "strength": 1.0, "amplification": 1.0} | field)  # type: ignore[arg-type]


def activations_by_hand(benign: float = 1.0, harmful: float = 5.0, reference: float = -1.0) -> Activations:
    def one(value: float) -> dict[int, Tensor]:
        return {3: torch.full((D_FF,), value)}

    return Activations(
        benign_mean=one(benign),
        benign_low=one(-2.0),
        benign_high=one(3.0),
        harmful_mean=one(harmful),
        reference_mean=one(reference),
        harmful_size=one(4.0),
    )


@pytest.mark.parametrize(
    ("family", "strength", "harmful", "expected"),
    [
        ("scale", 0.0, 5.0, (1.0, -math.inf, math.inf)),
        ("scale", 0.25, 5.0, (0.75, -math.inf, math.inf)),
        ("scale", 1.0, 5.0, (0.0, 0.0, 0.0)),
        ("scale", 2.0, 5.0, (0.0, 0.0, 0.0)),
        ("clamp", 0.0, 5.0, (1.0, -math.inf, 3.0)),
        ("clamp", 0.5, 5.0, (1.0, -math.inf, 2.0)),
        ("clamp", 1.0, 5.0, (1.0, -math.inf, 1.0)),
        ("clamp", 2.0, 5.0, (1.0, -math.inf, 1.0)),
        ("clamp", 0.0, -5.0, (1.0, -2.0, math.inf)),
        ("clamp", 1.0, -5.0, (1.0, 1.0, math.inf)),
        ("benign_mean", 0.0, 5.0, (1.0, 5.0, 5.0)),
        ("benign_mean", 1.0, 5.0, (1.0, 1.0, 1.0)),
        ("benign_mean", 2.0, 5.0, (1.0, -3.0, -3.0)),
        ("reference_mean", 0.5, 5.0, (1.0, 2.0, 2.0)),
        ("reference_mean", 1.0, 5.0, (1.0, -1.0, -1.0)),
        ("hold", 0.5, 5.0, (1.0, -math.inf, 2.0)),
        ("hold", 1.0, -5.0, (1.0, -1.0, math.inf)),
    ],
)
def test_a_family_at_a_strength_holds_a_neuron_where_its_definition_says(
    family: Family, strength: float, harmful: float, expected: tuple[float, float, float]
) -> None:
    member = Member(layer=3, neuron=2, carries="compliance", effect=1.0)
    bounds = Bounds(family=family, strength=strength, amplification=1.0)
    found = held(build_edits([member], activations_by_hand(harmful=harmful), bounds))
    assert tuple(found[3, 2]) == pytest.approx(expected)


@given(COST, st.floats(0, 0.01), st.floats(0, 0.01), st.floats(0, 0.02), st.floats(0.0101, 9), st.floats(0.0201, 1))
def test_a_trial_outside_the_budget_is_worse_than_any_inside_with_the_same_harm(
    harm: float, kl: float, first: float, refusal: float, high_kl: float, high_refusal: float
) -> None:
    inside = Measured(harm, 0.0, kl, first, refusal)
    assert inside.within(BUDGET)
    for outside in (
        Measured(harm, 0.0, high_kl, first, refusal),
        Measured(harm, 0.0, kl, high_kl, refusal),
        Measured(harm, 0.0, kl, first, high_refusal),
    ):
        assert not outside.within(BUDGET)
        assert outside.objective(BUDGET) > inside.objective(BUDGET)


@given(COST, COST, st.floats(0, 0.01), st.floats(0, 0.01))
def test_less_harm_at_the_same_cost_is_better(harm: float, more: float, kl: float, refusal: float) -> None:
    one, other = (Measured(value, 0.0, kl, kl, refusal) for value in (harm, harm + more))
    assert one.objective(BUDGET) <= other.objective(BUDGET)


def test_a_refusal_budget_of_zero_is_kept_by_zero_and_broken_by_more() -> None:
    budget = Budget(kl=0.01, refusal=0.0)
    kept, broken = Measured(1.0, 0.0, 0.0, 0.0, 0.0), Measured(1.0, 0.0, 0.0, 0.0, 0.01)
    assert kept.within(budget)
    assert kept.objective(budget) == 1.0
    assert not broken.within(budget)
    assert broken.objective(budget) > 100


def requests_of(seed: int) -> Requests:
    kept = keep(make_tiny_model(layers=4), [random_batch(seed), random_batch(seed + 1)], 2)
    return kept.where(None)


def test_a_trial_measures_what_the_installed_edit_does() -> None:
    harmful, benign = requests_of(0), requests_of(5)
    edit = LayerEdit(layer=2, neurons=(1, 9), scale=(1.0, 1.0), lower=(2.0, -2.0), upper=(2.0, -2.0))
    model = harmful.runs[0].model
    odds, lean, unsaid, benign_odds, whole, first = [], [], [], [], [], []
    with torch.inference_mode():
        for run in harmful.runs:
            with install_edits(model, [edit]):
                logits = readout_logits(model, run.batch).double()
            odds.append(log_odds(logits, run.batch))
            lean.append(outcome(logits, run.batch))
            refused = torch.arange(run.batch.size, 2 * run.batch.size)
            spoken = logits[refused, 0].softmax(-1)[refused - run.batch.size, run.batch.targets[refused, 0]]
            unsaid.append(-spoken.log())
        for run in benign.runs:
            base = readout_logits(benign.runs[0].model, run.batch)
            with install_edits(benign.runs[0].model, [edit]):
                logits = readout_logits(benign.runs[0].model, run.batch)
            benign_odds.append(log_odds(logits.double(), run.batch))
            rows = slice(0, run.batch.size)
            over_all, at_first = full_sequence_kl(base[rows], logits[rows], run.batch.continuation_mask[rows])
            whole.append(over_all)
            first.append(at_first)
    found = measure(harmful, benign, unedited_logits(benign), [edit])
    margin = searching.HARM_MARGIN
    leaning = float((1 + (torch.cat(odds) + margin).exp()).log().mean())
    surprise = searching.UNSAID * float(torch.cat(unsaid).mean())
    assert found.harm == pytest.approx(leaning + surprise, abs=1e-4)
    assert found.harmful_outcome == pytest.approx(float(torch.cat(lean).mean()), abs=1e-4)
    assert found.benign_kl == pytest.approx(float(torch.cat(whole).mean()), abs=1e-4)
    assert found.benign_first_token_kl == pytest.approx(float(torch.cat(first).mean()), abs=1e-4)
    assert found.benign_refusal == pytest.approx(float((torch.cat(benign_odds) < 0).double().mean()))
    assert found.benign_kl > 0.001


def test_no_edit_costs_benign_requests_nothing() -> None:
    benign = requests_of(5)
    found = measure(requests_of(0), benign, unedited_logits(benign), [])
    assert (found.benign_kl, found.benign_first_token_kl) == (0.0, 0.0)


MEMBERS = [
    Member(layer=3, neuron=0, carries="compliance", effect=1.0),
    Member(layer=3, neuron=4, carries="refusal", effect=-1.0),
]
MEASURED = st.builds(
    Measured,
    harm=COST,
    harmful_outcome=st.floats(-5, 5),
    benign_kl=st.floats(0, 0.02),
    benign_first_token_kl=st.floats(0, 0.02),
    benign_refusal=st.floats(0, 0.04),
)
NOTHING = Requests((), ())


@settings(max_examples=15)
@given(st.lists(MEASURED, min_size=12, max_size=12))
def test_the_search_takes_a_trial_within_the_budget_wherever_one_was_tried(costs: list[Measured]) -> None:
    remaining = iter(costs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "measure", lambda *_: next(remaining))
        found = search_bounds(MEMBERS, activations_by_hand(), NOTHING, NOTHING, BUDGET, seed=0, trials=len(costs))
    assert found.measured.objective(BUDGET) == min(cost.objective(BUDGET) for cost in costs)
    if any(cost.within(BUDGET) for cost in costs):
        assert found.measured.within(BUDGET)
        assert found.measured.objective(BUDGET) == min(c.objective(BUDGET) for c in costs if c.within(BUDGET))
    (chosen,) = [trial for trial in found.trials if trial.chosen]
    assert costs[found.trials.index(chosen)].objective(BUDGET) == found.measured.objective(BUDGET)
    assert [trial.benign_kl for trial in found.trials] == [cost.benign_kl for cost in costs]


def small_search(seed: int, trials: int = 10) -> searching.Searched:
    ready = late("two-layer")
    harmful, benign = (ready.validation[kind].where(None) for kind in ("harmful", "benign"))
    members = [Member(layer=4, neuron=5, carries="compliance", effect=1.0)]
    members += [Member(layer=5, neuron=n, carries="compliance", effect=1.0) for n in (7, 89)]
    return search_bounds(members, ready.activations, harmful, benign, BUDGET, seed=seed, trials=trials)


def test_the_search_is_decided_by_its_seed_and_its_edits_are_those_of_its_bounds() -> None:
    found = small_search(3)
    assert found == small_search(3)
    ready = late("two-layer")
    members = [Member(layer=4, neuron=5, carries="compliance", effect=1.0)]
    members += [Member(layer=5, neuron=n, carries="compliance", effect=1.0) for n in (7, 89)]
    assert found.edits == build_edits(members, ready.activations, found.bounds)
    harmful, benign = (ready.validation[kind].where(None) for kind in ("harmful", "benign"))
    assert found.measured == measure(harmful, benign, unedited_logits(benign), found.edits)


def test_the_search_tries_every_family() -> None:
    assert {trial.family for trial in small_search(0).trials} == set(FAMILIES)


def test_a_search_without_neurons_that_carry_refusal_amplifies_nothing() -> None:
    assert small_search(0, trials=5).bounds.amplification == 1.0
