"""The definition against the equation, written out one number at a time."""

import math

import numpy as np
import pytest
import torch

from guard.ops.reference import edit_neurons

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
D_FF = 7
NEURONS = torch.tensor([0, 3, 6], dtype=torch.int32)
SCALE = torch.tensor([0.1, -1.7, 1.0])
LOWER = torch.tensor([-0.05, -torch.inf, 0.25])
UPPER = torch.tensor([0.1, 0.3, 0.25])


def by_hand(value: float, position: int, dtype: torch.dtype) -> float:
    """clip(scale * value, lower, upper) in Python floats, the product rounded as a float32 product is."""
    product = value * float(SCALE[position])
    if dtype != torch.float64:
        product = float(np.float32(product))  # the product of two float32 is exact in float64
    if math.isnan(product):
        return product
    return min(max(product, float(LOWER[position])), float(UPPER[position]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_is_the_equation_number_by_number(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    h = torch.randn(5, 3, D_FF, generator=generator).to(dtype)
    active = torch.rand(5, 3, generator=generator) < 0.5
    expected = h.clone()
    for row, column in active.nonzero().tolist():
        for position, neuron in enumerate(NEURONS.tolist()):
            expected[row, column, neuron] = by_hand(float(h[row, column, neuron]), position, dtype)
    assert torch.equal(edit_neurons(h, NEURONS, SCALE, LOWER, UPPER, active), expected)


def test_without_a_mask_every_token_is_edited() -> None:
    h = torch.randn(4, D_FF, generator=torch.Generator().manual_seed(2))
    everywhere = torch.ones(4, dtype=torch.bool)
    with_mask = edit_neurons(h, NEURONS, SCALE, LOWER, UPPER, everywhere)
    assert torch.equal(edit_neurons(h, NEURONS, SCALE, LOWER, UPPER), with_mask)


def test_nan_stays_nan_and_infinities_are_clipped() -> None:
    h = torch.tensor([torch.nan, 0.0, 0.0, torch.inf, 0.0, 0.0, -torch.inf])
    edited = edit_neurons(h, NEURONS, SCALE, LOWER, UPPER)
    assert edited[0].isnan()
    assert edited[3] == -torch.inf  # inf * -1.7, no lower bound
    assert edited[6] == 0.25


def test_infinity_times_zero_is_nan_as_in_torch() -> None:
    zero = torch.zeros(1)
    assert edit_neurons(torch.tensor([torch.inf]), torch.tensor([0], dtype=torch.int32), zero, zero, zero).isnan().all()


def test_the_upper_bound_wins_where_the_bounds_cross() -> None:
    one = torch.ones(1)
    edited = edit_neurons(torch.tensor([0.5]), torch.tensor([0], dtype=torch.int32), one, 2 * one, -3 * one)
    assert edited.item() == -3.0


def test_negative_zero_outside_the_gate_keeps_its_sign() -> None:
    edited = edit_neurons(torch.full((2, D_FF), -0.0), NEURONS, SCALE, LOWER, UPPER)
    assert edited[:, [1, 2, 4, 5]].signbit().all()
