"""The strength curve written down: a picture, a page and a table, all of the same points."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from benchmarks.safety.curve_plot import COLUMNS, NOTE, curve_plot, row
from benchmarks.safety.curve_points import CurveError, Point, pareto_front, points
from calibration.page import template
from calibration.plot_parts import plotly_script
from guard import files

__all__ = ["CurveError", "Point", "curve_plot", "markdown", "page", "pareto_front", "points", "write"]

TEMPLATES = Path(__file__).parents[1] / "templates"


def write(found: Sequence[Point], folder: Path) -> None:
    """Write curve.png, curve.svg, curve.html and curve.md to `folder`, each whole or not at all.

    Raises CurveError where matplotlib, which draws the pictures, is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise CurveError("the curve is drawn by matplotlib, which is missing: pip install 'neuron-guard[bench]'.")
    from benchmarks.safety.curve_picture import picture  # the one module that needs it

    files.write(folder / "curve.png", picture(found, "png"))
    files.write(folder / "curve.svg", picture(found, "svg"))
    files.write(folder / "curve.html", page(found).encode())
    files.write(folder / "curve.md", markdown(found).encode())


def markdown(found: Sequence[Point]) -> str:
    """The points as a table for a model card, shares with 95 % intervals."""
    ruler = ["---", *["---:"] * (len(COLUMNS) - 2), "---"]
    lines = "".join(f"| {' | '.join(cells)} |\n" for cells in (COLUMNS, ruler, *map(row, found)))
    return f"{lines}\n{NOTE}\n"


def page(found: Sequence[Point]) -> str:
    """The curve as one HTML page: no file beside it, nothing fetched."""
    plot = curve_plot(found)
    return template("curve.html.jinja", TEMPLATES).render(
        plot=plot,
        figures={plot.name: {"traces": plot.traces, "layout": plot.layout}},
        plotly=Markup(plotly_script()),  # noqa: S704 - plotly's own source, not text from outside
    )
