"""What the curve's table and its pictures are made of: its points in words, in series, and in the units of the axes."""

from collections.abc import Sequence

from benchmarks.safety.curve.points import Cost, Point
from calibration.report.display import number, share
from calibration.report.plots_of_gate import SMALLEST_KL
from guard.spec.measures import Estimate

COSTS: dict[Cost, tuple[str, float]] = {
    "harmless": ("harmless requests lost", 100.0),
    "kl": ("KL from no guard, nats per token", 1.0),
}
COLUMNS = (
    "strength", "harmful refused", "change, points", "harmless lost", "change, points", "KL, nats per token",
    "Pareto front",
)  # fmt: skip
LEAST = "< 10⁻⁸"  # SMALLEST_KL in words
ROUNDING = f"A KL {LEAST} is within the rounding of float32; 0 is bit for bit."
NOTE = (
    "Best is the upper left corner. Lost are harmless requests that are refused or whose answer is garbled. Rings and "
    "a dashed line: the Pareto front, of values as they were read. Both sweeps run from no guard to the guard. Where "
    f"there is no KL it is drawn at the left edge. {ROUNDING}"
)


def costs_read(found: Sequence[Point]) -> list[Cost]:
    """The costs for which there is something to draw."""
    return [cost for cost in COSTS if sum(point.cost(cost) is not None for point in found) > 1]


def label(found: Sequence[Point]) -> str:
    """The curve in a sentence."""
    best = max(found, key=lambda point: point.harmful_refused.value)
    return (
        f"Share of harmful requests refused at {len(found)} strengths and baselines, over what each costs; the most, "
        f"{share(best.harmful_refused)}, is refused under {best.condition}, which loses {share(best.harmless_lost)} of "
        "the harmless requests."
    )


def row(point: Point) -> tuple[str, ...]:
    """A point in words, under `COLUMNS`."""
    return (
        point.condition,
        share(point.harmful_refused),
        share(point.harmful_refused_change).replace("%", ""),
        share(point.harmless_lost),
        share(point.harmless_lost_change).replace("%", ""),
        "not read" if point.kl is None else divergence(point.kl),
        " and ".join("by " + ("harmless requests" if cost == "harmless" else "KL") for cost in point.front),
    )


def divergence(kl: Estimate) -> str:
    """A KL with its interval, in nats; what is rounding is told as less than `SMALLEST_KL`, and 0 only where it is."""
    ends = (kl.value, kl.low, kl.high)
    if all(end == 0 for end in ends):
        return "0"
    if all(end < SMALLEST_KL for end in ends):
        return LEAST
    value, low, high = ("0" if end == 0 else number(end) if end >= SMALLEST_KL else LEAST for end in ends)
    return f"{value} ({low} to {high})"


def told(point: Point, cost: Cost) -> str:
    """A point in a sentence, with what it costs."""
    spent_words = row(point)[3] + " of harmless requests lost" if cost == "harmless" else f"KL {row(point)[5]}"
    return f"{point.condition}: {share(point.harmful_refused)} of harmful requests refused, {spent_words}"


def swept(found: Sequence[Point], series: str) -> list[Point]:
    """The points of one sweep, its ends with it, from weak to strong; none where there is nothing between them."""
    between = [point for point in found if point.series == series]
    ends = [point for point in found if point.series == "ends"]
    return [*ends[:1], *between, *ends[1:]] if between else []


def for_logarithm(found: Sequence[Point]) -> list[Point]:
    """The points with KL as a logarithmic axis can show it: what is too little for one at half of the least that is."""
    values = [point.kl.value for point in found if point.kl is not None and point.kl.value > SMALLEST_KL]
    edge = max(SMALLEST_KL, min(values, default=0.0) / 2)

    def raised(kl: Estimate) -> Estimate:
        return Estimate(value=max(kl.value, edge), low=max(kl.low, edge), high=max(kl.high, edge), n=kl.n)

    return [point if point.kl is None else point.model_copy(update={"kl": raised(point.kl)}) for point in found]


def front_of(read: Sequence[Point], cost: Cost) -> list[Point]:
    """The points of the front, from cheap to dear."""
    on = [point for point in read if cost in point.front]
    return sorted(on, key=lambda point: (spent([point], cost)[0].value, point.harmful_refused.value))


def spent(drawn: Sequence[Point], cost: Cost) -> list[Estimate]:
    """What each point costs; points of which it was not read are left out."""
    return [value for point in drawn if (value := point.cost(cost)) is not None]


def places(drawn: Sequence[Point], cost: Cost) -> tuple[list[float], list[float]]:
    """Where the points are drawn: in units of `COSTS`, and in percent."""
    unit = COSTS[cost][1]
    return [unit * value.value for value in spent(drawn, cost)], [100 * one.harmful_refused.value for one in drawn]
