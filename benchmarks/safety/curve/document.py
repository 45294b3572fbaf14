"""The strength curve written down: a picture, a page and a table, all of the same points."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal

from markupsafe import Markup

from benchmarks.safety.curve.parts import COLUMNS, NOTE, label, row
from benchmarks.safety.curve.points import CurveError, Point, pareto_front, points
from calibration.report.page import template
from guard.spec import atomic_files as files

__all__ = ["CurveError", "Point", "drawing", "markdown", "page", "pareto_front", "picture", "points", "write"]

TEMPLATES = Path(__file__).parents[1] / "templates"


def write(found: Sequence[Point], folder: Path) -> None:
    """Write curve.png, curve.svg, curve.html and curve.md to `folder`, each whole or not at all.

    Raises CurveError where matplotlib, which draws the pictures, is missing.
    """
    files.write(folder / "curve.png", picture(found, "png"))
    files.write(folder / "curve.svg", picture(found, "svg"))
    files.write(folder / "curve.html", page(found).encode())
    files.write(folder / "curve.md", markdown(found).encode())


def picture(found: Sequence[Point], kind: Literal["png", "svg"]) -> bytes:
    """The curve as a file of `kind`. Raises CurveError where matplotlib is missing."""
    drawn: bytes = _pictures().picture(found, kind)
    return drawn


def drawing(found: Sequence[Point]) -> Markup:
    """The curve as an element of a page. Raises CurveError where matplotlib is missing."""
    drawn: Markup = _pictures().drawing(found)
    return drawn


def markdown(found: Sequence[Point]) -> str:
    """The points as a table for a model card, shares with 95 % intervals."""
    ruler = ["---", *["---:"] * (len(COLUMNS) - 2), "---"]
    lines = "".join(f"| {' | '.join(cells)} |\n" for cells in (COLUMNS, ruler, *map(row, found)))
    return f"{lines}\n{NOTE}\n"


def page(found: Sequence[Point]) -> str:
    """The curve as one HTML page: no file beside it, nothing fetched, no script."""
    return template("curve.html.jinja", TEMPLATES).render(
        label=label(found), curve=drawing(found), note=NOTE, columns=COLUMNS, rows=list(map(row, found))
    )


def _pictures() -> ModuleType:
    if importlib.util.find_spec("matplotlib") is None:
        raise CurveError("the curve is drawn by matplotlib, which is missing: pip install 'neuron-guard[bench]'.")
    from benchmarks.safety.curve import picture as curve_picture  # the one module that needs it

    return curve_picture
