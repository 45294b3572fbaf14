"""The curve as a picture: PNG and SVG for papers and model cards, and a drawing for a page, which has its colours.

The files' ground is light, so that they can be read on a dark page too. Their colours are those of Okabe and Ito
(2008), which colour-blind readers tell apart; every series has a symbol of its own besides.
"""

import io
import re
from collections.abc import Sequence
from typing import Any, Literal

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.safety.curve.parts import COSTS, costs_read, for_logarithm, front_of, label, places, spent, swept, told
from benchmarks.safety.curve.points import Cost, Point
from guard.spec.measures import Estimate

BLUE, VERMILION, GREEN, PURPLE, BLACK, GREY = "#0072b2", "#d55e00", "#009e73", "#aa4499", "#1b1d22", "#6b7280"
WHITE, EDGE, GRID = "#ffffff", "#b9bec7", "#e6e7ea"
SWEEPS = {"neurons": ("fewer neurons", BLUE, "o", "-"), "bounds": ("looser bounds", VERMILION, "s", "-.")}
ENDS = ((PURPLE, "X"), (GREEN, "D"))
SYMBOLS = ("^", "v", "*", "h", "P", "p", "<")
STYLE: Any = {
    "font.size": 10, "axes.edgecolor": EDGE, "axes.labelcolor": BLACK, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "axes.axisbelow": True,
    "xtick.color": GREY, "ytick.color": GREY, "text.color": BLACK, "svg.hashsalt": "neuron-guard",
}  # fmt: skip
SIZES = {1: (6.8, 3), 2: (10.0, 4)}  # by panels: width in inches, columns of the legend
HEIGHT_INCHES, DOTS_PER_INCH = 5.2, 160
ON_A_PAGE = (5.0, 3.6, 1.0)  # width, height of a panel and of the legend, in inches: text of 10 points at 360 pixels
VARIABLES = {
    BLUE: "one", VERMILION: "two", GREEN: "on", PURPLE: "off", BLACK: "text", GREY: "muted", WHITE: "surface",
    EDGE: "axis", GRID: "line",
}  # fmt: skip


def picture(found: Sequence[Point], kind: Literal["png", "svg"]) -> bytes:
    """The curve, a panel for each cost that was read, as a file of `kind`: the same bytes for the same points."""
    width, columns = SIZES[len(costs_read(found))]
    with rc_context(STYLE):
        return _written(_figure(found, (width, HEIGHT_INCHES), columns), kind)


def drawing(found: Sequence[Point]) -> Markup:
    """The curve as an `svg` element of a page, its panels one below the other: text is text, colours are those of the
    page's style sheet, and each point says what it is where it is pointed at.
    """
    panels = len(costs_read(found))
    width, panel, legend = ON_A_PAGE
    with rc_context(STYLE | {"svg.fonttype": "none"}):
        figure = _figure(found, (width, panel * panels + legend), 2, below=True)
        written = _written(figure, "svg").decode()
    element = written[written.index("<svg") :]
    for colour, variable in VARIABLES.items():
        element = element.replace(colour, f"var(--{variable})")
    for cost in costs_read(found):
        for place, point in enumerate(found):
            group = f'<g id="{_name(cost, place)}">'
            element = element.replace(group, f"{group}<title>{escape(told(point, cost))}</title>")
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r' (width|height)="[\d.]+pt"', "", element, count=2)  # as wide as the page has room for
    named = f'<svg role="img" aria-label="{escape(label(found))}"'
    return Markup(element.replace("<svg", named, 1))  # noqa: S704 - matplotlib's, and what is from outside is escaped


def _figure(found: Sequence[Point], size: tuple[float, float], columns: int, *, below: bool = False) -> Figure:
    costs = costs_read(found)
    figure = Figure(figsize=size, layout="constrained")
    shape = (len(costs), 1) if below else (1, len(costs))
    panels = figure.subplots(*shape, squeeze=False).flatten()
    for axes, cost in zip(panels, costs, strict=True):
        _draw(axes, for_logarithm(found), cost)
        if below or axes is panels[0]:
            axes.set_ylabel("harmful requests refused, %")
        if below:
            _points(axes, found, cost)
    handles, labels = panels[0].get_legend_handles_labels()
    handles, labels = [*handles[1:], handles[0]], [*labels[1:], labels[0]]  # the front, a plain line, comes first
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _written(figure: Figure, kind: Literal["png", "svg"]) -> bytes:
    written = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(written, format=kind, dpi=DOTS_PER_INCH, metadata=metadata)
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
    face = WHITE if symbol == "s" else colour  # or it hides a sweep that runs the same way
    axes.errorbar(
        *places(drawn, cost), xerr=_bars(spent(drawn, cost), COSTS[cost][1]),
        yerr=_bars([point.harmful_refused for point in drawn], 100.0), fmt=symbol, linestyle=line, color=colour,
        markersize=size, linewidth=1.6, elinewidth=1.0, ecolor=(colour, 0.45), markerfacecolor=face, label=name,
        zorder=3,
    )  # fmt: skip


def _points(axes: Axes, found: Sequence[Point], cost: Cost) -> None:
    """Something unseen on each point that was read, to point at."""
    for place, (point, drawn) in enumerate(zip(found, for_logarithm(found), strict=True)):
        if point.cost(cost) is not None:
            (mark,) = axes.plot(*places([drawn], cost), "o", markersize=13, alpha=0.0, zorder=5)
            mark.set_gid(_name(cost, place))


def _name(cost: Cost, place: int) -> str:
    return f"{cost}-{place}"


def _bars(values: Sequence[Estimate], unit: float) -> list[list[float]]:
    """How far each interval reaches down and up."""
    return [
        [unit * max(0.0, value.value - value.low) for value in values],
        [unit * max(0.0, value.high - value.value) for value in values],
    ]
