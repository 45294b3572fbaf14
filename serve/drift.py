"""Does the guard still see requests like those it was calibrated on? A sequential test that may be read at any time.

Each finished request gives one number a rate, all in [0, 1]: whether the trigger was active on any token, and for each
guarded layer the share of edited values that the edit changed. The evidence says what their means are on benign
requests, as intervals. For each end of each interval a gambler starts with 1 and bets on every request that the mean
lies beyond it: capital times 1 + stake (x - mean). While traffic is as the evidence says, no such capital grows in
expectation, so the chance that it ever reaches c is at most 1/c, however long one watches (Ville 1939; bets on means of
bounded numbers: Waudby-Smith and Ramdas 2024). Capital lost in good years must not delay an alarm, so a share of it is
kept back and joins at every request, weights 1/(t (t + 1)), which sum to 1. With FALSE_ALARM split evenly among the
gamblers, the chance of any alarm at all without a change is at most FALSE_ALARM, for all time.

An alarm says that traffic or model has changed, not which; requests that follow one another from one hand are not
independent, and a wave of attacks is such a change too. It stays on until a spec is loaded anew.
"""

import logging
import math
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from guard.runtime.counts import Tally
from guard.spec.edit_spec import EditSpec

FALSE_ALARM = 0.01
STAKES = tuple(2.0**-power for power in range(1, 9))  # of the most that can be bet without going into debt
LARGEST = 1e300  # capital is not counted beyond
TRIGGER = "trigger"
logger = logging.getLogger(__name__)


class Gambler:
    """Capital of one who bets that numbers of [0, 1] have a mean above `mean`; 1 at the start, never negative."""

    def __init__(self, mean: float) -> None:
        self._mean = max(mean, 1e-9)  # a mean of 0 would win without bound at the first number above it
        self._bets = [stake / self._mean for stake in STAKES]
        self._capital = [0.0] * len(STAKES)
        self._seen = 0

    @property
    def capital(self) -> float:
        """What is in play, averaged over the stakes, and what is still kept back."""
        return sum(self._capital) / len(STAKES) + 1 / (self._seen + 1)

    def observe(self, value: float) -> None:
        """Bet on the next number."""
        self._seen += 1
        joining = 1 / (self._seen * (self._seen + 1))
        gain = value - self._mean
        self._capital = [
            min((capital + joining) * (1 + bet * gain), LARGEST)
            for capital, bet in zip(self._capital, self._bets, strict=True)
        ]


@dataclass(frozen=True)
class RateState:
    """One rate: `expected` from `low` to `high` by the evidence, its mean over the `requests` so far, and how far the
    stronger of its two gamblers is on the way to an `alarm`: 0 at the start and below, 1 at the alarm (logarithmic).
    """

    name: str
    low: float
    expected: float
    high: float
    requests: int
    mean: float | None
    evidence: float
    alarm: bool


class Rate:
    """One rate and its two gamblers; they raise an alarm at a capital of `limit`."""

    def __init__(self, name: str, low: float, expected: float, high: float, limit: float) -> None:
        self.name = name
        self._low, self._expected, self._high = low, expected, high
        self._limit = limit
        self._above, self._below = Gambler(high), Gambler(1 - low)
        self._sum, self._requests = 0.0, 0
        self.alarm = False

    def observe(self, value: float) -> bool:
        """Take in one request's number; True if it raises the alarm for the first time."""
        self._above.observe(value)
        self._below.observe(1 - value)
        self._sum += value
        self._requests += 1
        first = not self.alarm and max(self._above.capital, self._below.capital) >= self._limit
        self.alarm = self.alarm or first
        return first

    def state(self) -> RateState:
        """Where it stands."""
        capital = max(self._above.capital, self._below.capital, 1.0)
        return RateState(
            name=self.name,
            low=self._low,
            expected=self._expected,
            high=self._high,
            requests=self._requests,
            mean=self._sum / self._requests if self._requests else None,
            evidence=min(math.log(capital) / math.log(self._limit), 1.0) if not self.alarm else 1.0,
            alarm=self.alarm,
        )


class Drift:
    """The rates of the spec that serves. `observe` is for the engine's thread, the rest for any."""

    def __init__(self, spec: EditSpec, *, false_alarm: float = FALSE_ALARM) -> None:
        self.false_alarm = false_alarm
        self._sizes = [len(edit.neurons) for edit in spec.layers]
        expected = list(_expected(spec))
        limit = 2 * len(expected) / false_alarm
        self._rates = {name: Rate(name, *interval, limit) for name, interval in expected}
        self._layers = [edit.layer for edit in spec.layers]
        self._lock = threading.Lock()

    def observe(self, tally: Tally) -> None:
        """Take in one finished request; those that came without a token do not count."""
        if not tally.tokens:
            return
        values = {TRIGGER: float(tally.active > 0)}
        for layer, size, clips in zip(self._layers, self._sizes, tally.clips, strict=True):
            values[clips_of(layer)] = clips / (size * tally.tokens)
        with self._lock:
            raised = [rate.state() for name, rate in self._rates.items() if rate.observe(values[name])]
        for state in raised:
            logger.warning(
                "guard drift: %s is %.4f over %d requests, the spec's evidence says %.4f to %.4f "
                "(chance of any such alarm without a change: %.4f)",
                *(state.name, state.mean, state.requests, state.low, state.high, self.false_alarm),
            )

    @property
    def alarm(self) -> bool:
        """Whether any rate has drifted."""
        with self._lock:
            return any(rate.alarm for rate in self._rates.values())

    def snapshot(self) -> dict[str, Any]:
        """Everything here as a JSON document."""
        rates = [asdict(state) for state in self.states()]
        return {"alarm": self.alarm, "false_alarm": self.false_alarm, "rates": rates}

    def states(self) -> tuple[RateState, ...]:
        """Each rate; none where the spec's evidence has nothing to compare with."""
        with self._lock:
            return tuple(rate.state() for rate in self._rates.values())


def clips_of(layer: int) -> str:
    """The name of a layer's rate."""
    return f"clips of layer {layer}"


def _expected(spec: EditSpec) -> Iterator[tuple[str, tuple[float, float, float]]]:
    """Name and interval (low, expected, high) of every rate that the evidence has.

    Specs made before the rates were recorded have the trigger's guarantee alone: an upper end.
    """
    rates = spec.evidence.held_out.benign_rates
    if rates is None:
        if spec.trigger is not None:
            guaranteed = spec.trigger.false_trigger_rate
            yield TRIGGER, (0.0, guaranteed, guaranteed)
        return
    if rates.triggered is not None:
        yield TRIGGER, (rates.triggered.low, rates.triggered.value, rates.triggered.high)
    for clips in rates.clips:
        yield clips_of(clips.layer), (clips.share.low, clips.share.value, clips.share.high)
