"""What the report's figures are made of: the figure itself, axes, layout, points, whiskers, reference lines.

Figures name colours by their role ("$on", "$text"); the page fills these in from its style sheet, so one figure serves
light and dark. Plotly's own classes are not used: building the JSON keeps the untyped library to one call, and plotly's
validation of the JSON is run in the tests instead.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plotly.offline import get_plotlyjs

from guard.spec.edit_spec import Estimate

Json = dict[str, Any]
FONT = "system-ui, sans-serif"


@dataclass(frozen=True)
class Plot:
    """One figure: plotly traces and layout, `label` for screen readers, and its numbers as a table."""

    name: str
    label: str
    traces: list[Json]
    layout: Json
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def plotly_script() -> str:
    """The source of plotly.js, to be put into the page once."""
    return str(get_plotlyjs())


def axis(title: str, **more: Any) -> Json:
    """An axis in the report's style; `more` adds to it or overrides it."""
    style: Json = {
        "gridcolor": "$line", "zerolinecolor": "$axis", "linecolor": "$axis", "tickcolor": "$axis", "fixedrange": True,
        "automargin": True, "title": {"text": title, "standoff": 10, "font": {"color": "$muted", "size": 13}},
    }  # fmt: skip
    return style | more


def layout(height: int, x: Json, y: Json, **more: Any) -> Json:
    """A layout of `height` pixels in the report's style; `more` adds to it or overrides it."""
    style: Json = {
        "height": height,
        "xaxis": x,
        "yaxis": y,
        "dragmode": False,
        "hovermode": "closest",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 48, "r": 16, "t": 16, "b": 44},
        "font": {"family": FONT, "size": 13, "color": "$text"},
        "hoverlabel": {"bgcolor": "$surface", "bordercolor": "$axis", "font": {"color": "$text", "family": FONT}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemclick": False}
        | {"itemdoubleclick": False},
    }
    return style | more


def points(name: str, x: Sequence[float], y: Sequence[float], colour: str, symbol: str = "circle", **more: Any) -> Json:
    """A scatter trace of one colour and symbol, joined by lines if `mode` says so; `more` adds to it."""
    style: Json = {
        "type": "scatter", "mode": "markers", "name": name, "x": list(x), "y": list(y), "cliponaxis": False,
        "marker": {"color": colour, "symbol": symbol, "size": 8}, "line": {"color": colour, "width": 2},
    }  # fmt: skip
    style["marker"] |= more.pop("marker", {})
    return style | more


def dashed(x: Sequence[float], y: Sequence[float], name: str, colour: str = "$muted", dash: str = "dash") -> Json:
    """A thin reference line through the given points."""
    line = {"color": colour, "width": 1.5, "dash": dash}
    return points(name, x, y, colour, mode="lines", line=line, hoverinfo="name")


def whiskers(values: Sequence[Estimate], colour: str, unit: float = 1.0) -> Json:
    """Error bars of intervals, times `unit`; plotly takes distances, which rounding must not turn negative."""
    return {
        "type": "data", "symmetric": False, "color": colour, "thickness": 1.5, "width": 0,
        "array": [unit * max(0.0, value.high - value.value) for value in values],
        "arrayminus": [unit * max(0.0, value.value - value.low) for value in values],
    }  # fmt: skip


def plain(text: str) -> str:
    """Text of a spec for a label: plotly reads markup there, so it is escaped."""
    return html.escape(text, quote=False)
