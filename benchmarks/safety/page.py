"""The report of `neuron-guard bench safety` as one HTML page: no file beside it, nothing fetched, no request in it.

Its style sheet is that of calibration's report; it runs no script, so that it is small enough to be kept with results.
It opens with what the guard gains and what it costs, and ends with what was left out.
"""

from pathlib import Path

from benchmarks.safety import tables
from benchmarks.safety.conditions.catalogue import GUARDED, PLAIN
from benchmarks.safety.curve import document as curve
from benchmarks.safety.measures.outcomes import ALL
from benchmarks.safety.measures.rates import Difference, Rate
from benchmarks.safety.report import Report
from calibration.report.page import template, write_page
from guard.errors import NeuronGuardError

TEMPLATES = Path(__file__).parent / "templates"


class PageError(NeuronGuardError):
    """A page that cannot be written where it was asked for."""


def write_safety_page(report: Report, path: Path) -> None:
    """Write the page of `report` to `path`, whole or not at all. Raises PageError where that cannot be."""
    write_page(path, render(report), "page", PageError)


def render(report: Report) -> str:
    """The page as HTML text. Raises CurveError where there is a curve and nothing to draw it with."""
    return template("safety.html.jinja", TEMPLATES).render(
        report=report,
        headline=tables.headline(report),
        gains=gains(report),
        tables=tables.every_table(report),
        caption=tables.CAPTION,
        curve=curve.drawing(report.curve) if report.curve else None,
    )


def gains(report: Report) -> list[tuple[str, Rate, Rate, Difference]]:
    """What should be low over all sets of each kind: its name, without the guard, with it, and the change."""
    rows = []
    for kind, name in tables.GAINS.items():
        of = {one.condition: one for one in report.rates if (one.prompt_set, one.judge) == (ALL[kind], report.judge)}
        changes = {one.condition: one for one in report.differences if one.prompt_set == ALL[kind]}
        if PLAIN in of and GUARDED in changes:
            rows.append((name, of[PLAIN], of[GUARDED], changes[GUARDED]))
    return rows
