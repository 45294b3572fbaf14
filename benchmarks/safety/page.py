"""The report of `neuron-guard bench safety` as one HTML page: no file beside it, nothing fetched, no request in it.

Style sheet, script and the look of figures are those of calibration's report. It opens with what the guard gains and
what it costs, and ends with what was left out.
"""

from pathlib import Path

from markupsafe import Markup

from benchmarks.safety import tables
from benchmarks.safety.conditions import GUARDED, PLAIN
from benchmarks.safety.curve_plot import curve_plot
from benchmarks.safety.outcomes import ALL
from benchmarks.safety.rates import Difference, Rate
from benchmarks.safety.report import Report
from calibration.display import percent
from calibration.page import template, write_page
from calibration.plot_parts import Json, Plot, axis, layout, plain, plotly_script, points, whiskers
from guard.errors import NeuronGuardError
from guard.measures import Estimate

TEMPLATES = Path(__file__).parents[1] / "templates"
STYLES = {PLAIN: ("$off", "circle-open"), GUARDED: ("$on", "circle")}
OTHERS = ("$one", "$two", "$three", "$four", "$five", "$six", "$quiet")
SYMBOLS = ("square", "diamond", "triangle-up", "triangle-down", "star", "hexagon", "cross")


class PageError(NeuronGuardError):
    """A page that cannot be written where it was asked for."""


def write_safety_page(report: Report, path: Path) -> None:
    """Write the page of `report` to `path`, whole or not at all. Raises PageError where that cannot be."""
    write_page(path, render(report), "page", PageError)


def render(report: Report) -> str:
    """The page as HTML text."""
    drawn = {
        "Harm against over-refusal": trade(report),
        "What each strength buys and costs": curve_plot(report.curve) if report.curve else None,
    }
    plots = {title: plot for title, plot in drawn.items() if plot is not None}
    return template("safety.html.jinja", TEMPLATES).render(
        report=report,
        headline=tables.headline(report),
        gains=gains(report),
        tables=tables.every_table(report),
        caption=tables.CAPTION,
        plots=plots,
        figures={plot.name: {"traces": plot.traces, "layout": plot.layout} for plot in plots.values()},
        plotly=Markup(plotly_script()),  # noqa: S704 - plotly's own source, not text from outside
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


def trade(report: Report) -> Plot | None:
    """Each condition by how much it refuses of what is harmless and complies with of what is harmful."""
    found: dict[str, dict[str, Estimate]] = {}
    for rate in report.rates:
        if rate.judge == report.judge and rate.prompt_set in ALL.values():
            found.setdefault(rate.condition, {})[rate.kind] = rate.headline
    both = {name: of for name, of in found.items() if len(of) == len(ALL)}
    if not both:
        return None
    traces: list[Json] = []
    for place, (name, of) in enumerate(both.items()):
        style = (OTHERS[place % len(OTHERS)], SYMBOLS[place % len(SYMBOLS)])
        colour, symbol = STYLES.get(name, style)
        cost, harm = of["harmless"], of["harmful"]
        hover = f"{tables.share(harm)} complied, {tables.share(cost)} refused<extra>{plain(name)}</extra>"
        traces.append(
            points(plain(name), [100 * cost.value], [100 * harm.value], colour, symbol, hovertemplate=hover,
                   marker={"size": 12, "line": {"color": colour, "width": 2}},
                   error_x=whiskers([cost], colour, 100), error_y=whiskers([harm], colour, 100))
        )  # fmt: skip
    span = {"range": [-4, 104], "ticksuffix": "%", "zeroline": False}
    shape = layout(440, axis("harmless requests refused", **span), axis("harmful requests complied with", **span))
    rows = tuple((name, tables.share(of["harmful"]), tables.share(of["harmless"])) for name, of in both.items())
    said = "; ".join(
        f"{name}: {percent(of['harmful'].value)}, {percent(of['harmless'].value)}" for name, of in both.items()
    )
    label = f"Harmful requests complied with and harmless requests refused, by condition. {said}."
    return Plot("trade", label, traces, shape, ("condition", "harmful complied", "harmless refused"), rows,
                "Best is the lower left corner: nothing harmful answered, nothing harmless refused.")  # fmt: skip
