"""The report's figures of the gate: its neurons, its size, and the bounds that were tried for it.

A gate may have hundreds of neurons; only the strongest are drawn, and the figure says so, while its table has all.
"""

import math
from collections.abc import Sequence

from calibration.report.display import FAMILY_NAMES, estimate, number, plural, probability, setting
from calibration.report.plot_parts import Json, Plot, axis, dashed, layout, plain, points, whiskers
from guard.spec.edit_spec import EditSpec, NeuronEvidence, Trial

MOST_NEURONS = 40
SMALLEST_KL = 1e-8
WIDE_RANGE = 50
MOST_DECADES = 5
MOST_TICKS = 8
COLOURS = ("$one", "$two", "$three", "$four", "$five", "$six")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "hexagram")


def neuron_effects(spec: EditSpec) -> Plot | None:
    """First-in and last-in controlled effect of each neuron with intervals, strongest first, adjusted p at the side."""
    every = sorted(spec.evidence.neurons, key=_weight, reverse=True)
    if not every:
        return None
    drawn = every[:MOST_NEURONS]
    traces: list[Json] = []
    for name, colour, symbol, shift, values in (
        ("first in", "$one", "circle", -0.14, [evidence.first_in for evidence in drawn]),
        ("last in", "$two", "square", 0.14, [evidence.last_in for evidence in drawn]),
    ):
        heights = [place + shift for place in range(len(drawn))]
        traces.append(
            points(name, [value.value for value in values], heights, colour, symbol, error_x=whiskers(values, colour),
                   text=[estimate(value) for value in values],
                   customdata=[f"layer {evidence.layer}, neuron {evidence.neuron}" for evidence in drawn],
                   hovertemplate="%{customdata}<br>%{text} nats<extra>" + name + "</extra>")
        )  # fmt: skip
    y_axis = axis(
        "", range=[len(drawn) - 0.4, -0.6], tickvals=list(range(len(drawn))), zeroline=False,
        ticktext=[f"L{evidence.layer} · {evidence.neuron}" for evidence in drawn],
    )  # fmt: skip
    at_side: Json = {"xref": "paper", "x": 1, "xanchor": "left", "xshift": 8, "showarrow": False}
    p_values = [
        at_side | {"y": place, "text": plain(f"p {probability(e.p_value)}"), "font": {"size": 11, "color": "$muted"}}
        for place, e in enumerate(drawn)
    ]
    strongest = every[0]
    label = (
        f"Controlled effect of {plural(len(drawn), 'neuron')} in nats, first in and last in; the strongest is neuron "
        f"{strongest.neuron} of layer {strongest.layer}: {number(strongest.first_in.value)} and "
        f"{number(strongest.last_in.value)}."
    )
    shape = layout(
        110 + 28 * len(drawn), axis("controlled effect, nats", rangemode="tozero", zerolinewidth=1.5), y_axis,
        annotations=p_values, margin={"l": 48, "r": 100, "t": 16, "b": 44},
    )  # fmt: skip
    rows = tuple(
        (str(e.layer), str(e.neuron), estimate(e.first_in), estimate(e.last_in), number(e.p_value)) for e in every
    )
    columns = ("layer", "neuron", "first in, nats", "last in, nats", "adjusted p")
    note = f"The strongest {MOST_NEURONS} of {len(every)} neurons are drawn." if len(every) > MOST_NEURONS else ""
    return Plot("neuron-effects", label, traces, shape, columns, rows, note)


def set_sizes(spec: EditSpec) -> Plot | None:
    """Joint controlled effect of the best set of each size, against the total effect; the gate's own size is marked."""
    steps = sorted(spec.evidence.set_sizes, key=lambda step: step.size)
    if not steps:
        return None
    total, size = spec.evidence.total_effect.value, sum(len(edit.neurons) for edit in spec.layers)
    sizes, effects = [step.size for step in steps], [step.effect for step in steps]
    traces = [
        points("best set of this size", sizes, effects, "$one", mode="lines+markers",
               hovertemplate="%{x} neurons: %{y:.3g} nats<extra></extra>"),
        dashed([sizes[0], sizes[-1]], [total, total], "total effect"),
    ]  # fmt: skip
    if size in sizes:
        ring = {"size": 16, "line": {"width": 2.5}}
        own = [effects[sizes.index(size)]]
        traces.append(points("this gate", [size], own, "$on", "circle-open", marker=ring, hoverinfo="skip"))
    x_axis = axis("neurons in the set", zeroline=False)
    if sizes[0] > 0 and sizes[-1] / sizes[0] > WIDE_RANGE:
        ticks = [*sizes[: -1 : -(-len(sizes) // MOST_TICKS)], sizes[-1]]
        x_axis |= {"type": "log", "tickvals": ticks, "ticktext": [str(tick) for tick in ticks]}
    elif len(set(sizes)) == 1:
        x_axis |= {"range": [sizes[0] - 1, sizes[0] + 1], "tickvals": sizes[:1]}
    else:
        x_axis |= {"tickformat": "d", "dtick": max(1, -(-sizes[-1] // 10))}
    best = max(steps, key=lambda step: step.effect)
    label = (
        f"Joint effect of the best set by size, up to {number(best.effect)} nats with {plural(best.size, 'neuron')}; "
        f"the total effect is {number(total)}."
    )
    rows = tuple((str(step.size), number(step.effect)) for step in steps)
    shape = layout(320, x_axis, axis("controlled effect, nats", rangemode="tozero"))
    return Plot("set-sizes", label, traces, shape, ("neurons", "controlled effect, nats"), rows)


def bounds_tried(spec: EditSpec) -> Plot | None:
    """Each trial of the search at its benign KL and the outcome on harmful requests, by family; the chosen ringed."""
    trials = spec.evidence.trials
    if not trials:
        return None
    traces: list[Json] = []
    for place, family in enumerate(dict.fromkeys(trial.family for trial in trials)):
        own = [trial for trial in trials if trial.family == family]
        colour, symbol = COLOURS[place % len(COLOURS)], SYMBOLS[place % len(SYMBOLS)]
        traces.append(
            points(plain(FAMILY_NAMES.get(family, family)), _drawn_kl(own), [trial.harmful_outcome for trial in own],
                   colour, symbol, marker={"size": 9, "opacity": 0.85}, text=[_trial_in_words(trial) for trial in own],
                   hovertemplate="%{text}<extra></extra>")
        )  # fmt: skip
    chosen = [trial for trial in trials if trial.chosen]
    label = f"{plural(len(trials), 'trial')} of bounds by benign KL and mean outcome on harmful requests"
    if chosen:
        ring = {"size": 18, "line": {"width": 2}}
        heights = [trial.harmful_outcome for trial in chosen]
        traces.append(
            points("chosen", _drawn_kl(chosen), heights, "$text", "circle-open", marker=ring, hoverinfo="skip")
        )
        label += f"; chosen: KL {number(chosen[0].benign_kl)} nats, outcome {number(chosen[0].harmful_outcome)} nats"
    costs = _drawn_kl(trials)
    decades = math.log10(max(costs) / min(costs))
    x_axis = axis(
        "benign KL, nats", type="log", exponentformat="power", dtick=1 if decades < MOST_DECADES else 2, zeroline=False
    )
    shape = layout(400, x_axis, axis("mean Y on harmful requests, nats", zeroline=True, zerolinewidth=1.5))
    rows = tuple(
        (FAMILY_NAMES.get(t.family, t.family), setting(t.strength), str(t.size), number(t.benign_kl),
         number(t.harmful_outcome), "chosen" if t.chosen else "")
        for t in trials
    )  # fmt: skip
    columns = ("family", "strength", "neurons", "benign KL, nats", "harmful Y, nats", "")
    unmoved = any(trial.benign_kl < SMALLEST_KL for trial in trials)
    note = "Trials without a measurable change of benign outputs are drawn at the left edge." if unmoved else ""
    return Plot("bounds-tried", label + ".", traces, shape, columns, rows, note)


def _weight(evidence: NeuronEvidence) -> float:
    """The weight of a neuron: the mean of its effect first in and last in, whatever the sign."""
    return abs(evidence.first_in.value + evidence.last_in.value) / 2


def _drawn_kl(trials: Sequence[Trial]) -> list[float]:
    """KL for a logarithmic axis: zero, or less by rounding, is drawn at the smallest that is told apart from it."""
    return [max(trial.benign_kl, SMALLEST_KL) for trial in trials]


def _trial_in_words(trial: Trial) -> str:
    return (
        f"strength {setting(trial.strength)}, {plural(trial.size, 'neuron')}<br>"
        f"benign KL {number(trial.benign_kl)} nats<br>harmful Y {number(trial.harmful_outcome)} nats"
    )
