"""Concentration, on models where the number of neurons that carry the lean is known, and on an organism."""

from functools import cache

import numpy as np
import pytest
import torch

from calibration.analyses import concentration
from calibration.analyses.concentration import (
    STATEMENT,
    Concentration,
    _sparse,
    fewest,
    gate_weights,
    participation_ratio,
    sizes,
)
from calibration.analyses.neuron_sets import NeuronSets
from calibration.analyses.units import first_of
from calibration.effects.outcome import outcome, readout_logits
from calibration.runs.resume import record
from calibration.search.selection import Member
from guard.hf import install_edits
from guard.spec.claim import claim
from tests.calibration.analyses.built_models import built, pairs
from tests.calibration.planted_subject import planted_subject


def neuron_sets(neurons: int) -> NeuronSets:
    model = built(carrier=2, mlp=3, neurons=neurons)
    plain, harm = (record(model, batch, 2) for batch in pairs())
    return NeuronSets([harm], [plain])


@pytest.mark.parametrize(("neurons", "said"), [(1, "yes"), (3, "yes"), (20, "no")])
def test_few_neurons_are_called_sparse_and_many_alike_spread(neurons: int, said: str) -> None:
    sets = neuron_sets(neurons)  # 40 late neurons, so that a tenth is 4
    generator = torch.Generator().manual_seed(0)
    orders = [sets.order(sizes(sets.count), generator).apart for _ in range(2)]
    assert claim("sparse", STATEMENT, _sparse(sets, orders, neurons, 0)).said == said


def test_the_neurons_that_carry_come_first_in_every_order() -> None:
    sets = neuron_sets(3)
    order = sets.order(sizes(sets.count), torch.Generator().manual_seed(0))
    assert set(order.overall[:3].tolist()) == {20, 21, 22}
    assert all(set(row.tolist()) == {20, 21, 22} for row in order.apart[:, :3])


def test_joint_and_single_effects_are_those_of_the_edits_installed() -> None:
    subject = planted_subject("two-layer")
    kept = subject.late.calibration
    sets = NeuronSets(kept["harmful"].runs[:1], kept["reference"].runs[:1])
    core = torch.tensor([260 + 5, 520 + 7, 520 + 89])
    weights = torch.zeros(1, sets.count).index_fill(1, core, 1.0)
    batch = kept["harmful"].batches[0]
    with torch.inference_mode():
        base = outcome(readout_logits(subject.model, batch), batch)
        with install_edits(subject.model, sets._edits(core), None):
            edited = outcome(readout_logits(subject.model, batch), batch)
    torch.testing.assert_close(sets.effect(weights, outcome), (base - edited).double(), atol=1e-4, rtol=1e-4)
    first, last = sets.single(core, core)
    alone = sets.effect(torch.zeros(1, sets.count).index_fill(1, core[:1], 1.0), outcome)
    torch.testing.assert_close(first[:, 0], alone, atol=0.05, rtol=0.05)  # the prompt before the tail is left alone
    assert first.shape == last.shape == (batch.size, 3)


@pytest.mark.parametrize(("needed", "most"), [(1, 1), (1, 9), (5, 9), (8, 9), (9, 9), (100, 780)])
def test_the_fewest_are_found_by_bisection(needed: int, most: int) -> None:
    assert fewest(float(needed), float, most) == needed


def test_participation_is_the_number_of_neurons_that_share_alike() -> None:
    table = np.array([[1.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, -2.0], [0.0, 0.0, 0.0, 0.0]])
    assert participation_ratio(table).tolist() == pytest.approx([1.0, 4.0, 0.0])


def test_gate_neurons_are_counted_through_the_late_layers() -> None:
    members = [Member(layer=4, neuron=1, carries="compliance", effect=1.0)]
    assert gate_weights(members, (3, 4), (5, 6)).nonzero().tolist() == [[0, 6]]


def test_the_first_of_an_order_are_weights_of_one() -> None:
    assert first_of(torch.tensor([[2, 0, 1]]), 2).tolist() == [[1.0, 0.0, 1.0]]


@cache
def measured() -> Concentration:
    return concentration.measure(planted_subject("two-layer"), lambda _: None)


def test_a_planted_gate_is_sparse_a_faithful_circuit_and_complete() -> None:
    found = measured()
    assert found.claims[0].said == "yes"
    assert [need.share for need in found.needed] == [0.5, 0.9, 0.99]
    assert found.needed[1].neurons <= 16
    assert found.circuit is not None
    assert found.circuit.faithfulness.low > 0.8
    assert found.circuit.without.high < 0.2
    best = {point.size: point for point in found.curve}
    assert best[8].best.low > best[8].random.high


def test_the_report_tells_what_is_carried_by_how_many() -> None:
    section = concentration.describe(measured())
    assert "Few neurons carry the effect." in section.paragraphs[0]
    assert len(section.paragraphs) == 3
    (plot,) = section.plots
    assert len(plot.rows) == len(measured().curve)
