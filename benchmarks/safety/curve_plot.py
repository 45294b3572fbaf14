"""The curve as a figure of a page: for each cost that was read, refusal of harmful requests over it."""

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.safety.curve_points import Cost, Point
from calibration.display import estimate, share
from calibration.plot_parts import Json, Plot, axis, layout, plain, points, whiskers
from calibration.plots_of_gate import MOST_DECADES, SMALLEST_KL
from guard.measures import Estimate

COSTS: dict[Cost, tuple[str, float]] = {
    "harmless": ("harmless requests lost", 100.0),
    "kl": ("KL from no guard, nats per token", 1.0),
}
SWEEPS = {
    "neurons": ("fewer neurons", "$one", "circle", "solid"),
    "bounds": ("looser bounds", "$two", "square-open", "dashdot"),
}
ENDS = (("$off", "x"), ("$on", "diamond"))
BASELINE_SYMBOLS = ("triangle-up", "triangle-down", "star", "hexagon", "cross", "pentagon", "triangle-left")
COLUMNS = (
    "strength", "harmful refused", "change, points", "harmless lost", "change, points", "KL, nats per token",
    "Pareto front",
)  # fmt: skip
PANEL_PIXELS, GAP = 420, 0.28  # the gap as a share of a panel's height
NOTE = (
    "Best is the upper left corner. Lost are harmless requests that are refused or whose answer is garbled. Rings and "
    "a dashed line: the Pareto front, of values as they were read. Both sweeps run from no guard to the guard. Where "
    "there is no KL it is drawn at the left edge."
)


def costs_read(found: Sequence[Point]) -> list[Cost]:
    """The costs for which there is something to draw."""
    return [cost for cost in COSTS if sum(point.cost(cost) is not None for point in found) > 1]


def curve_plot(found: Sequence[Point]) -> Plot:
    """The curve with intervals: a panel for each cost, one below the other, the front ringed, baselines beside it."""
    costs, drawn = costs_read(found), for_logarithm(found)
    traces, axes = [], {}
    for place, cost in enumerate(costs):
        number = str(place + 1) if place else ""
        traces += _panel(drawn, cost, {"showlegend": place == 0, "xaxis": f"x{number}", "yaxis": f"y{number}"})
        axes[f"xaxis{number}"] = _cost_axis(drawn, cost, f"y{number}")
        top = 1 - place * (1 + GAP) / (len(costs) + (len(costs) - 1) * GAP)
        axes[f"yaxis{number}"] = axis(
            "harmful requests refused", anchor=f"x{number}", range=[-4, 104], ticksuffix="%", zeroline=False,
            domain=[top - 1 / (len(costs) + (len(costs) - 1) * GAP), top],
        )  # fmt: skip
    shape = layout(PANEL_PIXELS * len(costs), axes.pop("xaxis"), axes.pop("yaxis"), **axes)
    best = max(found, key=lambda point: point.harmful_refused.value)
    label = (
        f"Share of harmful requests refused at {len(found)} strengths and baselines, over what each costs; the most, "
        f"{share(best.harmful_refused)}, is refused under {best.condition}, which loses {share(best.harmless_lost)} of "
        "the harmless requests."
    )
    return Plot("curve", label, traces, shape, COLUMNS, tuple(row(point) for point in found), NOTE)


def row(point: Point) -> tuple[str, ...]:
    """A point in words, under `COLUMNS`."""
    return (
        point.condition,
        share(point.harmful_refused),
        share(point.harmful_refused_change).replace("%", ""),
        share(point.harmless_lost),
        share(point.harmless_lost_change).replace("%", ""),
        "not read" if point.kl is None else estimate(point.kl),
        " and ".join("by " + ("harmless requests" if cost == "harmless" else "KL") for cost in point.front),
    )


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


def _cost_axis(drawn: Sequence[Point], cost: Cost, anchor: str) -> Json:
    if cost == "harmless":
        return axis(COSTS[cost][0], anchor=anchor, zeroline=False, ticksuffix="%", rangemode="tozero", nticks=6)
    values = [value.value for value in spent(drawn, cost)]
    decades = math.log10(max(values) / min(values))
    return axis(
        COSTS[cost][0], anchor=anchor, zeroline=False, type="log", exponentformat="power", tickangle=0,
        dtick=1 if decades < MOST_DECADES else 2,
    )  # fmt: skip


def _panel(found: Sequence[Point], cost: Cost, where: Json) -> list[Json]:
    """The traces of one panel; `where` says on which axes, and whether the legend names them."""
    read = [point for point in found if point.cost(cost) is not None]
    traces = [
        _trace(name, swept(read, series), cost, colour, symbol, mode="lines+markers",
               line={"color": colour, "width": 2, "dash": dash}, **where)
        for series, (name, colour, symbol, dash) in SWEEPS.items()
        if swept(read, series)
    ]  # fmt: skip
    ends = [point for point in read if point.series == "ends"]
    traces += [
        _trace(point.condition, [point], cost, colour, symbol, marker={"size": 12}, **where)
        for point, (colour, symbol) in zip(ends, ENDS, strict=False)
    ]
    traces += [
        _trace(point.condition, [point], cost, "$quiet", BASELINE_SYMBOLS[index % len(BASELINE_SYMBOLS)],
               marker={"size": 10}, **where)
        for index, point in enumerate(one for one in found if one.series == "baseline")
        if point in read
    ]  # fmt: skip
    ring = {"color": "rgba(0,0,0,0)", "size": 18, "line": {"color": "$text", "width": 1.5}}
    dashes = {"color": "$muted", "width": 1.2, "dash": "dash", "shape": "hv"}
    front = places(front_of(read, cost), cost)
    traces.append(
        points("Pareto front", *front, "$text", mode="lines+markers",
               marker=ring, line=dashes, hoverinfo="skip", **where)
    )  # fmt: skip
    return traces


def _trace(name: str, drawn: Sequence[Point], cost: Cost, colour: str, symbol: str, **more: Any) -> Json:
    return points(
        plain(name), *places(drawn, cost), colour, symbol,
        error_x=whiskers(spent(drawn, cost), colour, COSTS[cost][1]),
        error_y=whiskers([point.harmful_refused for point in drawn], colour, 100.0),
        text=[plain(f"{point.condition}: {share(point.harmful_refused)} refused") for point in drawn],
        hovertemplate="%{text}<extra></extra>",
        **more,
    )  # fmt: skip
