"""The conditions that are compared: what is among them, what they do, and that nothing stays of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.safety.conditions.catalogue import GUARDED, LEARNT, PLAIN, RANDOM, SYSTEM, TRUE_GATE, random_edits
from tests.benchmarks.safety.subjects import NAME, conditions_of, everything, logits, spec
from tests.calibration.organisms import organism


def test_with_a_spec_calibrated_requests_and_a_known_gate_everything_is_compared() -> None:
    assert list(everything()) == [PLAIN, GUARDED, SYSTEM, RANDOM, *LEARNT, TRUE_GATE]


def test_what_needs_a_spec_or_calibrated_requests_is_left_out_without_them() -> None:
    assert [one.name for one in conditions_of(*organism(NAME), None, None)] == [PLAIN, SYSTEM]
    without_requests = conditions_of(*organism(NAME), spec(), None)
    assert [one.name for one in without_requests] == [PLAIN, GUARDED, SYSTEM, RANDOM]


@given(st.integers(0, 10**6))
def test_random_neurons_are_never_the_specs_own_and_as_many(seed: int) -> None:
    drawn = random_edits(organism(NAME)[0], spec(), seed)
    for edit, own in zip(drawn, spec().layers, strict=True):
        assert edit.layer == own.layer
        assert len(edit.neurons) == len(own.neurons)
        assert not set(edit.neurons) & set(own.neurons)


@pytest.mark.parametrize("name", [PLAIN, GUARDED, SYSTEM, RANDOM, *LEARNT, TRUE_GATE])
def test_nothing_of_a_condition_stays_on_the_model_however_its_context_ends(name: str) -> None:
    model, _ = organism(NAME)
    modules, before = dict(model.named_modules()), logits()
    with everything()[name].installed():
        logits()
    with pytest.raises(ZeroDivisionError), everything()[name].installed():
        raise ZeroDivisionError
    assert dict(model.named_modules()) == modules
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(logits(), before)


def test_the_true_gate_is_the_planted_neurons_at_0() -> None:
    with everything()[GUARDED].installed():  # the spec of these tests holds just these at 0
        expected = logits()
    with everything()[TRUE_GATE].installed():
        assert torch.equal(logits(), expected)
    assert not torch.equal(logits(), expected)
