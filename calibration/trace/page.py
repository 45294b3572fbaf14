"""The trace as one HTML page that stands alone: a map over layers and tokens, and a way down to the neurons.

The page computes nothing: every number on it is written here, by the same rules as in the terminal, and its script only
moves them about. Whatever comes from a prompt or a tokenizer is text to it.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from calibration.report.display import number, token
from calibration.report.page import template, write_page
from calibration.report.plot_parts import plotly_script
from calibration.trace.document import ModuleEffect, Neuron, Trace, Written
from calibration.trace.plots import MODULE_NAMES, column_name, draw, row_name
from guard.errors import NeuronGuardError

NEURONS_LISTED = 20
VIEW_NAMES = {"layer": "Layer output", "attention": "Attention", "mlp": "MLP", "lens": "Direct reading"}

Rows = Sequence[Sequence[float | None]]


class PageError(NeuronGuardError):
    """A trace that cannot be written where it was asked for."""


def write_trace_page(path: str | os.PathLike[str], trace: Trace) -> None:
    """Write the page of `trace` to `path`, whole or not at all; PageError where it cannot be written."""
    write_page(path, render_trace(trace), "page", PageError)


def write_trace_json(path: str | os.PathLike[str], trace: Trace) -> None:
    """Write the document itself, as JSON, to `path`; PageError where it cannot be written."""
    write_page(Path(path), trace.model_dump_json(indent=1) + "\n", "JSON file", PageError)


def render_trace(trace: Trace) -> str:
    """The page as HTML text."""
    plots = draw(trace)
    return template("trace.html.jinja").render(
        trace=trace,
        plain_case=trace.cases[0],
        strongest_module=strongest_module(trace),
        lost=lost,
        strongest=by_effect(trace.neurons)[:NEURONS_LISTED],
        names=[column_name(trace, place) for place in range(len(trace.columns))],
        rows=[row_name(trace, place) for place in range(len(trace.columns))],
        views=VIEW_NAMES,
        module_names=MODULE_NAMES,
        excited=excited_by,
        plots=plots,
        data=page_data(trace),
        figures={name: {"traces": plot.traces, "layout": plot.layout} for name, plot in plots.items()},
        plotly=Markup(plotly_script()),  # noqa: S704 - plotly's own source, not text from outside
    )


def strongest_module(trace: Trace) -> ModuleEffect:
    """The attention or MLP that carries most, from the layer on at which Y turns."""
    late = [each for each in trace.modules if each.kind != "layer" and each.layer >= trace.turn.layer]
    return max(late, key=lambda effect: abs(effect.removed))


def by_effect(neurons: Sequence[Neuron]) -> list[Neuron]:
    """Strongest first."""
    return sorted(neurons, key=lambda neuron: -abs(neuron.effect))


def excited_by(trace: Trace, neuron: Neuron, count: int) -> list[str]:
    """The prompt's tokens at which a neuron's activation is largest, with their values, largest first."""
    order = sorted(range(len(neuron.activations)), key=lambda at: -abs(neuron.activations[at]))[:count]
    return [f"{column_name(trace, at)} {number(neuron.activations[at])}" for at in order]


def shares(rows: Rows) -> tuple[list[list[float | None]], float]:
    """Each value's part of the page's colour scale, from -1 to 1, and the largest size; the square root of the part of
    the largest, so that what is a hundredth of it is still seen.
    """
    largest = max((abs(value) for row in rows for value in row if value is not None), default=0.0)
    scale = largest or 1.0
    scaled = [
        [None if value is None else round(math.copysign(math.sqrt(abs(value) / scale), value), 3) for value in row]
        for row in rows
    ]
    return scaled, largest


def page_data(trace: Trace) -> dict[str, Any]:
    """What the page's script shows: names, shares of the colour scale and numbers as they are written."""
    missing = len(trace.columns) - len(trace.lens[0])
    lens: list[list[float | None]] = [[*row, *[None] * missing] for row in trace.lens[1:]]
    views: dict[str, Any] = {view.view: _view(view.effects, [list(row) for row in view.run]) for view in trace.maps}
    views["lens"] = _view(lens, [[value is not None for value in row] for row in lens])
    return {
        "columns": [f"{at + 1} {column_name(trace, at)}" for at in range(len(trace.columns))],
        "other": None if trace.other_tokens is None else [token(text) for text in trace.other_tokens],
        "views": views,
        "neurons": [_layer([each for each in trace.neurons if each.layer == layer]) for layer in range(trace.layers)],
    }


def _view(rows: Rows, run: list[list[bool]]) -> dict[str, Any]:
    scaled, largest = shares(rows)
    return {
        "shares": scaled,
        "texts": [[None if value is None else number(value) for value in row] for row in rows],
        "run": run,
        "largest": number(largest),
    }


def _layer(neurons: Sequence[Neuron]) -> list[dict[str, Any]]:
    """The neurons of one layer; what each does at a token is on one scale for all of them."""
    sizes, _ = shares([neuron.by_column for neuron in neurons])
    return [_neuron(neuron) | {"size": size} for neuron, size in zip(neurons, sizes, strict=True)]


def _neuron(neuron: Neuron) -> dict[str, Any]:
    (activations,), _ = shares([[*neuron.activations, *(neuron.other or ())]])
    count = len(neuron.activations)
    return {
        "neuron": neuron.neuron,
        "name": f"L{neuron.layer}.N{neuron.neuron}",
        "said": f"{lost(neuron.effect)} without it" + ("" if neuron.run else " (linear estimate)"),
        "role": neuron.role,
        "here": [None if value is None else number(value) for value in neuron.by_column],
        "run": neuron.run_by_column,
        "activations": [number(value) for value in neuron.activations],
        "shares": activations[:count],
        "other": None if neuron.other is None else [number(value) for value in neuron.other],
        "otherShares": activations[count:],
        "promoted": _written(neuron.promoted),
        "demoted": _written(neuron.demoted),
    }


def lost(effect: float) -> str:
    """What an effect says of Y: "Y loses 1.89 nats", "Y gains 0.2 nats"."""
    return f"Y {'gains' if effect < 0 else 'loses'} {number(abs(effect))} nats"


def _written(tokens: Sequence[Written]) -> list[list[str]]:
    return [[token(each.token), number(each.logit)] for each in tokens]
