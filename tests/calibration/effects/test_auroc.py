"""The area under the ROC curve and its interval."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.effects.auroc import auroc_estimate


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=12), st.lists(st.integers(-5, 5), min_size=1, max_size=9))
def test_it_is_the_share_of_pairs_in_order_with_ties_counted_half(above: list[int], below: list[int]) -> None:
    pairs = [(a > b) + 0.5 * (a == b) for a in above for b in below]
    found = auroc_estimate(above, below)
    assert found.value == pytest.approx(np.mean(pairs))
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_a_perfect_separation_of_few_requests_is_not_taken_for_certain() -> None:
    few, many = (auroc_estimate(np.arange(n) + 100.0, np.arange(n) * 1.0) for n in (10, 100))
    assert few.value == many.value == 1.0
    assert few.low < 0.9 < 0.95 < many.low < 1.0
    assert few.high == 1.0


def test_turning_the_scores_round_turns_the_interval_round() -> None:
    random = np.random.default_rng(0)
    above, below = random.normal(1.0, 1.0, 30), random.normal(0.0, 1.0, 20)
    found, turned = auroc_estimate(above, below), auroc_estimate(-above, -below)
    assert (turned.low, turned.value, turned.high) == pytest.approx((1 - found.high, 1 - found.value, 1 - found.low))


def test_the_interval_covers_the_true_area_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    true = 0.9213504  # P(N(2, 1) > N(0, 1)) = Phi(sqrt 2)
    covered = 0
    for _ in range(300):
        found = auroc_estimate(random.normal(2.0, 1.0, 40), random.normal(0.0, 1.0, 40))
        covered += found.low <= true <= found.high
    assert 0.92 <= covered / 300 <= 1.0


def test_scores_of_one_kind_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="each kind"):
        auroc_estimate([], [1.0])
