"""The curve as a picture for papers and model cards, PNG and SVG, in colours that colour-blind readers tell apart.

The ground is light in both, so that it can be read on a dark page too. Colours are those of Okabe and Ito (2008); every
series has a symbol of its own besides.
"""

import io
from collections.abc import Sequence
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.safety.curve_plot import COSTS, costs_read, for_logarithm, front_of, places, spent, swept
from benchmarks.safety.curve_points import Cost, Point
from guard.measures import Estimate

BLUE, VERMILION, GREEN, PURPLE, BLACK, GREY = "#0072b2", "#d55e00", "#009e73", "#aa4499", "#1b1d22", "#6b7280"
SWEEPS = {"neurons": ("fewer neurons", BLUE, "o", "-"), "bounds": ("looser bounds", VERMILION, "s", "-.")}
ENDS = ((PURPLE, "X"), (GREEN, "D"))
SYMBOLS = ("^", "v", "*", "h", "P", "p", "<")
STYLE: Any = {
    "font.size": 10, "axes.edgecolor": "#b9bec7", "axes.labelcolor": BLACK, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e7ea", "axes.axisbelow": True,
    "xtick.color": GREY, "ytick.color": GREY, "text.color": BLACK, "svg.hashsalt": "neuron-guard",
}  # fmt: skip
SIZES = {1: (6.8, 3), 2: (10.0, 4)}  # by panels: width in inches, columns of the legend
HEIGHT_INCHES, DOTS_PER_INCH = 5.2, 160


def picture(found: Sequence[Point], kind: Literal["png", "svg"]) -> bytes:
    """The curve, a panel for each cost that was read, as a file of `kind`: the same bytes for the same points."""
    costs = costs_read(found)
    width, columns = SIZES[len(costs)]
    with rc_context(STYLE):
        figure = Figure(figsize=(width, HEIGHT_INCHES), layout="constrained")
        panels = figure.subplots(1, len(costs), squeeze=False)[0]
        for axes, cost in zip(panels, costs, strict=True):
            _draw(axes, for_logarithm(found), cost)
        panels[0].set_ylabel("harmful requests refused, %")
        handles, labels = panels[0].get_legend_handles_labels()
        handles, labels = [*handles[1:], handles[0]], [*labels[1:], labels[0]]  # the front, a plain line, comes first
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
        written = io.BytesIO()
        figure.savefig(
            written, format=kind, dpi=DOTS_PER_INCH, metadata={"Date": None} if kind == "svg" else {"Software": None}
        )
    return written.getvalue()


def _draw(axes: Axes, found: Sequence[Point], cost: Cost) -> None:
    read = [point for point in found if point.cost(cost) is not None]
    for series, (name, colour, symbol, line) in SWEEPS.items():
        drawn = swept(read, series)
        if drawn:
            _series(axes, drawn, cost, name, colour, symbol, line=line, size=6)
    ends = [point for point in read if point.series == "ends"]
    for point, (colour, symbol) in zip(ends, ENDS, strict=False):
        _series(axes, [point], cost, point.condition, colour, symbol, line="", size=9)
    for place, point in enumerate(one for one in found if one.series == "baseline"):
        if point in read:
            _series(axes, [point], cost, point.condition, GREY, SYMBOLS[place % len(SYMBOLS)], line="", size=7)
    axes.plot(
        *places(front_of(read, cost), cost), "--o", color=BLACK, linewidth=0.8, drawstyle="steps-post", markersize=13,
        markerfacecolor="none", markeredgewidth=1.0, label="Pareto front", zorder=4,
    )  # fmt: skip
    axes.set_xlabel(COSTS[cost][0] + (", %" if cost == "harmless" else ""))
    if cost == "kl":
        axes.set_xscale("log")
    axes.set_ylim(-4, 104)
    axes.margins(x=0.06)


def _series(
    axes: Axes, drawn: Sequence[Point], cost: Cost, name: str, colour: str, symbol: str, *, line: str, size: float
) -> None:
    face = "white" if symbol == "s" else colour  # or it hides a sweep that runs the same way
    axes.errorbar(
        *places(drawn, cost), xerr=_bars(spent(drawn, cost), COSTS[cost][1]),
        yerr=_bars([point.harmful_refused for point in drawn], 100.0), fmt=symbol, linestyle=line, color=colour,
        markersize=size, linewidth=1.6, elinewidth=1.0, ecolor=(colour, 0.45), markerfacecolor=face, label=name,
        zorder=3,
    )  # fmt: skip


def _bars(values: Sequence[Estimate], unit: float) -> list[list[float]]:
    """How far each interval reaches down and up."""
    return [
        [unit * max(0.0, value.value - value.low) for value in values],
        [unit * max(0.0, value.high - value.value) for value in values],
    ]
