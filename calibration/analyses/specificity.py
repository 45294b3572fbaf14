"""Is it a gate of harm, or does it modulate whatever the model says?

The gate as a whole and each of its neurons are set against benign outcomes by kind, on held-out requests: as deployed,
with the edit active everywhere, and by the natural indirect effect, for which neurons take the values that they have on
the request of the contrast. It costs four passes over the late layers for the gate and three more for each neuron, on
at most 48 harmful requests and 24 of every kind.

An outcome is the mean per-token log-probability of what the model itself says to a request. Effects on it are in
standard deviations of that outcome between the request and another one, so that kinds with long and short, sure and
open answers compare. The index of a kind sets the mean fall on harmful requests, a, against the mean size of the change
on its requests, b: (a - b) / (a + b), in [-1, 1]; 1 where the kind is left alone, 0 where it is moved as much as harm.
"""

from collections.abc import Sequence

import torch

from calibration.analyses.analysis import Analysis, Numbers, Section
from calibration.analyses.subject import Subject
from calibration.evidence.specificity import LIMIT, NEGLIGIBLE, KindEffect, LeftOut, failing, keep_outcomes
from calibration.report.display import estimate, number, plural
from calibration.report.plot_parts import Json, Plot, axis, dashed, layout, plain, points, whiskers
from calibration.search.findings import Advance
from calibration.search.specific_gate import alone
from guard.spec.claim import Claim, Ground, claim
from guard.spec.measures import Count, Estimate, Finite, Frozen

IN_WORDS = {"edit": "the edit, everywhere", "natural": "their natural values", "deployed": "the guard as deployed"}


class NeuronSpecificity(Frozen):
    """One neuron's own edit, everywhere, and its natural effect, each on the benign kind that it moves most."""

    layer: Count
    neuron: Count
    edit: KindEffect
    natural: KindEffect
    specific: bool


class DroppedNeuron(Frozen):
    """A neuron that is not specific, and that the gate works without."""

    layer: Count
    neuron: Count


class Specificity(Numbers):
    """The gate and each of its neurons on benign outcomes. Below `limit`, beyond `negligible`, is not specific.

    `dropped` were taken out of the gate for that reason.
    """

    limit: Finite
    negligible: Finite
    kinds: tuple[KindEffect, ...]
    neurons: tuple[NeuronSpecificity, ...]
    left_out: tuple[LeftOut, ...]
    dropped: tuple[DroppedNeuron, ...] = ()

    @property
    def claims(self) -> tuple[Claim, ...]:
        """That the neurons act on harm: by kind, for the edit without the trigger's help and for the natural effect."""
        grounds = tuple(
            Ground(name=f"{effect.kind}, {IN_WORDS[effect.intervention]}", estimate=_above(effect.index, self.limit))
            for effect in self.kinds
            if effect.intervention != "deployed"
        )
        if not grounds:
            return ()
        statement = f"the gate's neurons carry harm rather than output as such (index above {self.limit:g})"
        return (claim("specific", statement, grounds),)


def _above(index: Estimate, limit: float) -> Estimate:
    return Estimate(value=index.value - limit, low=index.low - limit, high=index.high - limit, n=index.n)


def measure(subject: Subject, advance: Advance) -> Specificity:
    """The gate's specificity on held-out requests."""
    gate, seed = subject.gate, subject.settings.seed
    late, outcomes = subject.late, subject.material.held_out_outcomes
    kept = keep_outcomes(subject.model, outcomes, late.layers[0], late.shelf)
    of_gate: dict[int, list[int]] = {}
    for member in gate.members:
        of_gate.setdefault(member.layer, []).append(member.neuron)
    everywhere, natural = kept.edited(subject.edits, None), kept.noised(of_gate)
    effects = kept.answers.effects
    kinds = (
        *subject.findings.examined.kinds,
        *effects(everywhere[:, None], "edit", seed=seed)[0],
        *effects(natural[:, None], "natural", seed=seed)[0],
    )
    edited = alone(gate, late.activations, kept, advance)  # [N, members]
    noised = []
    for member in gate.members:
        noised.append(kept.noised({member.layer: (member.neuron,)}))
        advance(1)
    return Specificity(
        limit=LIMIT,
        negligible=NEGLIGIBLE,
        kinds=kinds,
        neurons=tuple(
            NeuronSpecificity(
                layer=member.layer,
                neuron=member.neuron,
                edit=_most_moved(by_edit),
                natural=_most_moved(by_nature),
                specific=not failing((*by_edit, *by_nature)),
            )
            for member, by_edit, by_nature in zip(
                gate.members,
                effects(edited, "edit", seed=seed),
                effects(torch.stack(noised, dim=1), "natural", seed=seed),
                strict=True,
            )
            if by_edit and by_nature
        ),
        left_out=kept.answers.left_out,
        dropped=tuple(DroppedNeuron(layer=member.layer, neuron=member.neuron) for member in gate.dropped),
    )


def _most_moved(effects: tuple[KindEffect, ...]) -> KindEffect:
    """The kind that one neuron fails on, else the one that it moves most."""
    return max(failing(effects) or effects, key=lambda effect: effect.benign.value)


def total(subject: Subject) -> int:
    """Twice the number of neurons: each is edited, and noised."""
    return 2 * len(subject.gate.members)


LOOKS = {"deployed": ("$on", "circle"), "edit": ("$one", "square"), "natural": ("$two", "diamond")}
LABEL_WIDTH = 18


def describe(measured: Specificity) -> Section:
    """Paragraphs and figures of what was measured."""
    paragraphs = [
        "A gate of harm leaves alone what the model says to harmless requests; a modulator of output does not. The "
        "outcome is the log-probability of the model's own answer, its effect in standard deviations of that outcome "
        "between requests; the index is (a - b) / (a + b), with a the fall on harmful requests and b the size of the "
        f"change on a benign kind: 1 where the kind is left alone, 0 where it is moved as much as harm. Below "
        f"{measured.limit:g}, by its whole interval, the guard as deployed is refuted."
    ]
    failed = [neuron for neuron in measured.neurons if not neuron.specific]
    if failed:
        verb = "is" if len(failed) == 1 else "are"
        deployed = [effect for effect in measured.kinds if effect.intervention == "deployed"]
        passes = not any(effect.fails(measured.limit, measured.negligible) for effect in deployed)
        paragraphs.append(
            f"{plural(len(failed), 'neuron')} {verb} not specific alone: {_named(failed)}. The guard as deployed is "
            f"{'specific all the same' if passes else 'not specific either'}."
        )
    if measured.dropped:
        paragraphs.append(
            f"Dropped from the gate, which works without, for not being specific: {_named(measured.dropped)}."
        )
    if measured.left_out:
        reasons = "; ".join(f"{each.kind} ({each.reason})" for each in measured.left_out)
        paragraphs.append(f"Left out: {reasons}.")
    plots = [plot for plot in (_by_kind(measured), _by_neuron(measured)) if plot is not None]
    return Section("Specificity to harm", tuple(paragraphs), tuple(plots))


def _named(neurons: Sequence[NeuronSpecificity | DroppedNeuron]) -> str:
    return ", ".join(f"neuron {neuron.neuron} of layer {neuron.layer}" for neuron in neurons)


def _by_kind(measured: Specificity) -> Plot | None:
    """The index of each kind under each intervention, with intervals."""
    if not measured.kinds:
        return None
    kinds = list(dict.fromkeys(effect.kind for effect in measured.kinds))
    traces: list[Json] = []
    for shift, (intervention, (colour, symbol)) in zip((-0.2, 0.0, 0.2), LOOKS.items(), strict=True):
        own = [effect for effect in measured.kinds if effect.intervention == intervention]
        if own:
            traces.append(
                points(IN_WORDS[intervention], [effect.index.value for effect in own],
                       [kinds.index(effect.kind) + shift for effect in own], colour, symbol,
                       error_x=whiskers([effect.index for effect in own], colour),
                       text=[_in_words(effect) for effect in own], hovertemplate="%{text}<extra></extra>")
            )  # fmt: skip
    ends = [-0.5, len(kinds) - 0.5]
    traces.append(dashed([measured.limit, measured.limit], ends, "limit"))
    y_axis = axis("", range=ends[::-1], tickvals=list(range(len(kinds))), zeroline=False,
                  ticktext=[_wrapped(kind) for kind in kinds])  # fmt: skip
    x_axis = axis("specificity index", range=[-1.05, 1.05], zerolinewidth=1.5)
    lowest = min(measured.kinds, key=lambda effect: effect.index.value)
    label = (
        f"Specificity index of {plural(len(kinds), 'benign kind')}; the lowest is {number(lowest.index.value)}, on "
        f"{lowest.kind}, for {IN_WORDS[lowest.intervention]}; the limit is {number(measured.limit)}."
    )
    rows = tuple(
        (each.kind, IN_WORDS[each.intervention], estimate(each.harmful), estimate(each.benign), estimate(each.index))
        for each in measured.kinds
    )
    columns = ("kind", "intervention", "harm, SD", "benign, SD", "index")
    shape = layout(130 + 56 * len(kinds), x_axis, y_axis)
    return Plot("specificity-by-kind", label, traces, shape, columns, rows)


def _by_neuron(measured: Specificity) -> Plot | None:
    """What each neuron's own edit does to harm and to the benign kind that it moves most."""
    neurons = measured.neurons
    if not neurons:
        return None
    traces = []
    for name, colour, symbol, specific in (
        ("specific", "$one", "circle", True),
        ("not specific", "$two", "diamond", False),
    ):
        own = [neuron for neuron in neurons if neuron.specific == specific]
        if own:
            words = [f"layer {n.layer}, neuron {n.neuron}<br>{_in_words(n.edit)}" for n in own]
            traces.append(
                points(name, [n.edit.harmful.value for n in own], [n.edit.benign.value for n in own], colour, symbol,
                       text=words, hovertemplate="%{text}<extra></extra>")
            )  # fmt: skip
    failed = sum(not neuron.specific for neuron in neurons)
    label = f"Effect of each of {plural(len(neurons), 'neuron')} on harm and on a benign kind; {failed} not specific."
    falls, changes = ([getattr(n.edit, side).value for n in neurons] for side in ("harmful", "benign"))
    traces.append(dashed([min(0.0, *falls), max(falls)], [measured.negligible] * 2, "negligible below"))
    highest = 1.1 * max(*changes, 2 * measured.negligible)  # what is next to nothing is not blown up
    x_axis, y_axis = axis("fall on harm, SD", zerolinewidth=1.5), axis("benign change, SD", range=[0, highest])
    rows = tuple(
        (str(n.layer), str(n.neuron), estimate(n.edit.harmful), n.edit.kind, estimate(n.edit.benign),
         n.natural.kind, estimate(n.natural.benign), "yes" if n.specific else "no")
        for n in neurons
    )  # fmt: skip
    columns = (
        "layer", "neuron", "edit: harm, SD", "edit: most moved kind", "benign, SD",
        "natural: most moved kind", "natural: benign, SD", "specific",
    )  # fmt: skip
    return Plot("specificity-by-neuron", label, traces, layout(320, x_axis, y_axis), columns, rows)


def _in_words(effect: KindEffect) -> str:
    return (
        f"{plain(effect.kind)}<br>index {estimate(effect.index)}<br>harm {number(effect.harmful.value)} SD, "
        f"benign {number(effect.benign.value)} SD"
    )


def _wrapped(kind: str) -> str:
    """A kind's name in lines that leave room for the figure on a narrow page."""
    lines = [""]
    for word in plain(kind).split():
        if lines[-1] and len(lines[-1]) + len(word) >= LABEL_WIDTH:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(lines)


ANALYSIS = Analysis(
    order=30,
    name="specificity",
    title="Specificity to harm",
    kind=Specificity,
    claims=("specific",),
    measure=measure,
    describe=describe,
    total=total,
    needs_gate=True,
)
