"""Claims say what their grounds say, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from guard.spec.claim import Claim, Ground, claim
from guard.spec.edit_spec import Estimate

bounds = st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3).map(sorted)
grounds = st.lists(bounds, min_size=1, max_size=4).map(
    lambda several: tuple(
        Ground(name=str(place), estimate=Estimate(low=low, value=value, high=high, n=8))
        for place, (low, value, high) in enumerate(several)
    )
)


@given(grounds)
def test_a_claim_holds_only_where_every_ground_lies_above_zero(several: tuple[Ground, ...]) -> None:
    assert (claim("late", "late", several).said == "yes") == all(ground.estimate.low > 0 for ground in several)


@given(grounds, grounds)
def test_another_ground_never_makes_a_claim_hold(some: tuple[Ground, ...], more: tuple[Ground, ...]) -> None:
    assert claim("late", "late", some).said == "yes" or claim("late", "late", some + more).said != "yes"


@given(grounds)
def test_a_claim_fails_where_any_ground_lies_below_zero(several: tuple[Ground, ...]) -> None:
    assert (claim("late", "late", several).said == "no") == any(ground.estimate.high < 0 for ground in several)


@given(grounds)
def test_a_claim_that_says_what_its_grounds_do_not_is_refused(several: tuple[Ground, ...]) -> None:
    said = claim("late", "late", several).said
    with pytest.raises(ValidationError, match="its grounds say"):
        Claim(name="late", statement="late", said="no" if said == "yes" else "yes", grounds=several)


def test_a_claim_without_grounds_is_refused() -> None:
    with pytest.raises(ValidationError):
        Claim(name="late", statement="late", said="yes", grounds=())
