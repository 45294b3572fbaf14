"""Breaks: what --set can say, and what it cannot."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.trace.breaks import BreakError, break_edits, read_breaks
from guard.spec.edit_spec import LayerEdit


@pytest.mark.parametrize(
    ("text", "lower", "upper"),
    [("L1.N2=0.5", 0.5, 0.5), ("L1.N2<=0.5", -math.inf, 0.5), (" l1 . n2 >= -1e-3 ", -1e-3, math.inf)],
)
def test_a_break_is_a_value_or_a_bound(text: str, lower: float, upper: float) -> None:
    assert read_breaks([text]) == {(1, 2): (lower, upper)}


@given(st.integers(0, 99), st.integers(0, 9999), st.floats(-1e30, 1e30))
def test_any_number_is_read_back(layer: int, neuron: int, value: float) -> None:
    assert read_breaks([f"L{layer}.N{neuron}={value!r}"]) == {(layer, neuron): (value, value)}


def test_two_bounds_of_one_neuron_hold_together() -> None:
    assert read_breaks(["L0.N0<=2", "L0.N0>=-1", "L0.N0<=1"]) == {(0, 0): (-1.0, 1.0)}


@pytest.mark.parametrize(
    "text",
    ["", "L1N2=0", "L1.N2", "L1.N2=", "L1.N2=x", "L1.N2=nan", "L1.N2=inf", "L1.N2=1e39", "L-1.N2=0", "L1.N2==0",
     "L1.N2<0", "L1.N2=0\nL1.N3=0", "L١.N2=0"],
)  # fmt: skip
def test_what_sets_no_neuron_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(BreakError, match=r"sets no neuron: write L23\.N1187=0") as error:
        read_breaks([text])
    assert "\n" not in str(error.value)


def test_breaks_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(BreakError, match="contradicts"):
        read_breaks(["L0.N0=1", "L0.N0=2"])


def test_the_edits_are_by_layer_with_sorted_neurons() -> None:
    edits = break_edits(["L2.N5=0", "L0.N1<=3", "L2.N1>=0.25"], [8, 8, 8])
    assert edits == (
        LayerEdit(layer=0, neurons=(1,), scale=(1.0,), lower=(-math.inf,), upper=(3.0,)),
        LayerEdit(layer=2, neurons=(1, 5), scale=(1.0, 1.0), lower=(0.25, 0.0), upper=(math.inf, 0.0)),
    )
    assert break_edits([], [8]) == ()


@pytest.mark.parametrize(
    ("text", "reason"), [("L3.N0=0", "no layer 3 .* layers 0 to 2"), ("L1.N8=0", "no neuron 8 .* neurons 0 to 7")]
)
def test_a_neuron_that_the_model_does_not_have_is_refused(text: str, reason: str) -> None:
    with pytest.raises(BreakError, match=reason):
        break_edits([text], [8, 8, 8])
