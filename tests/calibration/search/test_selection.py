"""Which neurons a gate takes, on tiny random models and on an organism whose gate is known."""

from functools import cache
from itertools import product
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.organisms.catalogue import load_truth
from calibration.effects.outcome import outcome, readout_logits
from calibration.runs.stage import keep
from calibration.search.selection import (
    Masks,
    Member,
    Requests,
    SelectionSettings,
    grow_gate,
    joint_outcomes,
    linear_effects,
)
from guard.families.architectures import architecture_of
from guard.hf import install_edits
from guard.spec.edit_spec import LayerEdit
from tests.calibration.late_models import late_model, random_batch
from tests.calibration.organisms import late

LATE = (2, 3)
LOOSE = SelectionSettings(max_neurons=12, benign_weight=0.0)


def requests_of(model: nn.Module, seed: int, active: Tensor | None = None) -> Requests:
    kept = keep(model, [random_batch(seed), random_batch(seed + 1)], LATE[0])
    return Requests(kept.runs, (active, active))


@cache
def setting(seed: int) -> tuple[Requests, Requests, dict[int, Tensor]]:
    """Harmful and benign requests of a random float64 model, and zeros to move its late neurons to."""
    model = late_model(seed=seed)
    zeros = {layer: torch.zeros(37, dtype=torch.float64) for layer in LATE}
    return requests_of(model, 10 * seed), requests_of(model, 10 * seed + 5), zeros


def lowered(harmful: Requests, values: dict[int, Tensor], members: list[Member]) -> float:
    """By how much the compliance-carrying members lower mean Y together, nats."""
    empty = Masks(values)
    return float((joint_outcomes(harmful, empty) - joint_outcomes(harmful, empty.with_members(members))).mean())


def places(members: list[Member], carries: str = "compliance") -> list[tuple[int, int]]:
    return [(member.layer, member.neuron) for member in members if member.carries == carries]


def test_joint_outcomes_are_those_of_the_installed_ablation() -> None:
    harmful, _, _ = setting(0)
    values = {layer: torch.linspace(-1, 1, 37, dtype=torch.float64) for layer in LATE}
    members = [Member(layer=2, neuron=4, carries="compliance", effect=1.0)]
    members += [Member(layer=3, neuron=n, carries="compliance", effect=1.0) for n in (0, 36)]
    edits = []
    for layer, neurons in ((2, (4,)), (3, (0, 36))):
        held = tuple(values[layer][list(neurons)].tolist())
        edits.append(LayerEdit(layer=layer, neurons=neurons, scale=(1.0,) * len(held), lower=held, upper=held))
    expected = []
    for run in harmful.runs:
        with torch.inference_mode(), install_edits(run.model, edits):
            expected.append(outcome(readout_logits(run.model, run.batch), run.batch))
    found = joint_outcomes(harmful, Masks(values).with_members(members))
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("confined", [False, True])
@pytest.mark.parametrize("start", [0.0, 0.3, 1.0])
def test_linear_effects_are_finite_differences_of_the_outcome(start: float, confined: bool) -> None:
    model = late_model("qwen2")
    active = torch.rand(6, 15, generator=torch.Generator().manual_seed(1)) < 0.5 if confined else None
    harmful = requests_of(model, 0, active)
    generator = torch.Generator().manual_seed(2)
    values = {layer: torch.randn(37, dtype=torch.float64, generator=generator) for layer in LATE}
    weights = {layer: torch.full((37,), start, dtype=torch.float64) for layer in LATE}
    found = linear_effects(harmful, Masks(values, weights))
    step, sizes = 1e-5, []
    for layer in LATE:
        for neuron in (0, 7, 18, 36):
            ends = []
            for sign in (-1, 1):
                moved = {each: weight.clone() for each, weight in weights.items()}
                moved[layer][neuron] += sign * step
                ends.append(joint_outcomes(harmful, Masks(values, moved)))
            expected = (ends[0] - ends[1]) / (2 * step)
            torch.testing.assert_close(found[layer][:, neuron], expected, rtol=1e-4, atol=1e-6)
            sizes.append(float(expected.abs().max()))
    assert max(sizes) > 0.01


def test_an_edit_that_is_active_nowhere_has_no_effect() -> None:
    model = late_model()
    nowhere = torch.zeros(6, 15, dtype=torch.bool)
    harmful = requests_of(model, 0, nowhere)
    values = {layer: torch.ones(37, dtype=torch.float64) for layer in LATE}
    assert all(bool((effects == 0).all()) for effects in linear_effects(harmful, Masks(values)).values())
    assert grow_gate(harmful, requests_of(model, 5), values, LOOSE) == []


@pytest.mark.parametrize("seed", range(4))
def test_the_compliance_members_lower_the_outcome_together(seed: int) -> None:
    harmful, benign, values = setting(seed)
    members = grow_gate(harmful, benign, values, LOOSE)
    assert places(members)
    assert lowered(harmful, values, members) > 0
    assert all(member.effect > 0 for member in members if member.carries == "compliance")


@pytest.mark.parametrize("seed", range(4))
def test_the_first_neuron_alone_lowers_the_outcome(seed: int) -> None:
    harmful, benign, values = setting(seed)
    one = grow_gate(harmful, benign, values, SelectionSettings(max_neurons=1, benign_weight=0.0))
    assert len(places(one)) == 1
    assert lowered(harmful, values, one) > 0


@settings(max_examples=12)
@given(st.integers(0, 3), st.integers(1, 40))
def test_a_gate_never_grows_beyond_its_largest_size_nor_takes_a_neuron_twice(seed: int, size: int) -> None:
    members = grow_gate(*setting(seed), SelectionSettings(max_neurons=size, benign_weight=0.0, refusal_share=0.01))
    assert len(members) <= size
    assert len(set(places(members))) == len(places(members))


def columns_kept(kept: tuple[int, int] | None) -> nn.Module:
    """A model whose late MLPs write nothing but through the neuron `kept`, if any."""
    model = late_model()
    layers = architecture_of(model).decoder_layers(model)
    for layer in LATE:
        weight = cast(Tensor, architecture_of(model).down_projection(layers[layer]).weight)
        mask = torch.zeros_like(weight)
        if kept is not None and kept[0] == layer:
            mask[:, kept[1]] = 1
        weight.mul_(mask)
    return model


def test_a_model_whose_late_neurons_write_nothing_has_no_gate() -> None:
    model = columns_kept(None)
    values = {layer: torch.ones(37, dtype=torch.float64) for layer in LATE}
    assert grow_gate(requests_of(model, 0), requests_of(model, 5), values, LOOSE) == []


def test_a_model_whose_one_neuron_carries_refusal_has_no_gate_and_one_that_carries_compliance_is_it() -> None:
    values = {layer: torch.zeros(37, dtype=torch.float64) for layer in LATE}
    kinds = set()
    for neuron in range(8):
        model = columns_kept((3, neuron))
        harmful = requests_of(model, 0)
        members = grow_gate(harmful, requests_of(model, 5), values, LOOSE)
        one = [Member(layer=3, neuron=neuron, carries="compliance", effect=1.0)]
        slope = float(linear_effects(harmful, Masks(values))[3][:, neuron].mean())
        if slope < 0:
            assert members == []
            kinds.add("refusal")
        elif lowered(harmful, values, one) > slope / 2:
            assert places(members) == [(3, neuron)]
            kinds.add("compliance")
    assert kinds == {"refusal", "compliance"}


def test_a_neuron_that_promises_to_lower_the_outcome_and_raises_it_is_left_out() -> None:
    broken_promises = 0
    for neuron, value in product(range(12), (-30.0, 30.0)):
        model = columns_kept((3, neuron))
        harmful = requests_of(model, 0)
        values = {layer: torch.full((37,), value, dtype=torch.float64) for layer in LATE}
        one = [Member(layer=3, neuron=neuron, carries="compliance", effect=1.0)]
        promise = float(linear_effects(harmful, Masks(values))[3][:, neuron].mean())
        if promise > 0 and lowered(harmful, values, one) <= 0:
            assert places(grow_gate(harmful, requests_of(model, 5), values, LOOSE)) == []
            broken_promises += 1
    assert broken_promises


def test_members_that_carry_refusal_are_never_switched_off() -> None:
    refusing = Member(layer=2, neuron=5, carries="refusal", effect=-3.0)
    weights = Masks({2: torch.zeros(9)}).with_members([refusing]).weights
    assert not weights[2].any()


@pytest.mark.parametrize("seed", range(4))
def test_members_that_carry_refusal_would_raise_the_outcome_at_first_order_and_come_last(seed: int) -> None:
    harmful, benign, values = setting(seed)
    wanted = SelectionSettings(max_neurons=70, benign_weight=0.0, refusal_share=0.02)
    members = grow_gate(harmful, benign, values, wanted)
    slopes = linear_effects(harmful, Masks(values))
    refusing = places(members, "refusal")
    assert refusing
    assert all(float(slopes[layer][:, neuron].mean()) < 0 for layer, neuron in refusing)
    assert not set(refusing) & set(places(members))
    assert [member.carries for member in members] == sorted(member.carries for member in members)


def test_the_same_requests_give_the_same_members_in_the_same_order() -> None:
    assert grow_gate(*setting(1), LOOSE) == grow_gate(*setting(1), LOOSE)


def test_the_order_of_requests_does_not_decide() -> None:
    harmful, benign, values = setting(1)
    turned = Requests(tuple(reversed(harmful.runs)), tuple(reversed(harmful.active)))
    assert places(grow_gate(turned, benign, values, LOOSE)) == places(grow_gate(harmful, benign, values, LOOSE))


def test_the_order_in_which_layers_are_named_does_not_decide() -> None:
    harmful, benign, values = setting(1)
    turned = dict(reversed(values.items()))
    assert places(grow_gate(harmful, benign, turned, LOOSE)) == places(grow_gate(harmful, benign, values, LOOSE))


def test_what_acts_on_benign_requests_is_left_out_where_they_weigh_enough() -> None:
    harmful, _, values = setting(0)
    assert places(grow_gate(harmful, harmful, values, LOOSE))
    strict = SelectionSettings(max_neurons=12, benign_weight=1e6)
    assert grow_gate(harmful, harmful, values, strict) == []


def test_the_gate_of_an_organism_is_planted_neurons_whose_removal_makes_refusal_likelier() -> None:
    ready = late("two-layer")
    harmful, benign = (ready.calibration[kind].where(None) for kind in ("harmful", "benign"))
    values = {layer: torch.zeros(mean.shape) for layer, mean in ready.activations.benign_mean.items()}
    members = grow_gate(harmful, benign, values, SelectionSettings())
    planted = {(layer, neuron) for layer, neurons in load_truth("two-layer").planted.items() for neuron in neurons}
    found = places(members)
    assert len(planted & set(found)) >= 4
    assert set(found[:4]) <= planted
    empty = Masks(values)
    assert float(joint_outcomes(harmful, empty).mean()) > 1.0
    assert float(joint_outcomes(harmful, empty.with_members(members)).mean()) < 0.0
