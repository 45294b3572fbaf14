"""The trace in a terminal: the same numbers as on the page, in the order in which one looks for a fault.

Tokens are made visible before they are printed, so none of them can steer the terminal.
"""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from calibration.report.display import chance, number, plural, token, visible
from calibration.trace.document import VIEWS, Answer, Case, GuardAtWork, Map, Reply, Trace, View
from calibration.trace.page import by_effect, excited_by, lost, shares, strongest_module
from calibration.trace.plots import MODULE_NAMES, column_name, row_name

NEURONS_LISTED = 12
LAYERS_LISTED = 16
ROWS_DRAWN = 40
MOST_DRAWN = 48  # layers
ABOVE, BELOW = " ░▒▓█", " .-=#"


def trace_tables(trace: Trace) -> RenderableType:
    """Everything that the terminal shows of a trace."""
    parts: list[RenderableType] = [headline(trace), layer_table(trace), *map_lines(trace), neuron_table(trace)]
    parts.append(case_table(trace))
    parts += [Text(line, style="dim") for line in dict.fromkeys(case.withheld for case in trace.cases) if line]
    if trace.guard is not None:
        parts.append(guard_table(trace, trace.guard))
    return Group(*(part for each in parts for part in (each, Text())))


def headline(trace: Trace) -> Text:
    """Y, where it turns, and what carries most."""
    leans, style = ("compliance", "bold red") if trace.outcome > 0 else ("refusal", "bold green")
    turn, module, neuron = trace.turn, strongest_module(trace), by_effect(trace.neurons)[0]
    where = "the embedding" if turn.module == "embedding" else f"the {MODULE_NAMES[turn.module]} of layer {turn.layer}"
    text = Text(f"Y is {number(trace.outcome)} nats: the model leans to {leans}", style=style)
    lines = [
        f"complying reply: {reply_line(trace.compliance)}",
        f"refusing reply:  {reply_line(trace.refusal)}",
        f"turns: read off the residual stream, Y has this sign from {where} on ({number(turn.reading)} nats there)",
        f"module: without the {MODULE_NAMES[module.kind]} of layer {module.layer}, {lost(module.removed)}",
        f"neuron: without L{neuron.layer}.N{neuron.neuron}, {lost(neuron.effect)}",
    ]
    if trace.reference is not None:
        lines.insert(2, f"other prompt: Y is {number(trace.reference)} nats")
    return text.append("\n" + "\n".join(lines), style="not bold default")


def reply_line(reply: Reply) -> str:
    """A forced reply, or what stands for it, and where it comes from."""
    shown = visible(reply.text) if reply.text is not None else f"left out ({reply.words}, sha256 {reply.digest}…)"
    return f"{shown} ({reply.source})"


def layer_table(trace: Trace) -> Table:
    """By layer: Y read after it, and what its modules carry; of deep models the layers that carry most."""
    compared = trace.reference is not None
    kinds: tuple[View, ...] = VIEWS if compared else ("attention", "mlp")
    measured = {(effect.layer, effect.kind): effect for effect in trace.modules}
    read = {(step.layer, step.module): step.reading for step in trace.steps}
    weight = {
        layer: max(abs(measured[layer, kind].removed) for kind in ("attention", "mlp")) for layer in range(trace.layers)
    }
    shown = sorted(sorted(weight, key=lambda layer: -weight[layer])[:LAYERS_LISTED])
    left = trace.layers - len(shown)
    caption = (
        "nats; TNIE and NIE from the other prompt" if compared else "nats; modules take their mean over the prompt"
    )
    caption += f"; {plural(left, 'layer')} that carry less left out" if left else ""
    table = Table(title="By layer", title_justify="left", caption=caption, caption_justify="left")
    names = {"layer": "layer output", "attention": "attention", "mlp": "MLP"}
    for name in ("layer", "Y after attention", "Y after MLP"):
        table.add_column(name, justify="right")
    for kind in kinds:
        table.add_column(f"{names[kind]}: TNIE, NIE" if compared else f"Y lost without {names[kind]}", justify="right")
    for layer in shown:
        cells = [str(layer), number(read[layer, "attention"]), number(read[layer, "mlp"])]
        for kind in kinds:
            effect = measured[layer, kind]
            cells.append(", ".join(number(value) for value in (effect.removed, effect.brought) if value is not None))
        table.add_row(*cells)
    return table


def map_lines(trace: Trace) -> list[RenderableType]:
    """The map of layers' outputs: tokens down, layers across, darker for more; the last tokens of a long prompt."""
    found: Map = next(view for view in trace.maps if view.view == "layer")
    scaled, largest = shares(found.effects)
    stride = -(-trace.layers // MOST_DRAWN)
    layers = range(0, trace.layers, stride)
    rows = range(max(0, len(trace.columns) - ROWS_DRAWN), len(trace.columns))
    names = [f"{at + 1} {row_name(trace, at)}"[:24] for at in rows]
    width = max(map(len, names))
    text = Text("Y lost when a layer's output is replaced at one token, layers ")
    text.append(f"0 to {layers[-1]} from the left, up to {number(largest)} nats\n")
    for name, at in zip(names, rows, strict=True):
        text.append(f"{name:<{width}} ", style="dim" if trace.columns[at].part == "reply" else "")
        for layer in layers:
            text.append_text(_shade(scaled[layer][at]))
        text.append("\n")
    text.append("blocks, red: towards compliance; dashes, green: towards refusal; ")
    text.append("·· does not line up with the other prompt" if trace.reference is not None else "replaced by the mean")
    return [text]


def _shade(share: float | None) -> Text:
    if share is None:
        return Text("··", style="dim")
    shades, style = (ABOVE, "red") if share > 0 else (BELOW, "green")
    return Text(shades[round(abs(share) * (len(shades) - 1))] * 2, style=style)


def neuron_table(trace: Trace) -> Table:
    """The neurons that carry most, what excites them and what they write."""
    shown = by_effect(trace.neurons)[:NEURONS_LISTED]
    caption = "above 0 a neuron carries compliance here, below 0 refusal; it writes at its peak; ~ is a linear estimate"
    table = Table(title="Neurons", title_justify="left", caption=caption, caption_justify="left")
    table.add_column("neuron")
    table.add_column("Y lost, nats", justify="right")
    for name in ("", "excited by", "promotes"):
        table.add_column(name)
    for neuron in shown:
        role = {"found": "", "gate": "gate", "set": "set"}[neuron.role]
        written = " ".join(token(each.token) for each in neuron.promoted[:3])
        effect = ("" if neuron.run else "~") + number(neuron.effect)
        table.add_row(
            f"L{neuron.layer}.N{neuron.neuron}",
            effect,
            role,
            Text(", ".join(excited_by(trace, neuron, 2))),
            Text(written),
        )
    return table


def case_table(trace: Trace) -> Table:
    """The plain model and each intervention beside it."""
    caption = Text(visible(f"set: {', '.join(trace.sets)}")) if trace.sets else None
    table = Table(title="What changes", title_justify="left", caption=caption, caption_justify="left")
    table.add_column("")
    for name in ("Y, nats", "log p complying", "log p refusing"):
        table.add_column(name, justify="right")
    for name in ("first token", "answer"):
        table.add_column(name)
    for case in trace.cases:
        table.add_row(
            case.name,
            number(case.outcome),
            number(case.compliance),
            number(case.refusal),
            Text(_first(case)),
            Text(_answer(case.answer) if case.answer else "not given"),
        )
    return table


def _first(case: Case) -> str:
    shown = [f"{token(each.text)} {chance(each.probability)}" for each in case.first_tokens[:3]]
    return ", ".join(shown) or "not given"


def _answer(answer: Answer) -> str:
    said = f"left out ({answer.words}, sha256 {answer.digest}…)" if answer.text is None else visible(answer.text)
    return f"{answer.behaviour}: {said}"


def guard_table(trace: Trace, guard: GuardAtWork) -> Table:
    """Where the guard's edit changes something on this prompt, and what that is worth."""
    acting = [at for at, effect in enumerate(guard.effects) if effect is not None]
    where = "on every token" if guard.trigger_layer is None else f"on {sum(guard.active)} of {len(guard.active)} tokens"
    caption = f"the edit is active {where}; here are the {plural(len(acting), 'token')} at which it changes a neuron"
    table = Table(title="The guard on this prompt", title_justify="left", caption=caption, caption_justify="left")
    table.add_column("token")
    if guard.scores is not None:
        table.add_column(f"trigger (> {number(guard.threshold or 0.0)})", justify="right")
    for layer in guard.layers:
        table.add_column(f"layer {layer.layer}: changed of {layer.neurons}", justify="right")
    table.add_column("Y lost here alone, nats", justify="right")
    for at in acting:
        scores: Sequence[str] = () if guard.scores is None else (number(guard.scores[at]),)
        changed = (str(layer.changed[at]) for layer in guard.layers)
        table.add_row(Text(f"{at + 1} {column_name(trace, at)}"), *scores, *changed, number(guard.effects[at] or 0.0))
    return table
