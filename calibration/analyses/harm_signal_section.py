"""The report's section on the early harm signal."""

from collections.abc import Sequence

from calibration.analyses.analysis import Section
from calibration.report.display import TOKEN_GROUP_NAMES, estimate, number, percent, setting, share
from calibration.report.plot_parts import Json, Plot, axis, dashed, layout, points, whiskers
from guard.analyses.harm_signal import READS_OUT, AgainstRandom, Disruption, EditOutcome, Exchange, HarmSignal
from guard.spec.measures import Estimate

GROUP_NAMES = TOKEN_GROUP_NAMES | {"request": "request"}
FROZEN_NAMES = {
    "nothing": "nothing frozen",
    "attention": "attention frozen",
    "mlp": "MLPs frozen",
    "both": "both frozen",
}
DIRECTION_NAMES = {"probe": "the layer's probe", "read": "what the gate reads"}
EXCHANGE_COLUMNS = (
    "layer", "direction", "AUROC", "opens the gate", "random", "closes the gate", "random", "Y gained, nats", "random",
    "Y lost, nats", "random",
)  # fmt: skip
EDIT_COLUMNS = ("edit", "harmful compliance", "garbled", "Y on harmful, nats", "benign refusal", "benign KL, nats")


def describe(measured: HarmSignal) -> Section:
    """The section, its figures with their numbers."""
    plots = (readouts(measured), exchanges(measured), paths(measured), edits(measured))
    return Section("Early harm signal and its path", paragraphs(measured), plots)


def paragraphs(measured: HarmSignal) -> tuple[str, ...]:
    """What was found, in sentences."""
    signal = measured.signal
    if measured.reads_out is None:
        told = f"No probe before the gate tells harm at an AUROC of {READS_OUT} at the last prompt token."
    else:
        auroc = next(r.auroc for r in measured.readouts if (r.layer, r.tokens) == (measured.reads_out, "last_prompt"))
        told = (
            f"Harm can first be read from the residual stream after layer {measured.reads_out}: a probe of the last "
            f"prompt token has an AUROC of {estimate(auroc)} on held-out requests."
        )
    if measured.there:
        where = f"What the gate reads of the stream tells harm from layer {measured.layer} on"
    else:
        where = "What the gate reads of the stream tells harm in no layer before it"
    caused = (
        f"{where}: AUROC {estimate(signal.auroc)} after layer {measured.layer}. Taking that component from harmful "
        f"runs opens the gate in benign ones by {percent_of(signal.gate_into_reference)}, and taking it "
        f"from benign runs closes it in harmful ones by {percent_of(signal.gate_into_harmful)}."
    )
    return told, caused, path_sentence(measured), edit_sentence(measured.clamp, measured.disruption)


def percent_of(against: AgainstRandom) -> str:
    """An effect on the gate's opening, as a share of harm's own, with that of random directions."""
    return f"{share(against.effect)} of what harm does (random directions of the same norm: {share(against.random)})"


def path_sentence(measured: HarmSignal) -> str:
    """How much of the signal's effect on the gate is left when attention, MLPs or both are frozen."""
    left = {path.frozen: path.gate_into_reference.value for path in measured.paths}
    whole = left["nothing"]
    if abs(whole) < 1e-6:
        return "The exchange does not open the gate, so there is no path to follow."
    shares = {frozen: f"{100 * value / whole:.0f}%".replace("-", "−") for frozen, value in left.items()}
    return (
        f"On the way to the gate {shares['attention']} of its opening is left with all later attention outputs frozen, "
        f"{shares['mlp']} with all later MLP neurons outside the gate frozen, and {shares['both']} with both, which is "
        "what goes straight through the residual stream and the gate's own neurons."
    )


def edit_sentence(clamp: EditOutcome, disruption: Disruption | None) -> str:
    """The early edit beside the late one."""
    if disruption is None:
        return "No way of disrupting the signal that was tried lowers harm on validation requests: none was measured."
    early = disruption.outcome
    return (
        f"As an edit of its own, what the component along {DIRECTION_NAMES[disruption.direction]} exceeds benign "
        f"requests by after layer {disruption.layer} is multiplied by {setting(disruption.factor)}: harmful compliance "
        f"is {percent(early.harmful_compliance.value)} at a benign KL of {number(early.benign_kl.value)} nats. The "
        f"gate's clamp leaves {percent(clamp.harmful_compliance.value)} at {number(clamp.benign_kl.value)} nats."
    )


def _layers_axis(layers: Sequence[int]) -> Json:
    ticks = list(layers)[:: max(1, -(-len(layers) // 12))]
    return axis("after layer", tickvals=ticks, ticktext=[str(tick) for tick in ticks], zeroline=False, showgrid=False)


def _line(
    name: str, layers: Sequence[int], values: Sequence[Estimate], colour: str, symbol: str, **more: object
) -> Json:
    return points(
        name, layers, [value.value for value in values], colour, symbol, mode="lines+markers",
        error_y=whiskers(values, colour), text=[estimate(value) for value in values],
        hovertemplate="layer %{x}: %{text}<extra>" + name + "</extra>", **more,
    )  # fmt: skip


def readouts(measured: HarmSignal) -> Plot:
    """AUROC by layer, of the probes at each token group and of what the gate reads."""
    traces = []
    styles = (("request", "$three", "circle"), ("tail", "$quiet", "square"), ("last_prompt", "$one", "diamond"),
              ("response", "$muted", "x"))  # fmt: skip
    layers = sorted({readout.layer for readout in measured.readouts})
    for group, colour, symbol in styles:
        own = [readout.auroc for readout in measured.readouts if readout.tokens == group]
        traces.append(_line(GROUP_NAMES[group], layers, own, colour, symbol))
    read = [exchange.auroc for exchange in measured.exchanged("read")]
    traces.append(_line("what the gate reads", layers, read, "$two", "star"))
    traces.append(dashed([layers[0] - 0.3, layers[-1] + 0.3], [READS_OUT] * 2, f"{READS_OUT}"))
    label = (
        f"AUROC of probes of harm by layer and token group on held-out requests; at the last prompt token {READS_OUT} "
        + ("is not reached." if measured.reads_out is None else f"is reached after layer {measured.reads_out}.")
    )
    rows = [(str(r.layer), f"probe, {GROUP_NAMES[r.tokens]}", estimate(r.auroc)) for r in measured.readouts]
    rows += [
        (str(e.layer), "what the gate reads, last prompt token", estimate(e.auroc)) for e in measured.exchanged("read")
    ]
    lowest = min(value for trace in traces for value in trace["y"])
    shape = layout(360, _layers_axis(layers), axis("AUROC", range=[min(0.45, lowest - 0.05), 1.02]))
    return Plot("harm-signal-readouts", label, traces, shape, ("layer", "read from", "AUROC"), tuple(rows))


def exchanges(measured: HarmSignal) -> Plot:
    """How far exchanging each direction opens and closes the gate, by layer, against random directions."""
    traces = []
    layers = sorted({exchange.layer for exchange in measured.exchanges})
    for panel, opens in (("y", True), ("y2", False)):
        for direction, colour, symbol in (("probe", "$one", "circle"), ("read", "$two", "square")):
            own = [_on_gate(exchange, opens) for exchange in measured.exchanges if exchange.direction == direction]
            name = DIRECTION_NAMES[direction]
            shared = {"yaxis": panel, "legendgroup": name, "showlegend": opens}
            traces.append(_line(name, layers, [against.effect for against in own], colour, symbol, **shared))
            random = _line(f"random, as far as {name}", layers, [a.random for a in own], colour, f"{symbol}-open")
            traces.append(random | {"yaxis": panel, "legendgroup": f"random {name}", "showlegend": opens}
                          | {"line": {"color": colour, "width": 1, "dash": "dot"}})  # fmt: skip
    signal = measured.signal
    label = (
        "How far exchanging a direction's component opens the gate in benign runs and closes it in harmful ones; 1 is "
        f"what harm does. What the gate reads after layer {signal.layer}: "
        f"{estimate(signal.gate_into_reference.effect)} and {estimate(signal.gate_into_harmful.effect)}."
    )
    shape = layout(
        480, _layers_axis(layers) | {"anchor": "y2"}, axis("opens", domain=[0.54, 1]),
        yaxis2=axis("closes", domain=[0, 0.46]),
    )  # fmt: skip
    rows = tuple(
        (str(e.layer), DIRECTION_NAMES[e.direction], estimate(e.auroc), *_compared(e.gate_into_reference),
         *_compared(e.gate_into_harmful), *_compared(e.outcome_into_reference), *_compared(e.outcome_into_harmful))
        for e in measured.exchanges
    )  # fmt: skip
    return Plot("harm-signal-exchanges", label, traces, shape, EXCHANGE_COLUMNS, rows)


def _on_gate(exchange: Exchange, opens: bool) -> AgainstRandom:
    return exchange.gate_into_reference if opens else exchange.gate_into_harmful


def _compared(against: AgainstRandom) -> tuple[str, str]:
    return estimate(against.effect), estimate(against.random)


def paths(measured: HarmSignal) -> Plot:
    """What is left of the signal's exchange with later outputs frozen."""
    names = [FROZEN_NAMES[path.frozen].replace(" ", "<br>") for path in measured.paths]
    traces: list[Json] = []
    for name, colour, values in (
        ("opens the gate", "$one", [path.gate_into_reference for path in measured.paths]),
        ("closes the gate", "$two", [path.gate_into_harmful for path in measured.paths]),
    ):
        traces.append(
            {"type": "bar", "name": name, "x": names, "y": [value.value for value in values],
             "error_y": whiskers(values, "$text"), "marker": {"color": colour}, "textposition": "none",
             "text": [estimate(value) for value in values], "hovertemplate": "%{text}<extra>" + name + "</extra>"}
        )  # fmt: skip
    shape = layout(320, axis("", type="category"), axis("share of harm's own effect"), barmode="group")
    rows = tuple(
        (FROZEN_NAMES[p.frozen], estimate(p.gate_into_reference), estimate(p.gate_into_harmful),
         estimate(p.outcome_into_reference), estimate(p.outcome_into_harmful))
        for p in measured.paths
    )  # fmt: skip
    columns = ("frozen", "opens the gate", "closes the gate", "Y gained, nats", "Y lost, nats")
    return Plot("harm-signal-paths", path_sentence(measured), traces, shape, columns, rows)


def edits(measured: HarmSignal) -> Plot:
    """Harmful compliance and benign refusal of no edit, the gate's clamp, and the early edit."""
    rows = [("none", measured.without), ("late clamp", measured.clamp)]
    if measured.disruption is not None:
        rows.append(("early disruption", measured.disruption.outcome))
    traces: list[Json] = []
    for name, colour, values in (
        ("harmful compliance", "$off", [outcome.harmful_compliance for _, outcome in rows]),
        ("benign refusal", "$three", [outcome.benign_refusal for _, outcome in rows]),
    ):
        traces.append(
            {"type": "bar", "name": name, "x": [edit for edit, _ in rows], "y": [100 * v.value for v in values],
             "error_y": whiskers(values, "$text", 100.0), "marker": {"color": colour}, "textposition": "none",
             "text": [percent(value.value) for value in values],
             "hovertemplate": "%{x}: %{text}<extra>" + name + "</extra>"}
        )  # fmt: skip
    table = tuple(
        (edit, percent(o.harmful_compliance.value), percent(o.harmful_garbled.value), estimate(o.harmful_outcome),
         percent(o.benign_refusal.value), estimate(o.benign_kl))
        for edit, o in rows
    )  # fmt: skip
    shape = layout(320, axis("", type="category"), axis("%", range=[0, 104]), barmode="group")
    return Plot(
        "harm-signal-edits", edit_sentence(measured.clamp, measured.disruption), traces, shape, EDIT_COLUMNS, table
    )
