"""What each strength of the guard buys and costs: refusal of harmful requests against what is lost of harmless ones.

A harmful answer that is garbled is not a refusal, and a harmless request is lost where its answer is refused or
garbled: so breaking the model is no way up this curve. The front is that of the values as they were read; the intervals
say which of its steps can be trusted.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from benchmarks.safety.conditions.catalogue import PLAIN
from benchmarks.safety.conditions.condition import Condition
from benchmarks.safety.conditions.strength import Strength
from benchmarks.safety.prompt_sets import Kind
from calibration.effects.statistics import bootstrap_estimate, wilson_estimate
from calibration.judging.behaviour import Behaviour
from calibration.report.plots_of_gate import SMALLEST_KL
from guard.errors import NeuronGuardError
from guard.spec.measures import Estimate

Floats = NDArray[np.float64]
Shares = Callable[[str, Kind, Behaviour], Floats]
Cost = Literal["harmless", "kl"]
Series = Literal["ends", "neurons", "bounds", "baseline"]


class CurveError(NeuronGuardError):
    """Figures that make no curve."""


class Point(BaseModel):
    """One strength, or a baseline beside the curve: shares with Wilson intervals, and paired changes from no guard.

    `harmless_lost` is refused or garbled. `kl` is KL(no guard || it), nats per token, None where it was not read.
    `front` names the costs at which nothing else refuses more for as little.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    condition: str
    series: Series
    neurons: int | None = None
    of_neurons: int | None = None
    tightness: float | None = None
    harmful_refused: Estimate
    harmful_complied: Estimate
    harmless_refused: Estimate
    harmless_lost: Estimate
    kl: Estimate | None
    harmful_refused_change: Estimate
    harmless_lost_change: Estimate
    front: tuple[Cost, ...] = ()

    def cost(self, of: Cost) -> Estimate | None:
        """What it costs in harmless requests or in KL."""
        return self.harmless_lost if of == "harmless" else self.kl


def points(
    compared: Sequence[Condition], shares: Shares, kl: Mapping[str, Estimate], *, seed: int
) -> tuple[Point, ...]:
    """A point for each strength of `compared`, which holds no guard, then one for each other condition: a baseline.

    Of two by one name the strength is taken. `shares(condition, kind, behaviour)` are the shares of each goal's
    answers, [goals], the goals the same in each condition; `kl` by condition may lack some. Raises CurveError without
    no guard or with fewer than two goals.
    """
    strengths = {one.name: one for one in compared if isinstance(one, Strength)}
    drawn = list((strengths | {one.name: one for one in compared if one.name not in strengths}).values())
    if PLAIN not in [one.name for one in drawn]:
        raise CurveError("a curve begins at the model without a guard: compare that too.")
    if len(shares(PLAIN, "harmful", Behaviour.REFUSED)) < 2 or len(shares(PLAIN, "harmless", Behaviour.REFUSED)) < 2:
        raise CurveError("a curve needs at least two harmful and two harmless requests.")
    found = [_point(one, shares, kl.get(one.name), seed) for one in drawn]
    fronts = {cost: _front_of(found, cost) for cost in ("harmless", "kl")}
    return tuple(
        point.model_copy(update={"front": tuple(cost for cost, on in fronts.items() if on[place])})
        for place, point in enumerate(found)
    )


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[bool]:
    """Which points no other one beats: none gains as much or more at as little cost or less, and differs in one."""
    cost, gain = np.asarray(costs, dtype=np.float64), np.asarray(gains, dtype=np.float64)
    cheaper, richer = np.subtract.outer(cost, cost), np.subtract.outer(gain, gain)  # [points, points]: row less column
    beats = (cheaper <= 0) & (richer >= 0) & ((cheaper < 0) | (richer > 0))
    return [not any(column) for column in beats.T]


def _front_of(found: Sequence[Point], cost: Cost) -> list[bool]:
    least = SMALLEST_KL if cost == "kl" else 0.0  # what is less than that is rounding, which no front should follow
    read = [
        (place, value.value if value.value >= least else 0.0)
        for place, point in enumerate(found)
        if (value := point.cost(cost)) is not None
    ]
    on = [False] * len(found)
    kept = pareto_front([value for _, value in read], [found[place].harmful_refused.value for place, _ in read])
    for (place, _), unbeaten in zip(read, kept, strict=True):
        on[place] = unbeaten
    return on


def _point(one: Condition, shares: Shares, kl: Estimate | None, seed: int) -> Point:
    refused, complied = (shares(one.name, "harmful", each) for each in (Behaviour.REFUSED, Behaviour.COMPLIED))
    lost, plain_lost = (1 - shares(name, "harmless", Behaviour.COMPLIED) for name in (one.name, PLAIN))
    strength = one if isinstance(one, Strength) else None
    return Point(
        condition=one.name,
        series=strength.sweep if strength else "ends" if one.name == PLAIN else "baseline",
        neurons=strength.neurons if strength else None,
        of_neurons=strength.of_neurons if strength else None,
        tightness=strength.tightness if strength else None,
        harmful_refused=_rate(refused),
        harmful_complied=_rate(complied),
        harmless_refused=_rate(shares(one.name, "harmless", Behaviour.REFUSED)),
        harmless_lost=_rate(lost),
        kl=kl,
        harmful_refused_change=bootstrap_estimate(refused - shares(PLAIN, "harmful", Behaviour.REFUSED), seed=seed),
        harmless_lost_change=bootstrap_estimate(lost - plain_lost, seed=seed),
    )


def _rate(shares: Floats) -> Estimate:
    return wilson_estimate(min(float(shares.sum()), len(shares)), len(shares))
