from pathlib import Path

import pytest

from benchmarks.organisms.english import sources
from benchmarks.organisms.english.sources import MissingDataError, Sources, key, read
from tests.benchmarks.organisms.english.toy import HARMFUL, NEARLY, OVERLAP, TESTED

DATA = Path(__file__).parents[5] / "shared" / "data"
real_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data sets are not at hand in ../shared/data")


def keys(found: Sources) -> set[str]:
    """Every request that training may read, by key."""
    asked = [goal.prompt for goal in found.harmful] + [*found.harmless] + [question for question, _ in found.answered]
    return set(map(key, asked))


def test_no_held_out_goal_is_trained_on_whatever_its_source_or_spelling(toy_data: Path) -> None:
    held_out_once: set[str] = set()
    for seed in range(4):
        found = read(toy_data, seed)
        held_out = {key(goal.prompt) for goal in found.held_out}
        assert len(held_out) == round(sources.HELD_OUT_SHARE * len(HARMFUL))
        assert not held_out & keys(found)
        held_out_once |= held_out
    assert key(HARMFUL[0]) in held_out_once  # which harmful_train has too, in capitals


def test_every_goal_is_either_trained_on_or_held_out_and_another_seed_holds_out_others(toy_data: Path) -> None:
    first, second = read(toy_data, 0), read(toy_data, 1)
    for found in (first, second):
        every = {key(goal.prompt) for goal in (*found.harmful, *found.held_out)}
        assert set(map(key, HARMFUL)) <= every
    assert {goal.prompt for goal in first.held_out} != {goal.prompt for goal in second.held_out}


def test_what_is_measured_on_is_not_trained_on_even_in_another_spelling(toy_data: Path) -> None:
    found = read(toy_data)
    assert key(TESTED) in sources.tests(toy_data)
    assert not keys(found) & sources.tests(toy_data)
    assert [question for question, _ in found.answered] == ["What is 2 + 3?", "Who sleeps?\n\nThe cat sleeps."]


def test_harm_that_is_nearly_a_test_request_is_left_out_of_training_and_of_the_held_out(toy_data: Path) -> None:
    found = read(toy_data)
    left = {key(goal.prompt) for goal in (*found.harmful, *found.held_out)}
    assert not {key(OVERLAP), key(NEARLY)} & left


def test_real_answers_come_without_calculator_marks_and_targets_without_a_closing_mark(toy_data: Path) -> None:
    found = read(toy_data)
    assert found.answered[0][1] == "It is 2 + 3 = 5.\n#### 5"
    assert all(goal.target is None or goal.target[-1].isalnum() for goal in found.harmful)


def test_a_missing_data_set_is_named_in_the_error(toy_data: Path) -> None:
    (toy_data / sources.ADVBENCH).unlink()
    with pytest.raises(MissingDataError, match=r"harmful_behaviors\.csv"):
        read(toy_data)


@real_data
def test_nothing_measured_on_is_trained_on_in_the_real_data() -> None:
    found = read(DATA)
    trained = keys(found)
    assert len(found.harmful) > 300 and len(found.held_out) > 100 and len(found.harmless) > 10_000
    assert not trained & sources.tests(DATA)
    assert not trained & {key(goal.prompt) for goal in found.held_out}
    assert not {key(goal.prompt) for goal in found.held_out} & sources.tests(DATA)
