"""The yardstick of the localisation benchmark: effect-weighted recall, precision, behaviour restored."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.localisation.subject import Subject
from benchmarks.localisation.truth import (
    ablation,
    effect_weighted_recall,
    effect_weights,
    mean_outcome,
    precision,
    restored,
)
from benchmarks.organisms.catalogue import WEIGHTS

NEURONS = st.tuples(st.integers(0, 5), st.integers(0, 30))
WEIGHTED = st.dictionaries(NEURONS, st.floats(0.01, 10), min_size=1, max_size=20)


@given(WEIGHTED)
def test_naming_every_planted_neuron_is_a_recall_of_one(weights: dict[tuple[int, int], float]) -> None:
    assert effect_weighted_recall(weights, weights) == pytest.approx(1.0)


@given(WEIGHTED, st.data())
def test_recall_counts_the_effect_of_the_neurons_named_and_not_their_number(
    weights: dict[tuple[int, int], float], data: st.DataObject
) -> None:
    named = data.draw(st.sets(st.sampled_from(sorted(weights))))
    expected = sum(weights[neuron] for neuron in named) / sum(weights.values())
    assert effect_weighted_recall(weights, [*named, (99, 99)]) == pytest.approx(expected)


def test_precision_is_the_share_of_planted_neurons_among_the_first_k() -> None:
    planted = [(5, 1), (5, 2), (5, 3)]
    assert precision(planted, [(5, 1), (5, 9), (5, 2), (5, 3)], 3) == pytest.approx(2 / 3)


def test_precision_of_a_list_shorter_than_k_is_judged_by_its_own_length() -> None:
    assert precision([(5, 1), (5, 2)], [(5, 1)], 2) == 1.0


def test_naming_nothing_has_a_precision_of_zero() -> None:
    assert precision([(5, 1)], [], 1) == 0.0


def test_doing_what_the_true_gate_does_restores_all_and_doing_nothing_restores_nothing() -> None:
    assert restored(1.0, 0.02, 0.02) == 1.0
    assert restored(1.0, 1.0, 0.02) == 0.0


def test_an_ablation_holds_exactly_the_named_neurons_at_zero() -> None:
    first, second = ablation([(5, 7), (4, 3), (5, 1)])
    assert (first.layer, first.neurons) == (4, (3,))
    assert (second.layer, second.neurons, second.lower, second.upper) == (5, (1, 7), (0.0, 0.0), (0.0, 0.0))


def test_weights_are_the_mean_of_first_in_and_last_in_effects_on_an_organism() -> None:
    subject = Subject("last-layer", WEIGHTS, seed=0, max_requests=60)
    batches, planted = subject.material.held_out.harmful[:1], subject.planted
    weights = effect_weights(subject.model, batches, planted)

    def y(neurons: list[tuple[int, int]]) -> float:
        return mean_outcome(subject.model, batches, neurons)

    for neuron in planted[:3]:
        others = [other for other in planted if other != neuron]
        by_hand = abs((y([]) - y([neuron])) + (y(others) - y(planted))) / 2
        assert weights[neuron] == pytest.approx(by_hand)
