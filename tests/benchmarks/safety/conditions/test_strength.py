"""Strengths: edits between none and the spec's, in order, and never outside."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.safety.conditions.catalogue import GUARDED, PLAIN
from benchmarks.safety.conditions.strength import Strength, loosened, natural_ranges, strengths, strongest_neurons
from calibration.runs.layer_calls import changed_input
from guard.families.architectures import architecture_of
from guard.hf import install_edits
from guard.spec.edit_spec import EditSpec, Estimate, LayerEdit, NeuronEvidence
from tests.benchmarks.safety.subjects import NAME, logits, prompts, spec
from tests.calibration.organisms import BENIGN, HARMFUL, organism
from tests.conftest import TinyModel
from tests.guard.specs import evidence_with, layer_edits, small_spec

SHARES = st.floats(0.0, 1.0)
PROMPTS = (*prompts(HARMFUL, 0, 6), *prompts(BENIGN, 0, 6))


def every() -> tuple[Strength, ...]:
    return strengths(organism(NAME)[0], spec(), PROMPTS)


def under(strength: Strength) -> torch.Tensor:
    with strength.installed():
        return logits()


def neurons_of(edits: tuple[LayerEdit, ...]) -> set[tuple[int, int]]:
    return {(edit.layer, neuron) for edit in edits for neuron in edit.neurons}


def test_the_weakest_is_no_edit_bit_for_bit() -> None:
    weakest = every()[0]
    assert (weakest.name, weakest.edits) == (PLAIN, ())
    assert torch.equal(under(weakest), logits())


def test_the_strongest_is_the_spec_bit_for_bit() -> None:
    strongest = every()[-1]
    assert (strongest.name, strongest.edits) == (GUARDED, spec().layers)
    with install_edits(organism(NAME)[0], spec().layers, spec().trigger):
        expected = logits()
    assert torch.equal(under(strongest), expected)


def test_a_strength_between_the_ends_differs_from_both() -> None:
    ends = {GUARDED: under(every()[-1]), PLAIN: under(every()[0])}
    for strength in every()[1:-1]:
        assert all(not torch.equal(under(strength), end) for end in ends.values()), strength.name


def test_each_sweep_runs_from_weak_to_strong_and_every_name_is_its_own() -> None:
    found = every()
    assert len({one.name for one in found}) == len(found)
    neurons = [one.neurons for one in found if one.sweep == "neurons"]
    tightness = [one.tightness for one in found if one.sweep == "bounds"]
    assert neurons == sorted(set(neurons))
    assert tightness == sorted(set(tightness))
    assert 0 < neurons[0] < neurons[-1] < found[-1].neurons == found[-1].of_neurons == 8
    assert 0 < tightness[0] < tightness[-1] < found[-1].tightness == 1


def test_fewer_neurons_are_among_more() -> None:
    for fewer, more in pairwise(one for one in every() if one.sweep != "bounds"):
        assert neurons_of(fewer.edits) < neurons_of(more.edits)


def with_effects(effects: list[tuple[float, float]]) -> EditSpec:
    """The small spec of three neurons with effects, first and last in, of the first so many."""
    places = [(edit.layer, neuron) for edit in small_spec().layers for neuron in edit.neurons]
    neurons = tuple(
        NeuronEvidence(layer=layer, neuron=neuron, first_in=exactly(first), last_in=exactly(last), p_value=0.01)
        for (layer, neuron), (first, last) in zip(places, effects, strict=False)
    )
    return small_spec(evidence=evidence_with(neurons=neurons))


def exactly(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value, n=2)


def test_neurons_come_in_the_order_of_their_effects_whatever_the_sign() -> None:
    made = with_effects([(0.5, 0.1), (-3.0, -1.0), (1.0, 0.5)])
    firsts = [neurons_of(strongest_neurons(made, count)) for count in (1, 2, 3)]
    assert firsts == [{(2, 4)}, {(2, 4), (3, 8)}, {(2, 1), (2, 4), (3, 8)}]


def test_neurons_without_evidence_come_last() -> None:
    assert neurons_of(strongest_neurons(with_effects([(0.1, 0.0)]), 1)) == {(2, 1)}


def test_an_edited_neuron_keeps_its_own_edit_when_others_go() -> None:
    (kept,) = strongest_neurons(with_effects([(0.0, 0.0), (2.0, 2.0)]), 1)
    assert (kept.neurons, kept.scale, kept.lower, kept.upper) == ((4,), (0.5,), (0.25,), (float("inf"),))


def edited(edit: LayerEdit, h: torch.Tensor) -> torch.Tensor:
    """h [n, k] under the edit, in float64."""
    scale, lower, upper = (torch.tensor(v, dtype=torch.float64) for v in (edit.scale, edit.lower, edit.upper))
    return (scale * h).clamp(lower, upper)


@given(st.data(), SHARES)
def test_a_looser_edit_leaves_each_value_between_what_it_was_and_what_the_spec_makes_of_it(
    data: Any, tightness: float
) -> None:
    edit: LayerEdit = data.draw(layer_edits(2, 9))
    count = len(edit.neurons)
    ends = torch.tensor([sorted(data.draw(st.tuples(*[st.floats(-9, 9, width=32)] * 2))) for _ in range(count)])
    spec_of_it = small_spec(layers=(edit,))
    (looser,) = loosened(spec_of_it, {2: (ends[:, 0], ends[:, 1])}, tightness)
    h = torch.linspace(-12, 12, 49, dtype=torch.float64)[:, None].expand(-1, count)
    whole, part = edited(edit, h), edited(looser, h)
    slack = 1e-5 * (1 + h.abs() + whole.abs())
    assert bool((part >= torch.minimum(h, whole) - slack).all())
    assert bool((part <= torch.maximum(h, whole) + slack).all())


@given(st.data(), SHARES, SHARES)
def test_tighter_bounds_lie_within_looser_ones(data: Any, one: float, other: float) -> None:
    edit: LayerEdit = data.draw(layer_edits(2, 9))
    ranges = {2: (torch.full((len(edit.neurons),), -4.0), torch.full((len(edit.neurons),), 5.0))}
    (loose,), (tight,) = (loosened(small_spec(layers=(edit,)), ranges, share) for share in sorted((one, other)))
    assert all(a <= b for a, b in zip(loose.lower, tight.lower, strict=True))
    assert all(a >= b for a, b in zip(loose.upper, tight.upper, strict=True))


def test_at_full_tightness_the_bounds_are_the_specs() -> None:
    ranges = {edit.layer: (torch.full((len(edit.neurons),), -1.0), torch.ones(len(edit.neurons))) for edit in
              small_spec().layers}  # fmt: skip
    assert loosened(small_spec(), ranges, 1.0) == small_spec().layers


def test_half_way_an_ablation_holds_within_half_of_the_natural_range() -> None:
    edit = LayerEdit(layer=2, neurons=(1, 4), scale=(1.0, 1.0), lower=(0.0, 0.0), upper=(0.0, 0.0))
    ranges = {2: (torch.tensor([-1.0, -4.0]), torch.tensor([3.0, 2.0]))}
    (half,) = loosened(small_spec(layers=(edit,)), ranges, 0.5)
    assert (half.lower, half.upper) == ((-0.5, -2.0), (1.5, 1.0))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_natural_ranges_are_the_lowest_and_highest_values_over_all_tokens(tiny_model: TinyModel, family: str) -> None:
    model, rows = tiny_model(family), ((3, 4, 5), (6, 7), (8, 9, 10, 11))
    edit = LayerEdit(layer=1, neurons=(2, 30), scale=(1.0,) * 2, lower=(0.0,) * 2, upper=(0.0,) * 2)
    seen: list[torch.Tensor] = []
    architecture = architecture_of(model)
    layer = architecture.decoder_layers(model)[1]
    with changed_input(layer, architecture.down_projection(layer), seen.append), torch.inference_mode():
        for row in rows:
            model(input_ids=torch.tensor([row]))
    values = torch.cat([h[0] for h in seen])[:, [2, 30]]
    low, high = natural_ranges(model, [edit], rows)[1]
    assert torch.equal(low, values.amin(0))
    assert torch.equal(high, values.amax(0))


def test_without_prompts_ranges_come_from_random_tokens_the_same_each_time(tiny_model: TinyModel) -> None:
    model = tiny_model()
    edit = LayerEdit(layer=1, neurons=(2,), scale=(1.0,), lower=(0.0,), upper=(0.0,))
    first, second = (natural_ranges(model, [edit], ())[1] for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert bool((first[0] < first[1]).all())


def test_a_spec_that_edits_nothing_has_no_strength() -> None:
    nothing = small_spec(layers=(), evidence=evidence_with(verdict=spec().evidence.verdict.model_copy(update={
        "outcome": "refuted", "reasons": ("nothing was found",)})))  # fmt: skip
    assert strengths(organism(NAME)[0], nothing) == ()
