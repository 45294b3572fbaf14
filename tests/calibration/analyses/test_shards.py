"""Clusters and halves of requests, and what a half's part of the gate does, on constructed numbers and a tiny model."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from calibration.analyses.shards import (
    Shards,
    Signatures,
    beyond_wordings,
    chosen_requests,
    cluster,
    compare,
    describe,
    first_odds,
    first_token,
    gradients,
    halve,
    over_halves,
    refusal_wordings,
    split_between_halves,
)
from calibration.effects.outcome import readout_logits
from calibration.runs.stage import keep
from calibration.runs.trial import transformed
from calibration.search.selection import Member, Requests
from guard.spec.measures import Estimate
from tests.calibration.late_models import random_batch
from tests.conftest import make_tiny_model


def kinds(seed: int, *centres: tuple[float, float], each: int = 24) -> NDArray[np.float64]:
    random = np.random.default_rng(seed)
    return np.concatenate([random.normal(0, 0.2, (each, 2)) + np.array(centre) for centre in centres])


@pytest.mark.parametrize("seed", range(3))
def test_two_kinds_are_two_clusters_and_one_kind_is_one(seed: int) -> None:
    two = cluster(kinds(seed, (0, 0), (1.5, 0)), seed)
    assert two.count == 2
    assert len(set(two.labels[:24])) == len(set(two.labels[24:])) == 1
    assert list(two.assign(np.array([[0.0, 0.1], [1.5, 0.1]]))) == [two.labels[0], two.labels[-1]]
    one = cluster(kinds(seed, (0, 0), (0, 0)), seed)
    assert one.count == 1
    assert set(one.labels) == set(range(one.labels.max() + 1))


def members(count: int) -> list[Member]:
    return [Member(layer=3, neuron=neuron, carries="compliance", effect=1.0) for neuron in range(count)]


def shards(own: float, other: float, whole: float = 3.0, requests: tuple[int, int] = (10, 10)) -> Shards:
    """Two halves; each part takes about `own` from its own and `other` from the other half, the gate `whole`."""
    labels = np.repeat([0, 1], requests)
    noise = np.where(np.arange(len(labels)) % 2, -0.1, 0.1)
    taken = np.where(np.arange(2)[:, None] == labels, own, other) + noise
    compared = compare(taken, np.full(len(labels), whole) + noise, labels, [(30, 4), (20, 5)], seed=0)
    return Shards(count=2, silhouette=0.5, p_value=0.025, clusters=(), transfers=()).model_copy(update=compared)


@pytest.mark.parametrize(("other", "said"), [(3.0, "yes"), (1.5, "undecided"), (0.3, "no")])
def test_one_gate_is_said_where_a_part_does_more_than_half_of_the_others_own_and_denied_where_less(
    other: float, said: str
) -> None:
    (claim,) = shards(3.0, other).claims
    assert (claim.name, claim.said) == ("one_gate", said)


def test_one_gate_is_not_denied_where_a_part_does_nothing_on_its_own_requests() -> None:
    assert shards(0.0, -0.5).claims == ()


def test_one_gate_is_not_denied_where_the_parts_do_little_of_what_the_whole_gate_does() -> None:
    assert shards(3.0, 0.0, whole=20.0).claims == ()


def test_shards_of_before_parts_claim_nothing_and_keep_what_they_say() -> None:
    found = shards(3.0, 0.0)
    older = found.model_dump(exclude={"shared", "carried"})
    loaded = Shards.model_validate(older)
    assert loaded.claims == ()
    assert loaded.model_dump() == older | {"tried": ()}


def test_halves_count_alike_however_many_requests_they_have() -> None:
    labels = np.repeat([0, 1], (4, 36))
    taken = np.array([[8.0] * 40, [0.0] * 40])  # all is in the part of the small half, and it serves both
    shared = compare(taken, taken[0], labels, [(4, 9), (36, 0)], seed=0)["shared"]
    assert isinstance(shared, Estimate)
    assert shared.value == pytest.approx((0.0 - 4.0 + 8.0) / 2)


def test_the_mean_over_halves_is_as_sure_as_the_requests_of_each_half_are() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], (60, 240))
    values = np.where(labels == 0, random.normal(5, 1, 300), random.normal(-5, 3, 300))
    found = over_halves(values, labels, 0)
    spread = np.sqrt(np.var(values[:60], ddof=1) / 60 + np.var(values[60:], ddof=1) / 240) / 2
    assert found.value == pytest.approx((values[:60].mean() + values[60:].mean()) / 2)
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_each_neuron_goes_to_the_half_on_which_it_acts_more() -> None:
    effects = np.array([[3.0, 1.0, 0.0, 0.0], [1.0, 3.0, 5.0, 0.0], [2.0, 3.0, 0.0, 9.0]])
    one, two, three = members(3)
    parts = split_between_halves(effects, [one, two, three], np.array([0, 1, 2, 3]))
    assert parts == [(one,), (two, three), (one, two), (three,)]


def acting(*by_kind: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """What each neuron takes from each of 24 requests of every kind, noise included: [neurons, requests]."""
    random = np.random.default_rng(seed)
    return np.concatenate([kind[:, None] * random.uniform(0.7, 1.3, (len(kind), 24)) for kind in by_kind], axis=1)


def said_of(calibration: NDArray[np.float64], validation: NDArray[np.float64], wordings: NDArray[np.int64]) -> str:
    """What the claim says of effects that add up, [neurons, requests] each, found on the first and tried on the other.

    A request's signature is what the neurons do on it.
    """
    labels, fresh = halve(calibration.T, wordings, validation.T, wordings, 0)
    parts = split_between_halves(calibration, members(len(calibration)), labels)
    taken = np.stack([validation[[member.neuron for member in part]].sum(0) for part in parts])
    sizes = [(int((labels == half).sum()), len(part)) for half, part in enumerate(parts)]
    compared = compare(taken, validation.sum(0), fresh, sizes, seed=0)
    (claim,) = Shards(count=1, silhouette=0, p_value=1, clusters=(), transfers=()).model_copy(update=compared).claims
    return claim.said


@pytest.mark.parametrize("seed", range(5))
def test_one_gate_whose_neurons_talk_down_different_wordings_of_refusal_is_not_denied(seed: int) -> None:
    wordings = np.repeat([44, 596], 24)
    sorry, no = np.array([2.0, 2.0, 0.0, 0.0]), np.array([0.0, 0.0, 2.0, 2.0])
    assert said_of(acting(sorry, no, seed=seed), acting(sorry, no, seed=seed + 100), wordings) == "yes"


@pytest.mark.parametrize("seed", range(5))
def test_one_gate_whose_neurons_act_unevenly_on_two_ways_to_ask_is_not_denied(seed: int) -> None:
    one, other = np.array([2.5, 2.5, 1.5, 1.5]), np.array([1.5, 1.5, 2.5, 2.5])
    wordings = np.full(48, 44)
    assert said_of(acting(one, other, seed=seed), acting(one, other, seed=seed + 100), wordings) != "no"


@pytest.mark.parametrize("seed", range(5))
def test_two_gates_of_one_wording_are_told_apart(seed: int) -> None:
    one, other = np.array([2.0, 2.0, 0.2, 0.2]), np.array([0.2, 0.2, 2.0, 2.0])
    wordings = np.full(48, 44)
    assert said_of(acting(one, other, seed=seed), acting(one, other, seed=seed + 100), wordings) == "no"


def test_a_wording_with_too_few_requests_is_in_no_half() -> None:
    points = kinds(0, (0, 0), (1.5, 0), each=8)
    wordings = np.array([7] * 12 + [9] * 4)
    labels, fresh = halve(points, wordings, points, wordings, 0)
    assert set(labels[:12]) == {0, 1}
    assert set(labels[12:]) == set(fresh[12:]) == {-1}


def test_points_beyond_their_wording_have_its_mean_taken_off() -> None:
    points = np.array([[1.0], [3.0], [10.0], [20.0]])
    assert beyond_wordings(points, np.array([5, 5, 6, 6])).tolist() == [[-1.0], [1.0], [-5.0], [5.0]]


def test_the_wording_of_a_refusal_is_its_first_token() -> None:
    batches = [random_batch(seed) for seed in (1, 2)]
    firsts = [int(row) for batch in batches for row in batch.targets[batch.size :, 0]]
    assert refusal_wordings(batches).tolist() == firsts


def test_the_log_odds_of_the_first_token_are_those_of_its_probability() -> None:
    batch = random_batch()
    logits = torch.randn(2 * batch.size, batch.continuation_width, 61, generator=torch.Generator().manual_seed(0))
    probability = first_token(logits, batch).double().exp()
    torch.testing.assert_close(first_odds(logits, batch).double(), probability.logit(), rtol=1e-4, atol=1e-4)


def test_the_section_tells_halves_parts_and_numbers() -> None:
    section = describe(shards(3.0, 0.0))
    assert "2 clusters" in section.paragraphs[0]
    assert "kinds of harm have gates of their own" in section.paragraphs[0]
    assert [row[0] for row in section.plots[0].rows] == ["2 on 1", "1 on 2"]


def test_the_chosen_requests_are_those_marked() -> None:
    batches = [random_batch(seed) for seed in (1, 2)]
    found = chosen_requests(batches, np.array([False, True, False, False, False, False]))
    assert len(found) == 1
    assert torch.equal(found[0].input_ids, batches[0].input_ids[[1, 4]])


def test_gradients_are_the_slopes_of_the_first_tokens_log_probability() -> None:
    model, batch = make_tiny_model(layers=4, dtype=torch.float64).requires_grad_(False), random_batch()
    requests = Requests(keep(model, [batch], 2).runs, (None,))
    values = {layer: torch.zeros(37, dtype=torch.float64) for layer in (2, 3)}
    slopes = gradients(requests, values)

    def at(step: float) -> torch.Tensor:
        def moved(h: torch.Tensor) -> torch.Tensor:
            change = torch.zeros_like(h)
            change[..., 5] = step
            return h + change

        with torch.inference_mode(), transformed(model, {2: moved}):
            return first_token(readout_logits(model, batch).double(), batch)

    torch.testing.assert_close(slopes[:, 0, 5].double(), ((at(1e-2) - at(-1e-2)) / 2e-2).double(), rtol=0.02, atol=1e-4)
    signatures = Signatures.of(requests, values, 0)(requests)
    assert signatures.shape[0] == batch.size
    assert np.isfinite(signatures).all()
