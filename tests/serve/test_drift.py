"""Drift is told when there is some, soon also after a long quiet, and hardly ever when there is none."""

import copy
import logging
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.runtime.counts import Tally
from guard.spec.edit_spec import EditSpec
from serve.drift import TRIGGER, Drift, Gambler, Rate, clips_of
from tests.guard.specs import HELD_OUT, RATES, evidence_with, small_spec

STREAMS, REQUESTS = 200, 400
CHANCE = 0.1


def spec_with_rates() -> EditSpec:
    return small_spec(evidence=evidence_with(held_out=HELD_OUT.model_copy(update={"benign_rates": RATES})))


def rate(low: float, high: float, chance: float = CHANCE) -> Rate:
    return Rate("rate", low, (low + high) / 2, high, 2 / chance)


def first_alarm(watched: Rate, numbers: list[float]) -> int | None:
    """How many numbers it takes; None without an alarm."""
    return next((place for place, number in enumerate(numbers, 1) if watched.observe(number)), None)


@given(st.floats(0.001, 1.0), st.lists(st.sampled_from([0.0, 0.3, 1.0]), max_size=30))
def test_capital_grows_by_nothing_in_expectation_at_the_mean_bet_against(mean: float, numbers: list[float]) -> None:
    gambler = Gambler(mean)
    assert gambler.capital == 1.0
    for number in numbers:
        gambler.observe(number)
    won, lost = copy.deepcopy(gambler), copy.deepcopy(gambler)
    won.observe(1.0)
    lost.observe(0.0)
    assert mean * won.capital + (1 - mean) * lost.capital == pytest.approx(gambler.capital, rel=1e-9)
    assert lost.capital > 0


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.02), (0.3, 0.3), (0.9, 1.0)])
@pytest.mark.parametrize("shape", ["zero or one", "shares"])
def test_false_alarms_are_as_rare_as_stated_at_either_end_of_the_interval(low: float, high: float, shape: str) -> None:
    chance = random.Random(f"{low} {high} {shape}")

    def number(mean: float) -> float:
        if shape == "zero or one" or mean in (0.0, 1.0):
            return float(chance.random() < mean)
        return chance.betavariate(2 * mean, 2 * (1 - mean))

    for mean in (low, high):
        alarms = sum(
            first_alarm(rate(low, high), [number(mean) for _ in range(REQUESTS)]) is not None for _ in range(STREAMS)
        )
        assert alarms <= CHANCE * STREAMS


@pytest.mark.parametrize(("mean", "within"), [(0.1, 400), (0.5, 40)])
def test_a_rate_above_its_interval_is_told_within_a_few_hundred_requests(mean: float, within: int) -> None:
    chance = random.Random(5)
    delays = [
        first_alarm(rate(0.0, 0.02, 0.01), [float(chance.random() < mean) for _ in range(within)]) for _ in range(50)
    ]
    assert sum(delay is not None for delay in delays) >= 48


def test_a_rate_below_its_interval_is_told_too() -> None:
    assert first_alarm(rate(0.4, 0.6), [0.2] * 200) is not None
    assert first_alarm(rate(0.4, 0.6), [0.4] * 200) is None


def test_a_change_after_a_long_quiet_is_told_nearly_as_soon_as_one_at_the_start() -> None:
    chance = random.Random(6)
    changed = [float(chance.random() < 0.2) for _ in range(500)]
    at_once, later = rate(0.0, 0.02), rate(0.0, 0.02)
    for _ in range(20_000):
        assert not later.observe(float(chance.random() < 0.01))
    soon, late = first_alarm(at_once, changed), first_alarm(later, changed)
    assert soon is not None
    assert late is not None
    assert late < 4 * soon + 50


def test_each_rate_of_the_evidence_is_watched_and_compared_with_its_interval() -> None:
    drift = Drift(spec_with_rates())
    drift.observe(Tally(tokens=10, active=3, clips=(5, 10)))
    drift.observe(Tally(tokens=4, active=0, clips=(0, 2)))
    states = {state.name: state for state in drift.states()}
    assert states.keys() == {TRIGGER, clips_of(2), clips_of(3)}
    assert states[TRIGGER].mean == 0.5
    assert states[clips_of(2)].mean == pytest.approx((5 / (2 * 10) + 0) / 2)
    assert states[clips_of(3)].mean == pytest.approx((10 / 10 + 2 / 4) / 2)
    assert (states[TRIGGER].low, states[TRIGGER].high) == (0.0, 0.1)
    assert all(state.requests == 2 and not state.alarm for state in states.values())


def test_an_alarm_is_logged_once_and_stays(caplog: pytest.LogCaptureFixture) -> None:
    drift = Drift(spec_with_rates())
    with caplog.at_level(logging.WARNING):
        for _ in range(200):
            drift.observe(Tally(tokens=2, active=1, clips=(2, 1)))
    assert drift.alarm
    assert [record.message.partition(" is ")[0] for record in caplog.records] == ["guard drift: trigger"]
    for _ in range(2000):
        drift.observe(Tally(tokens=2, active=0, clips=(2, 1)))
    assert drift.alarm
    assert [state.evidence for state in drift.states() if state.name == TRIGGER] == [1.0]
    assert len(caplog.records) == 1


def test_rates_share_one_chance_of_a_false_alarm() -> None:
    drift = Drift(spec_with_rates(), false_alarm=0.06)
    assert [watched._limit for watched in drift._rates.values()] == pytest.approx([2 * 3 / 0.06] * 3)


def test_an_older_spec_is_compared_with_its_trigger_s_guarantee() -> None:
    (state,) = Drift(small_spec()).states()
    assert (state.name, state.low, state.high) == (TRIGGER, 0.0, 0.01)


def test_a_spec_with_nothing_to_compare_with_raises_no_alarm() -> None:
    drift = Drift(small_spec(trigger=None))
    drift.observe(Tally(tokens=3, active=3, clips=(0, 0)))
    assert drift.states() == ()
    assert not drift.alarm


def test_a_request_without_tokens_is_no_evidence() -> None:
    drift = Drift(spec_with_rates())
    drift.observe(Tally(tokens=0, active=0, clips=(0, 0)))
    assert all(state.requests == 0 and state.mean is None and state.evidence == 0.0 for state in drift.states())
