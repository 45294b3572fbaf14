"""What the report says of concentration: few neurons, or spread over everything."""

from calibration.analyses.analysis import Section
from calibration.report.display import estimate, listed, number, percent, plural
from calibration.report.plot_parts import Json, Plot, axis, dashed, layout, points, whiskers
from guard.analyses.concentration import Circuit, Concentration, Overlap

LINES = {
    "best": ("best set", "$one", "circle"),
    "random": ("random set", "$quiet", "x"),
    "complement": ("all but the best", "$two", "square"),
}
SMALL = 0.1  # of the joint effect: less is called no difference


def describe(found: Concentration) -> Section:
    """The section of the report: how many neurons carry it, how they overlap, the gate as a circuit, the curve."""
    (sparse,) = found.claims
    carried = "" if not found.needed else (
        " "
        + listed([f"{percent(need.share)} by {plural(need.neurons, 'neuron')}" for need in found.needed])
        + f" of {found.late_neurons:,}; "
        f"the participation ratio of the {found.screened} strongest is {estimate(found.participation)}."
    )  # fmt: skip
    told = {
        "yes": "Few neurons carry the effect.",
        "no": "The effect is spread: no tenth of the late neurons that was found carries nine tenths of it.",
        "undecided": "Whether few neurons carry the effect is undecided.",
    }[sparse.said]
    paragraphs = [
        "Late neurons are moved to their mean on reference requests, as sets. The sets are chosen on one half of the "
        f"requests and measured on the other. {told} The best set adds {estimate(found.joint)} "
        "nats to a refusal, all late "
        f"neurons {estimate(found.everything)}." + (" Carried:" + carried if carried else ""),
        _overlap_in_words(found.overlap),
    ]
    if found.circuit is not None:
        paragraphs.append(_circuit_in_words(found.circuit))
    return Section("Concentration: few neurons or many", tuple(paragraphs), (_curve(found),))


def _overlap_in_words(overlap: Overlap) -> str:
    together, first, last = overlap.together.value, overlap.first_in.value, overlap.last_in.value
    if together > first + SMALL * abs(together):
        meaning = "They stand in for each other, so that one by one they seem weaker than they are."
    elif together < first - SMALL * abs(together):
        meaning = "Together they take less than one by one: each alone does part of what the others do."
    else:
        meaning = "Their effects add up."
    return (
        f"The best {plural(overlap.size, 'neuron')} together take {estimate(overlap.together)} nats from Y; one by "
        "one, "
        f"alone, they sum to {number(first)}, and each on top of all the others to {number(last)}. {meaning}"
    )


def _circuit_in_words(circuit: Circuit) -> str:
    return (
        "As a circuit, on held-out requests: with all neurons that carry the effect moved but the gate, "
        f"{estimate(circuit.faithfulness)} of it comes back (faithfulness; 1 is all); with the gate alone moved, "
        f"{estimate(circuit.without)} of it is left (completeness; 0 is nothing left)."
    )


def _curve(found: Concentration) -> Plot:
    """Joint effect against the size of the set: the best, a random one, all but the best."""
    sizes = [point.size for point in found.curve]
    traces: list[Json] = []
    for field, (name, colour, symbol) in LINES.items():
        values = [getattr(point, field) for point in found.curve]
        traces.append(
            points(name, sizes, [value.value for value in values], colour, symbol, mode="lines+markers",
                   error_y=whiskers(values, colour), text=[estimate(value) for value in values],
                   hovertemplate="%{x} neurons: %{text} nats<extra>" + name + "</extra>")
        )  # fmt: skip
    joint = found.joint.value
    traces.append(dashed([sizes[0], sizes[-1]], [0.9 * joint, 0.9 * joint], "nine tenths"))
    ticks = [size for place, size in enumerate(sizes) if place % max(1, len(sizes) // 6) == 0]
    x_axis = axis("neurons in the set", type="log", zeroline=False, tickvals=ticks, ticktext=[str(t) for t in ticks])
    best = max(found.curve, key=lambda point: point.best.value)
    label = (
        f"Joint controlled effect by size of the set, in nats: the best take up to {number(best.best.value)} with "
        f"{plural(best.size, 'neuron')} of {found.late_neurons:,}; random ones {number(best.random.value)}."
    )
    rows = tuple(
        (str(point.size), estimate(point.best), estimate(point.random), estimate(point.complement))
        for point in found.curve
    )
    columns = ("neurons", "best, nats", "random, nats", "all but the best, nats")
    shape = layout(360, x_axis, axis("gain of the refusal, nats", zerolinewidth=1.5))
    return Plot("concentration", label, traces, shape, columns, rows)
