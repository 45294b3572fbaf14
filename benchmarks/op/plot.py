"""The figures of `neuron-guard bench op` as one HTML page: no file beside it, nothing fetched.

Style sheet and drawing script are the report's. Each figure carries its numbers as a table and a sentence for screen
readers.
"""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from benchmarks.op.contenders import CLAMP, CLAMP_COMPILED, CLAMPED_SHARE, OURS, OURS_COMPILED, PLAIN, PLAIN_COMPILED
from benchmarks.op.page import facts
from benchmarks.op.peers import LIGER, VLLM, VLLM_CLAMP
from benchmarks.op.report import Measurement, OpReport, Timing, in_words
from calibration.report.page import template
from calibration.report.plot_parts import Plot, axis, dashed, layout, plotly_script, points
from guard.spec import atomic_files as files

TEMPLATES = Path(__file__).parent / "templates"
STYLES = {
    OURS: ("$on", "circle", "solid"),
    OURS_COMPILED: ("$on", "circle-open", "dot"),
    PLAIN: ("$text", "square", "solid"),
    PLAIN_COMPILED: ("$text", "square-open", "dot"),
    CLAMP: ("$off", "diamond", "solid"),
    CLAMP_COMPILED: ("$off", "diamond-open", "dot"),
    VLLM: ("$one", "triangle-up", "solid"),
    VLLM_CLAMP: ("$one", "triangle-up-open", "dot"),
    LIGER: ("$three", "star", "solid"),
}
SETTING_COLOURS = ("$one", "$on", "$two")
SETTING_DASHES = ("dot", "dash", "solid")


def write_plot(report: OpReport, path: Path) -> None:
    """Write the page of `report` to `path`."""
    files.write(path, render(report).encode())


def render(report: OpReport) -> str:
    """The page as HTML text."""
    plots = draw(report)
    return template("op.html.jinja", TEMPLATES).render(
        report=report,
        plots=plots,
        facts=facts(report),
        figures={plot.name: {"traces": plot.traces, "layout": plot.layout} for plot in plots},
        plotly=Markup(plotly_script()),  # noqa: S704 - plotly's own source, not text from outside
    )


def draw(report: OpReport) -> list[Plot]:
    """For each d_ff: every contender against the copy, and our op at every setting against the unedited layer."""
    plots = []
    for d_ff in sorted({measured.d_ff for measured in report.measurements}):
        own = sorted((each for each in report.measurements if each.d_ff == d_ff), key=lambda each: each.tokens)
        plots += [share_of_copy(own, d_ff), over_unedited(own, d_ff)]
    return plots


def share_of_copy(measurements: Sequence[Measurement], d_ff: int) -> Plot:
    """Share of the copy bandwidth by number of tokens, 1 % edited at every token."""
    traces, rows = [], []
    for name, (colour, symbol, dash) in STYLES.items():
        found = [(tokens, each) for tokens, each in _timings(measurements, name) if _shown(each)]
        if not found:
            continue
        tokens, timings = [count for count, _ in found], [each for _, each in found]
        traces.append(
            points(name, tokens, [each.share_of_copy for each in timings], colour, symbol, mode="lines+markers",
                   line={"color": colour, "width": 2, "dash": dash}, text=[_spread(each) for each in timings],
                   hovertemplate="%{x} tokens: %{y:.2f} of copy, %{text}<extra>" + name + "</extra>")
        )  # fmt: skip
        rows += [(name, str(count), _spread(each), f"{each.share_of_copy:.2f}") for count, each in found]
    counts = [measured.tokens for measured in measurements]
    traces.append(dashed([counts[0], counts[-1]], [1, 1], "copy"))
    last = next(each for _, each in reversed(_timings(measurements, OURS)) if _shown(each))
    label = (
        f"Share of the copy bandwidth by tokens at d_ff {d_ff}, 1 % edited at every token; ours reaches "
        f"{last.share_of_copy:.2f} at {counts[-1]} tokens."
    )
    shape = layout(380, _tokens_axis(counts), axis("share of copy bandwidth", rangemode="tozero"))
    return Plot(f"copy-{d_ff}", label, traces, shape, ("contender", "tokens", "median (10 to 90 %)", "of copy"),
                tuple(rows), f"Against a copy, d_ff {d_ff}")  # fmt: skip


def over_unedited(measurements: Sequence[Measurement], d_ff: int) -> Plot:
    """Our op's time over that of the unedited eager layer, at every share of edited neurons and active tokens."""
    ours = _timings(measurements, OURS)
    settings = sorted({(each.active or 0.0, each.edited or 0.0) for _, each in ours})
    shares = [sorted({setting[place] for setting in settings}) for place in (0, 1)]
    traces, rows = [], []
    for active, edited in settings:
        found = [(tokens, each) for tokens, each in ours if (each.active, each.edited) == (active, edited)]
        name = f"{edited:.1%} edited, {active:.0%} active"
        colour = SETTING_COLOURS[shares[1].index(edited)]
        line = {"color": colour, "width": 2, "dash": SETTING_DASHES[shares[0].index(active)]}
        traces.append(
            points(name, [count for count, _ in found], [each.over_unedited for _, each in found], colour,
                   mode="lines+markers", line=line, text=[_spread(each) for _, each in found],
                   hovertemplate="%{x} tokens: %{y:.2f}, %{text}<extra>" + name + "</extra>")
        )  # fmt: skip
        rows += [(name, str(count), _spread(each), f"{each.over_unedited:.2f}") for count, each in found]
    counts = [measured.tokens for measured in measurements]
    traces.append(dashed([counts[0], counts[-1]], [1, 1], "unedited"))
    worst = max(each.over_unedited for measured in measurements for each in measured.ours)
    label = f"Our op's time over the unedited layer's by tokens at d_ff {d_ff}; at most {worst:.2f} at 1 % edited."
    shape = layout(380, _tokens_axis(counts), axis("time over unedited", type="log"))
    return Plot(f"unedited-{d_ff}", label, traces, shape, ("setting", "tokens", "median (10 to 90 %)", "over unedited"),
                tuple(rows), f"Every setting against the unedited layer, d_ff {d_ff}")  # fmt: skip


def _timings(measurements: Sequence[Measurement], contender: str) -> list[tuple[int, Timing]]:
    """Every timing of `contender` with its number of tokens."""
    return [(each.tokens, timing) for each in measurements for timing in each.timings if timing.contender == contender]


def _shown(timing: Timing) -> bool:
    return timing.edited is None or (timing.edited == CLAMPED_SHARE and timing.active == 1.0)


def _spread(timing: Timing) -> str:
    return f"{in_words(timing.seconds)} ({in_words(timing.low)} to {in_words(timing.high)})"


def _tokens_axis(counts: Sequence[int]) -> dict[str, object]:
    return axis("tokens", type="log", tickvals=list(counts), ticktext=[str(count) for count in counts])
