"""The gate that a search finds, with and without a trigger, and what it does where nothing keeps the budget."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.organisms.catalogue import load_truth
from calibration.runs.store import Store
from calibration.search import gate as finding
from calibration.search.bounds import Bounds, Budget, Measured, Searched, build_edits
from calibration.search.gate import Gate, find_gate, find_trigger, replacement_values
from calibration.search.selection import Member, Requests, SelectionSettings, grow_gate
from calibration.search.trigger import entering_states
from guard.hf import install_edits
from guard.spec.edit_spec import Trigger
from tests.calibration.organisms import late, organism

BUDGET = Budget(kl=0.01, refusal=0.02)
SETTINGS = SelectionSettings()
COUNT = 60


@cache
def gate_of(name: str) -> Gate:
    """The unconditional gate of an organism under a short search."""
    return find_gate(late(name, COUNT, name == "natural"), None, BUDGET, SETTINGS, seed=0, trials=5)


def a_search(harm: float, kl: float = 0.0) -> Searched:
    bounds = Bounds(family="scale", strength=1.0, amplification=1.0)
    return Searched(bounds=bounds, edits=(), measured=Measured(harm, 0.0, kl, kl, 0.0), trials=())


def test_an_empty_gate_loses_to_any_other() -> None:
    assert Gate().objective(BUDGET) == float("inf")
    assert Gate(searched=a_search(50.0, 3.0)).objective(BUDGET) < Gate().objective(BUDGET)


def test_the_late_layers_are_kept_for_both_splits_and_every_kind() -> None:
    ready = late("two-layer")
    assert ready.layers == (3, 4, 5)
    for split in (ready.calibration, ready.validation):
        assert set(split) == {"harmful", "reference", "benign"}
        assert all(run.first_layer == 3 for kept in split.values() for run in kept.runs)


def test_neurons_are_moved_to_zero_or_to_a_mean_on_requests_that_are_refused_or_benign() -> None:
    activations = late("two-layer").activations
    for conditional, mean in ((False, activations.benign_mean), (True, activations.reference_mean)):
        zero, other = replacement_values(activations, conditional).values()
        assert all(not values.any() for values in zero.values())
        assert all(torch.equal(other[layer], mean[layer]) for layer in (3, 4, 5))


def test_the_gate_of_an_organism_keeps_the_budget_and_takes_planted_neurons() -> None:
    found = gate_of("two-layer")
    assert found.searched is not None
    assert found.searched.measured.within(BUDGET)
    assert found.searched.edits == build_edits(found.members, late("two-layer").activations, found.searched.bounds)
    planted = {(layer, n) for layer, neurons in load_truth("two-layer").planted.items() for n in neurons}
    assert sum((member.layer, member.neuron) in planted for member in found.members) >= 4
    assert found.trigger is None


def test_a_search_that_is_stopped_before_each_of_its_parts_does_none_twice_and_finds_the_same_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    stopped: set[int] = set()

    def stopping(name: str, part: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            if len(done) not in stopped:
                stopped.add(len(done))
                raise KeyboardInterrupt
            found = part(*arguments, **named)
            done.append(name)
            return found

        return called

    for name in ("grow_gate", "search_bounds"):
        monkeypatch.setattr(finding, name, stopping(name, getattr(finding, name)))

    def found() -> Gate:
        keep = Store(tmp_path / "work", {}).stage
        return find_gate(late("two-layer"), None, BUDGET, SETTINGS, seed=0, trials=5, keep=keep)

    stops = 0
    while True:
        try:
            gate = found()
        except KeyboardInterrupt:
            stops += 1
        else:
            break
    assert gate.model_dump_json() == gate_of("two-layer").model_dump_json()
    assert stops == len(done)
    assert done.count("grow_gate") == len(replacement_values(late("two-layer").activations, conditional=False))
    assert done.count("search_bounds") >= 1


def test_an_impossible_budget_leaves_a_gate_of_few_neurons_that_does_not_keep_it() -> None:
    broken = Measured(0.0, 0.0, 1.0, 1.0, 1.0)
    tried: list[int] = []

    def never_within(members: tuple[Member, ...], *_: object, **__: object) -> Searched:
        tried.append(len(members))
        return a_search(float(len(members))).model_copy(update={"measured": replace(broken, harm=len(members))})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finding, "search_bounds", never_within)
        found = find_gate(late("two-layer"), None, BUDGET, SETTINGS, seed=0, trials=4)
    assert len(found.members) == min(tried) == 1
    assert any(later == earlier // 2 for earlier, later in pairwise(tried))


def test_where_no_neuron_helps_the_gate_is_empty() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finding, "grow_gate", lambda *_: [])
        found = find_gate(late("two-layer"), None, BUDGET, SETTINGS, seed=0, trials=4)
    assert found == Gate()


def natural_trigger() -> Trigger:
    return find_trigger(organism("natural")[0], late("natural", COUNT, True), alpha=0.05).trigger


def test_the_trigger_of_an_organism_reads_before_the_late_layers_and_is_set_on_validation_requests() -> None:
    trigger = natural_trigger()
    assert 1 <= trigger.layer <= 3
    benign = late("natural", COUNT, True).validation["benign"]
    assert trigger.calibration_size == sum(batch.size for batch in benign.batches)
    states = entering_states(organism("natural")[0], benign.batches, [trigger.layer])[trigger.layer]
    triggered = states.highest(torch.tensor(trigger.direction)) > trigger.threshold + 1e-4
    assert int(triggered.sum()) <= trigger.false_trigger_rate * (trigger.calibration_size + 1)


def test_under_a_trigger_the_gate_acts_on_compliance_as_such_and_keeps_the_trigger() -> None:
    trigger = natural_trigger()
    with pytest.MonkeyPatch.context() as patch:
        seen: list[SelectionSettings] = []

        def watched(
            harmful: Requests, benign: Requests, values: Mapping[int, Tensor], settings: SelectionSettings
        ) -> list[Member]:
            seen.append(settings)
            return grow_gate(harmful, benign, values, settings)

        patch.setattr(finding, "grow_gate", watched)
        found = find_gate(late("natural", COUNT, True), trigger, BUDGET, SETTINGS, seed=0, trials=6)
    assert {each.benign_weight for each in seen} == {0.0}
    assert found.trigger == trigger
    assert found.searched is not None
    with install_edits(organism("natural")[0], found.searched.edits, trigger) as installation:
        assert installation.readout is not None


def test_a_gate_survives_its_json() -> None:
    found = gate_of("two-layer")
    assert Gate.model_validate_json(found.model_dump_json()) == found
