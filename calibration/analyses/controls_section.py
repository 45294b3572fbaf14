"""What the report says of the controls for position and size."""

from calibration.analyses.analysis import Section
from calibration.report.display import KIND_NAMES, estimate, listed, number
from calibration.report.plot_parts import Json, Plot, axis, layout, points, whiskers
from guard.analyses.controls import ControlledModule, ControlledUnits, Controls
from guard.spec.measures import Estimate

MOST_TICKS = 12
CONTROLS = {
    "effect": ("as patched", "$one", "circle"),
    "equal_norm": ("at equal norm", "$two", "square"),
    "random_direction": ("random direction", "$quiet", "x"),
}


def describe(controls: Controls) -> Section:
    """The section of the report: what was controlled for, the units that the claims compare, every module."""
    said = [f"“{claim.statement}”: {claim.said}" for claim in controls.claims]
    smaller = [f"{ground.name}: {estimate(ground.estimate)}" for ground in controls.at_smaller_norm]
    paragraphs = [
        "Late MLPs might win only because of where they sit or how much they write. So the best units of the earlier "
        "and of the later half of the layers, and of attention and MLPs, equally many, are moved to their mean on "
        "reference requests. What that does for the log-probability of a refusal is measured as it is, against random "
        "directions of the same norm at the same place, scaled up to the norm of the one that writes more, and per "
        "unit of what changes in all log-probabilities, scaled up until that is as much on both sides. Units are "
        "chosen on one half of the requests and measured on the other. A claim holds only if it survives every "
        f"control. {listed(said)}. What late attention tells the MLPs counts for attention, so that MLPs may be denied "
        "what they decide.",
        f"Scaled down to the norm of the one that writes less, which is no ground: {listed(smaller)}.",
        "The lower figure has every layer's attention and MLP, patched at the tokens that line up (mean of NIE and "
        "TNIE), with the same patch at the norm of the middle one, and random directions of its own norm. Early "
        "modules show there wherever the gate is, since later ones read of the request what they write.",
    ]
    plots = (_units(controls.groups), _modules(controls.modules))
    return Section("Controls for position and size", tuple(paragraphs), plots)


def _units(groups: tuple[ControlledUnits, ...]) -> Plot:
    """The controlled effect of each group's best units, of random units, and of random directions."""
    traces: list[Json] = []
    shown = (("best units", "$one", "effect"), ("random units", "$two", "random_units"),
             ("random direction", "$quiet", "random_direction"))  # fmt: skip
    for name, colour, field in shown:
        values: list[Estimate] = [getattr(group, field) for group in groups]
        traces.append(
            {"type": "bar", "name": name, "x": [group.group for group in groups], "y": [v.value for v in values],
             "error_y": whiskers(values, "$text"), "marker": {"color": colour, "line": {"width": 0}},
             "text": [estimate(value) for value in values], "textposition": "none",
             "hovertemplate": "%{x}: %{text} nats<extra>" + name + "</extra>"}
        )  # fmt: skip
    strongest = max(groups, key=lambda group: group.effect.value)
    label = (
        f"What moving equally many units does for a refusal, for {len(groups)} groups, in nats; the largest is that of "
        f"{strongest.group}, {number(strongest.effect.value)}."
    )
    columns = ("units", "moved", "of", "norm written", "logit impact", "effect, nats", "random units, nats",
               "random direction, nats", "nats per unit of impact")  # fmt: skip
    rows = tuple(
        (group.group, str(group.chosen), str(group.available), number(group.norm), number(group.impact),
         estimate(group.effect), estimate(group.random_units), estimate(group.random_direction),
         estimate(group.per_impact))
        for group in groups
    )  # fmt: skip
    x_axis = axis("", showgrid=False, tickvals=list(range(len(groups))),
                  ticktext=[group.group.replace(" ", "<br>") for group in groups])  # fmt: skip
    shape = layout(340, x_axis, axis("gain of the refusal, nats"), barmode="group", bargap=0.3)
    return Plot("controls-units", label, traces, shape, columns, rows)


def _modules(modules: tuple[ControlledModule, ...]) -> Plot:
    """Every attention (below) and MLP (above) by layer, with its controls; layer outputs are in the table alone."""
    traces: list[Json] = []
    for kind, y in (("mlp", "y"), ("attention", "y2")):
        own = [module for module in modules if module.kind == kind]
        for place, (field, (name, colour, symbol)) in enumerate(CONTROLS.items()):
            values: list[Estimate] = [getattr(module, field) for module in own]
            traces.append(
                points(name, [module.layer + 0.16 * (place - 1) for module in own], [v.value for v in values], colour,
                       symbol, error_y=whiskers(values, colour), yaxis=y, legendgroup=name, showlegend=y == "y",
                       text=[estimate(value) for value in values], customdata=[module.layer for module in own],
                       hovertemplate="layer %{customdata}: %{text}<extra>" + f"{KIND_NAMES[kind]}, {name}</extra>")
            )  # fmt: skip
    layers = sorted({module.layer for module in modules})
    ticks = layers[:: -(-len(layers) // MOST_TICKS)]
    x_axis = axis("layer", range=[layers[0] - 0.55, layers[-1] + 0.55], tickvals=ticks, zeroline=False, showgrid=False,
                  ticktext=[str(layer) for layer in ticks], anchor="y2")  # fmt: skip
    lower = axis("attention, nats", domain=[0, 0.46])
    shape = layout(460, x_axis, axis("MLP, nats", domain=[0.54, 1]), yaxis2=lower)
    strongest = max((m for m in modules if m.kind != "layer"), key=lambda module: module.equal_norm.value)
    label = (
        f"Effects of every layer's attention and MLP with their controls, in nats; at equal norm the largest is that "
        f"of layer {strongest.layer}'s {KIND_NAMES[strongest.kind]}, {number(strongest.equal_norm.value)}."
    )
    columns = ("layer", "mediator", "norm", "logit impact", "effect, nats", "at equal norm, nats",
               "random direction, nats", "nats per unit of impact")  # fmt: skip
    rows = tuple(
        (str(m.layer), KIND_NAMES[m.kind], number(m.norm), number(m.impact), estimate(m.effect),
         estimate(m.equal_norm), estimate(m.random_direction), estimate(m.per_impact))
        for m in modules
    )  # fmt: skip
    return Plot("controls-modules", label, traces, shape, columns, rows)
