"""The report's figures of the verdict and of the layers, and the list of all figures.

Each carries its numbers as a table and a sentence for screen readers, so that nothing is told by a picture alone.
"""

import math
from collections import Counter
from collections.abc import Sequence

from calibration.report.display import KIND_NAMES, TOKEN_GROUP_NAMES, estimate, number, percent
from calibration.report.plot_parts import Json, Plot, axis, dashed, layout, plain, points, whiskers
from calibration.report.plots_of_gate import bounds_tried, neuron_effects, set_sizes
from guard.spec.edit_spec import EditSpec, MediatorEffect

MOST_CELL_LABELS = 8
MOST_TICKS = 12
STEP = 2.5  # percent: random gates closer than this are stacked
PERCENT_TICKS: Json = {
    "tickvals": [0, 25, 50, 75, 100],
    "ticktext": ["0%", "25%", "50%", "75%", "100%"],
    "zeroline": False,
}
MEDIATOR_COLUMNS = ("layer", "mediator", "tokens", "NIE, nats", "TNIE, nats")


def draw(spec: EditSpec) -> dict[str, Plot]:
    """Every figure that the spec has numbers for, by name; one without numbers is left out."""
    figures = (
        random_gates(spec), effect_by_layer(spec), attention_against_mlp(spec), token_groups(spec),
        neuron_effects(spec), set_sizes(spec), bounds_tried(spec),
    )  # fmt: skip
    return {figure.name: figure for figure in figures if figure is not None}


def random_gates(spec: EditSpec) -> Plot | None:
    """A dot for each matched random gate at the harmful compliance under it; this gate, no guard and the margin."""
    held_out = spec.evidence.held_out
    shares, compliance = sorted(held_out.random_gates), held_out.harmful_compliance
    if not shares:
        return None
    stacked: Counter[float] = Counter()
    x, y = [], []
    for share in shares:
        place = STEP * round(100 * share / STEP)
        x.append(place)
        y.append(stacked[place] + 0.5)
        stacked[place] += 1
    tallest = max(stacked.values())
    top, lane = tallest + 0.5, -max(1.0, 0.16 * tallest)
    size = max(3.0, min(8.0, 150 / (top - 2 * lane)))
    off, on = percent(compliance.off.value), percent(compliance.on.value)
    required = 100 * max(0.0, compliance.off.value - spec.evidence.verdict.margin)
    traces = [
        points("a random gate", x, y, "$quiet", marker={"size": size}, text=[percent(share) for share in shares],
               hovertemplate="%{text}<extra></extra>"),
        points("this gate", [100 * compliance.on.value], [lane], "$on", "diamond", marker={"size": 13},
               error_x=whiskers([compliance.on], "$on", 100.0), hovertemplate=on + "<extra>this gate</extra>"),
        dashed([100 * compliance.off.value] * 2, [2 * lane, top], "guard off", "$off", "solid"),
        dashed([required] * 2, [2 * lane, top], "must fall below"),
    ]  # fmt: skip
    label = (
        f"Harmful compliance under each of {len(shares)} random gates, from {percent(shares[0])} to "
        f"{percent(shares[-1])}; under this gate {on}, with no guard {off}."
    )
    x_axis = axis("harmful compliance", range=[-4, 104], **PERCENT_TICKS)
    y_axis = axis("", visible=False, range=[2 * lane, top])
    rows = [(f"random gate {place}", percent(share)) for place, share in enumerate(held_out.random_gates, 1)]
    rows = [("guard off", off), ("this gate", on), *rows]
    return Plot("random-gates", label, traces, layout(300, x_axis, y_axis), ("gate", "harmful compliance"), tuple(rows))


def effect_by_layer(spec: EditSpec) -> Plot | None:
    """NIE and TNIE of each layer's output, against the total effect."""
    mediators = _main_group(spec, "layer")
    if not mediators:
        return None
    layers = [mediator.layer for mediator in mediators]
    total = spec.evidence.total_effect.value
    traces = []
    for name, colour, symbol, shift, values in (
        ("NIE", "$one", "circle", -0.07, [m.natural_indirect_effect for m in mediators]),
        ("TNIE", "$two", "square", 0.07, [m.total_natural_indirect_effect for m in mediators]),
    ):
        where, heights = [layer + shift for layer in layers], [value.value for value in values]
        traces.append(
            points(name, where, heights, colour, symbol, mode="lines+markers", error_y=whiskers(values, colour),
                   text=[estimate(value) for value in values], customdata=layers,
                   hovertemplate="layer %{customdata}: %{text}<extra>" + name + "</extra>")
        )  # fmt: skip
    traces.append(dashed([layers[0] - 0.5, layers[-1] + 0.5], [total, total], "total effect"))
    strongest = max(mediators, key=lambda m: m.natural_indirect_effect.value)
    label = (
        f"Indirect effects of {len(mediators)} layer outputs in nats; the largest NIE is "
        f"{number(strongest.natural_indirect_effect.value)} at layer {strongest.layer}; total effect {number(total)}."
    )
    shape = layout(340, _layer_axis(layers), axis("effect, nats"), shapes=_guarded(spec))
    return Plot("effect-by-layer", label, traces, shape, MEDIATOR_COLUMNS, _mediator_rows(mediators))


def attention_against_mlp(spec: EditSpec) -> Plot | None:
    """TNIE and NIE of each layer's attention and MLP, side by side."""
    mediators = _main_group(spec, "attention", "mlp")
    if not mediators:
        return None
    traces: list[Json] = []
    for kind, colour in (("attention", "$three"), ("mlp", "$one")):
        own = [mediator for mediator in mediators if mediator.kind == kind]
        for y, name, values in (
            ("y", "TNIE", [m.total_natural_indirect_effect for m in own]),
            ("y2", "NIE", [m.natural_indirect_effect for m in own]),
        ):
            traces.append(
                {"type": "bar", "name": KIND_NAMES[kind], "legendgroup": kind, "showlegend": y == "y", "yaxis": y,
                 "offsetgroup": kind, "x": [m.layer for m in own], "y": [value.value for value in values],
                 "error_y": whiskers(values, "$text"), "marker": {"color": colour, "line": {"width": 0}},
                 "text": [estimate(value) for value in values], "textposition": "none",
                 "hovertemplate": "layer %{x}: %{text}<extra>" + KIND_NAMES[kind] + ", " + name + "</extra>"}
            )  # fmt: skip
    strongest = max(mediators, key=lambda m: m.total_natural_indirect_effect.value)
    label = (
        "Indirect effects of attention and MLP by layer, in nats; the largest TNIE is that of layer "
        f"{strongest.layer}'s {KIND_NAMES[strongest.kind]}, {number(strongest.total_natural_indirect_effect.value)}."
    )
    x_axis = _layer_axis(sorted({mediator.layer for mediator in mediators})) | {"anchor": "y2"}
    upper, lower = axis("TNIE, nats", domain=[0.54, 1]), axis("NIE, nats", domain=[0, 0.46])
    shape = layout(440, x_axis, upper, yaxis2=lower, barmode="group", bargap=0.35, shapes=_guarded(spec))
    return Plot("attention-against-mlp", label, traces, shape, MEDIATOR_COLUMNS, _mediator_rows(mediators))


def token_groups(spec: EditSpec) -> Plot | None:
    """TNIE by layer and token group, for the first kind of mediator that was patched at several groups."""
    for kind in ("layer", "mlp", "attention"):
        mediators = [mediator for mediator in spec.evidence.mediators if mediator.kind == kind]
        groups = _groups(mediators)
        if len(groups) > 1:
            break
    else:
        return None
    layers = sorted({mediator.layer for mediator in mediators})
    effects = {(m.tokens, m.layer): m.total_natural_indirect_effect.value for m in mediators}
    names = [plain(TOKEN_GROUP_NAMES.get(group, group)) for group in groups]
    largest = max(abs(effect) for effect in effects.values()) or 1.0
    heat: Json = {
        "type": "heatmap", "x": layers, "y": [name.replace(" ", "<br>", 1) for name in names], "xgap": 3, "ygap": 3,
        "z": [[effects.get((group, layer)) for layer in layers] for group in groups], "zmin": -largest, "zmax": largest,
        "colorscale": [[0, "$two"], [0.5, "$empty"], [1, "$one"]], "showscale": False, "hoverongaps": False,
        "customdata": [[name] * len(layers) for name in names],
        "hovertemplate": "layer %{x}, %{customdata}: %{z:.3g} nats<extra></extra>",
    }  # fmt: skip
    if len(layers) <= MOST_CELL_LABELS:
        heat |= {
            "text": [[_cell(value) for value in row] for row in heat["z"]],
            "texttemplate": "%{text}",
            "textfont": {"size": 12},
        }
    top = max(effects, key=lambda place: effects[place])
    label = (
        f"TNIE of each {KIND_NAMES[kind]} by token group, in nats; the largest is {number(effects[top])} "
        f"at layer {top[1]}, {TOKEN_GROUP_NAMES.get(top[0], top[0])}."
    )
    shape = layout(90 + 50 * len(groups), _layer_axis(layers), axis("", showgrid=False, autorange="reversed"))
    return Plot("token-groups", label, [heat], shape, MEDIATOR_COLUMNS, _mediator_rows(mediators))


def _cell(effect: float | None) -> str:
    return "" if effect is None else f"{round(effect, 1) + 0.0:.1f}".replace("-", "−")


def _groups(mediators: Sequence[MediatorEffect]) -> list[str]:
    return list(dict.fromkeys(mediator.tokens for mediator in mediators))


def _main_group(spec: EditSpec, *kinds: str) -> list[MediatorEffect]:
    """The mediators of `kinds` at the tokens that the edit covers, or at the first group there is, by layer."""
    chosen = [mediator for mediator in spec.evidence.mediators if mediator.kind in kinds]
    groups = _groups(chosen)
    main = "edited" if "edited" in groups else next(iter(groups), "")
    return sorted((m for m in chosen if m.tokens == main), key=lambda m: (m.layer, m.kind))


def _mediator_rows(mediators: Sequence[MediatorEffect]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (str(m.layer), KIND_NAMES[m.kind], TOKEN_GROUP_NAMES.get(m.tokens, m.tokens),
         estimate(m.natural_indirect_effect), estimate(m.total_natural_indirect_effect))
        for m in sorted(mediators, key=lambda m: (m.layer, m.kind))
    )  # fmt: skip


def _layer_axis(layers: Sequence[int]) -> Json:
    """A ticked axis over `layers` (ascending), with at most `MOST_TICKS` labels."""
    ticks = list(layers)[:: max(1, math.ceil(len(layers) / MOST_TICKS))]
    return axis(
        "layer", range=[layers[0] - 0.55, layers[-1] + 0.55], tickvals=ticks,
        ticktext=[str(layer) for layer in ticks], zeroline=False, showgrid=False,
    )  # fmt: skip


def _guarded(spec: EditSpec) -> list[Json]:
    """A shade behind each guarded layer."""
    shade = {"type": "rect", "yref": "paper", "y0": 0, "y1": 1, "fillcolor": "$shade", "line": {"width": 0}}
    return [
        shade | {"layer": "below", "xref": "x", "x0": edit.layer - 0.45, "x1": edit.layer + 0.45}
        for edit in spec.layers
    ]  # fmt: skip
