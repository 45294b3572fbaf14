"""The trace's figures: Y by depth, what modules carry, what the trigger reads."""

from calibration.report.display import number, token
from calibration.report.plot_parts import Json, Plot, axis, dashed, layout, plain, points
from calibration.trace.document import ModuleEffect, Trace

CASE_COLOURS = {"plain": "$one", "guard on": "$on", "set": "$two", "set, guard on": "$four"}
CASE_SYMBOLS = {"plain": "circle", "guard on": "diamond", "set": "square", "set, guard on": "triangle-up"}
MODULE_NAMES = {"embedding": "embedding", "attention": "attention", "mlp": "MLP"}
MOST_TICKS = 12


def draw(trace: Trace) -> dict[str, Plot]:
    """Every figure that the trace has numbers for, by name."""
    figures = (by_depth(trace), by_module(trace), by_token(trace))
    return {figure.name: figure for figure in figures if figure is not None}


def _layer_ticks(layers: int, places: list[float]) -> Json:
    """Ticks at some of the layers; `places` is where each is."""
    stride = -(-layers // MOST_TICKS)
    shown = range(0, layers, stride)
    return {"tickmode": "array", "tickvals": [places[layer] for layer in shown], "ticktext": [str(at) for at in shown]}


def by_depth(trace: Trace) -> Plot:
    """Y read off the residual stream after each module, for each case."""
    x = list(range(len(trace.steps)))
    names = [_step_name(step.layer, step.module) for step in trace.steps]
    traces: list[Json] = [
        points(case.name, x, case.readings, CASE_COLOURS[case.name], CASE_SYMBOLS[case.name], mode="lines+markers",
               marker={"size": 6},
               text=[f"{name}: {number(value)}" for name, value in zip(names, case.readings, strict=True)],
               hovertemplate="%{text}<extra>" + case.name + "</extra>")
        for case in trace.cases
    ]  # fmt: skip
    ticks = _layer_ticks(trace.layers, [2.0 * layer + 2 for layer in range(trace.layers)])
    return Plot(
        name="by-depth",
        label="Y read off the residual stream after each attention and MLP: the numbers are in the table below.",
        traces=traces,
        layout=layout(
            340,
            axis("after layer", zeroline=False, **ticks),
            axis("Y, nats", zeroline=True),
            showlegend=len(traces) > 1,
        ),
        columns=("after", *(f"{case.name}, nats" for case in trace.cases)),
        rows=tuple((name, *(number(case.readings[place]) for case in trace.cases)) for place, name in enumerate(names)),
    )


def by_module(trace: Trace) -> Plot:
    """What Y loses without each attention and each MLP; with another prompt, what each brings into its run."""
    traces: list[Json] = []
    shown = (("attention", "attention", "$two"), ("mlp", "MLP", "$one"))
    for kind, name, colour in shown:
        effects = [effect for effect in trace.modules if effect.kind == kind]
        traces.append({
            "type": "bar", "name": name, "x": [effect.layer for effect in effects],
            "y": [effect.removed for effect in effects], "marker": {"color": colour},
            "text": [_effect_text(effect) for effect in effects], "textposition": "none",
            "hovertemplate": "layer %{x}: %{text}<extra>" + name + "</extra>",
        })  # fmt: skip
    rows = tuple(
        (
            str(effect.layer),
            {"layer": "layer output"}.get(effect.kind, MODULE_NAMES.get(effect.kind, effect.kind)),
            number(effect.removed),
            *(() if effect.brought is None else (number(effect.brought),)),
        )
        for effect in trace.modules
    )
    compared = trace.reference is not None
    return Plot(
        name="by-module",
        label="What Y loses without each attention and each MLP: the numbers are in the table below.",
        traces=traces,
        layout=layout(
            320,
            axis("layer", **_layer_ticks(trace.layers, [float(layer) for layer in range(trace.layers)])),
            axis("TNIE, nats" if compared else "Y lost, nats"),
            barmode="group",
        ),
        columns=("layer", "mediator", "TNIE, nats", "NIE, nats") if compared else ("layer", "mediator", "Y lost, nats"),
        rows=rows,
    )


def by_token(trace: Trace) -> Plot | None:
    """What the trigger reads at each token, against its threshold; None without a trigger."""
    guard = trace.guard
    if guard is None or guard.scores is None or guard.threshold is None:
        return None
    x = list(range(1, len(guard.scores) + 1))
    names = [f"{at} {column_name(trace, at - 1)}" for at in x]
    traces = []
    for name, wanted, colour, symbol in (
        ("active", True, "$off", "diamond"),
        ("not active", False, "$quiet", "circle"),
    ):
        chosen = [place for place, active in enumerate(guard.active) if active is wanted]
        if chosen:
            traces.append(
                points(name, [x[at] for at in chosen], [guard.scores[at] for at in chosen], colour, symbol,
                       text=[plain(f"{names[at]}: {number(guard.scores[at])}") for at in chosen],
                       hovertemplate="%{text}<extra>" + name + "</extra>")
            )  # fmt: skip
    traces.append(dashed([0.5, len(x) + 0.5], [guard.threshold] * 2, "threshold"))
    return Plot(
        name="by-token",
        label="What the trigger reads at each token, against its threshold: the numbers are in the table below.",
        traces=traces,
        layout=layout(300, axis("token", zeroline=False), axis("trigger's read-out", zeroline=False)),
        columns=("token", "read-out", "edit", "neurons changed", "Y lost by the edit here alone, nats"),
        rows=tuple(
            (
                name,
                number(guard.scores[place]),
                "active" if guard.active[place] else "not active",
                str(sum(layer.changed[place] for layer in guard.layers)),
                "nothing to change" if (effect := guard.effects[place]) is None else number(effect),
            )
            for place, name in enumerate(names)
        ),
    )


def column_name(trace: Trace, place: int) -> str:
    """What a column is called: its token, or the step of the reply with those tokens of it that may be shown."""
    column = trace.columns[place]
    if column.part == "prompt":
        return token(column.text or "")
    step = place - sum(each.part == "prompt" for each in trace.columns) + 1
    if column.text is None and column.refusal is None:
        return f"reply {step}"
    return f"reply {step}: {row_name(trace, place)}"


def row_name(trace: Trace, place: int) -> str:
    """A column in few letters: its token, or what may be shown of the complying and of the refusing reply."""
    column = trace.columns[place]
    if column.part == "prompt":
        return token(column.text or "")
    return " | ".join("…" if text is None else token(text) for text in (column.text, column.refusal))


def _step_name(layer: int, module: str) -> str:
    return "embedding" if module == "embedding" else f"layer {layer}, {MODULE_NAMES[module]}"


def _effect_text(effect: ModuleEffect) -> str:
    brought = "" if effect.brought is None else f", brings {number(effect.brought)}"
    return f"Y loses {number(effect.removed)}{brought}"
