"""Splits: nothing is lost, nothing straddles, and too little is said to be too little."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.prompts.request_sets import Request
from calibration.prompts.splits import SplitError, sample, split


def requests(goals: int, variants: int = 1) -> list[Request]:
    return [Request(prompt=f"{v} {g}", goal=str(g), row=g) for g in range(goals) for v in range(variants)]


@given(goals=st.integers(30, 120), variants=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_every_item_is_in_one_part_with_all_its_variants(goals: int, variants: int, seed: int) -> None:
    items = requests(goals, variants)
    parts = split(items, seed)
    groups = [{item.group for item in part} for part in (parts.calibration, parts.validation, parts.held_out)]
    assert sum(map(len, groups)) == len(set.union(*groups)) == goals
    assert len(parts.calibration) + len(parts.validation) + len(parts.held_out) == len(items)
    sizes = [len(group) / goals for group in groups]
    assert sizes == pytest.approx([0.4, 0.3, 0.3], abs=1.5 / goals)


def test_the_order_of_the_file_decides_nothing_and_the_seed_does() -> None:
    items = requests(60)
    shuffled = random.Random(1).sample(items, len(items))
    assert set(split(items, 3).held_out) == set(split(shuffled, 3).held_out)
    assert set(split(items, 3).held_out) != set(split(items, 4).held_out)


@given(goals=st.integers(0, 60), minimum=st.integers(1, 20))
def test_too_few_requests_are_an_error_that_says_how_many_are_enough(goals: int, minimum: int) -> None:
    try:
        split(requests(goals), 0, minimum=minimum)
    except SplitError as error:
        enough = int(str(error).rsplit(" ", 1)[1])
        assert goals < enough
        split(requests(enough), 0, minimum=minimum)


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.0), (0.5, 0.3, 0.3), (1.2, -0.1, -0.1)])
def test_fractions_that_are_no_fractions_are_refused(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="fractions"):
        split(requests(60), 0, fractions)


def test_a_sample_takes_whole_groups_in_their_order() -> None:
    items = requests(20, variants=3)
    chosen = sample(items, 5, seed=2)
    assert len(chosen) == 15
    assert len({item.group for item in chosen}) == 5
    assert [item for item in items if item in chosen] == list(chosen)
    assert sample(items, None, seed=2) == sample(items, 99, seed=2) == tuple(items)
