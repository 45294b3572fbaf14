"""Controls for position and size: is it late rather than early, MLP rather than attention, or only large or last?

Where an effect sits is asked of units, not of whole modules. What is patched into early modules at the tokens that line
up also changes what later ones are told about the request, so an early patch carries the whole contrast of two topics
wherever the gate is; and a layer's output carries all that came before it. Instead the best units of each half
(attention and MLP), equally many, chosen on one half of the requests and measured on the other, are moved to their mean
on reference requests at every token; an early gate is then found early, at whichever token it acts. The claims:

    late   the best units of the later half of the layers do more for a refusal than those of the earlier half
    mlp    the best MLP units do more than the best attention units; and where it is late, the late MLPs, patched
           together at the tokens that line up, carry more than late attention, with the other left to follow, and held

each under the same controls: as they are; beyond random directions of the norms that they write; with the one that
writes less scaled up to the other's norm, beyond random directions of it; and per unit of logit impact, with the one
that changes less scaled up to the other's impact. A claim holds only where it survives all. Scaling down is measured
and told, but no ground: a gate that is closed by a twentieth of its move is none that was ever found, and at that size
every effect is a slope at 0. So is what a small move does per unit of its impact, which is why impacts are made equal
before effects are divided by them: otherwise what hardly acts beats what acts fully. What it errs on: where attention
carries the contrast to the gate late, "mlp" is not said or even denied, though the MLPs decide.

Cost: about 70 runs of at most 64 requests from the first layer and 30 from the middle one, and for each layer three
mediators of six runs of at most 32 pairs from that layer on: quadratic in depth, linear in requests, and in d_ff as a
run is.

Effects in nats: of Y for modules, of the refusal's log-probability (half of Y) for units. Norms are L2 norms of what is
written into the residual stream; an impact is the L2 norm of the change of all log-probabilities, summed over a
request's two rows and averaged over the tokens read out.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from calibration.analyses.analysis import Analysis, Numbers, Section
from calibration.analyses.patches import ModuleEffects, joint_effects, module_effects
from calibration.analyses.subject import Subject
from calibration.analyses.unit_groups import Group, UnitGroup, measured_group
from calibration.analyses.units import Place, places_of
from calibration.effects.means import estimate_of_means, ratio, ratio_difference
from calibration.effects.statistics import bootstrap_estimate
from calibration.report.display import KIND_NAMES, estimate, listed, number
from calibration.report.plot_parts import Json, Plot, axis, layout, points, whiskers
from calibration.runs.interventions import Kind
from calibration.runs.resume import LateRun, record
from calibration.search.findings import Advance
from guard.spec.claim import Claim, Ground, claim
from guard.spec.measures import Count, Estimate, Finite, Frozen


class ControlledModule(Frozen):
    """One layer's output or module, patched at the tokens that line up: the mean of NIE and TNIE, and its controls.

    `equal_norm`: the patch scaled to the norm that the middle one of all modules has. `random_direction`: in place of
    the patch, random directions of its norm. `per_impact`: the effect over the `impact`, nats per unit.
    """

    layer: Count
    kind: Literal["layer", "attention", "mlp"]
    norm: Finite
    impact: Finite
    effect: Estimate
    equal_norm: Estimate
    random_direction: Estimate
    per_impact: Estimate


class ControlledUnits(Frozen):
    """The `chosen` best units of a group (half of the layers, or attention or MLPs of all), moved at every token to
    their mean on reference requests: the controlled effect and its controls. `available`: how many units the group has.
    `random_units`: as many drawn at random.
    """

    group: UnitGroup
    available: Count
    chosen: Count
    norm: Finite
    impact: Finite
    effect: Estimate
    random_units: Estimate
    random_direction: Estimate
    per_impact: Estimate


class Controls(Numbers):
    """Every layer and module with its controls, the groups of units that the claims compare, and the claims' grounds.

    `late` and `mlp` are those grounds, `late` empty where no layer is before the late ones.
    `at_smaller_norm`: the differences between groups where the one that writes more is scaled down, told beside them.
    """

    modules: tuple[ControlledModule, ...]
    groups: tuple[ControlledUnits, ...]
    at_smaller_norm: tuple[Ground, ...]
    late: tuple[Ground, ...]
    mlp: tuple[Ground, ...] = Field(min_length=1)

    @property
    def claims(self) -> tuple[Claim, ...]:
        """That late layers carry it, where there are earlier ones, and that MLPs do."""
        grounds = ((LATE, self.late), (MLP, self.mlp))
        return tuple(claim(*said, each) for said, each in grounds if each)


REQUESTS = 64
PAIRS = 32  # of the patched modules
LEAST_UNITS = 8
LATE = ("late", "late layers carry it rather than early ones")
MLP = ("mlp", "MLPs carry it rather than attention")


def measure(subject: Subject, advance: Advance) -> Controls:
    """The controls of every layer and module, and of the claims. "late" needs two layers."""
    seed, kept = subject.settings.seed, subject.late.calibration
    generator = torch.Generator().manual_seed(seed)
    modules = _modules(subject, generator, advance)
    late_harm, late_plain = (list(kept[kind].where(None, limit=REQUESTS).runs) for kind in ("harmful", "reference"))
    harm, plain = ([record(subject.model, run.batch, 0) for run in runs] for runs in (late_harm, late_plain))
    size = max(LEAST_UNITS, len(subject.gate.members))

    def group(name: UnitGroup, places: Sequence[Place]) -> Group:
        late = name == "late"
        runs, reference = (late_harm, late_plain) if late else (harm, plain)
        advance(1)
        return measured_group(name, runs, reference, places, size, generator)

    earlier, later = range(subject.late.layers[0]), subject.late.layers
    late = group("late", places_of(later, "attention", "mlp"))
    mlp, attention = (
        group("MLP", places_of((*earlier, *later), "mlp")),
        group("attention", places_of((*earlier, *later), "attention")),
    )
    groups, at_smaller_norm = [late, attention, mlp], []
    late_grounds: tuple[Ground, ...] = ()
    if len(earlier) > 0:
        early = group("early", places_of(earlier, "attention", "mlp"))
        groups.insert(0, early)
        late_grounds = _grounds(late, early, seed, generator)
        at_smaller_norm.append(_at_smaller_norm(late, early, seed, generator))
    mlp_grounds = _grounds(mlp, attention, seed, generator)
    if len(earlier) == 0 or float((late.effect - early.effect).mean()) > 0:
        mlp_grounds += _joint_grounds(late_plain, late_harm, seed)
    at_smaller_norm.append(_at_smaller_norm(mlp, attention, seed, generator))
    return Controls(
        modules=modules,
        groups=tuple(_described(group, seed) for group in groups),
        at_smaller_norm=tuple(at_smaller_norm),
        late=late_grounds,
        mlp=mlp_grounds,
    )


def total(subject: Subject) -> int:
    """How far the progress goes: batches of patched modules, groups of units."""
    return _batches(subject) + (4 if subject.late.layers[0] > 0 else 3)


def _batches(subject: Subject) -> int:
    batches = subject.material.calibration.harmful
    return min(len(batches), max(1, PAIRS // batches[0].size))


def _modules(subject: Subject, generator: torch.Generator, advance: Advance) -> tuple[ControlledModule, ...]:
    """Every layer and module with its controls."""
    split, seed = subject.material.calibration, subject.settings.seed
    parts = []
    for reference, harmful in list(zip(split.reference, split.harmful, strict=True))[: _batches(subject)]:
        parts.append(module_effects(subject.model, reference, harmful, generator))
        advance(1)
    described = []
    for mediator in parts[0]:
        joined = ModuleEffects.joined([part[mediator] for part in parts])
        described.append(
            ControlledModule(
                layer=mediator.layer,
                kind=mediator.kind,  # type: ignore[arg-type]  # never neurons: all_mediators makes layers and modules
                norm=float(joined.norm.mean()),
                impact=float(joined.impact.mean()),
                effect=bootstrap_estimate(joined.effect, seed=seed),
                equal_norm=bootstrap_estimate(joined.equal_norm, seed=seed),
                random_direction=bootstrap_estimate(joined.random_direction, seed=seed),
                per_impact=estimate_of_means(torch.stack([joined.effect, joined.impact], 1), ratio, seed=seed),
            )
        )
    return tuple(described)


def _grounds(one: Group, other: Group, seed: int, generator: torch.Generator) -> tuple[Ground, ...]:
    """Whether `one` does more for a refusal than `other` under each control."""
    larger = torch.maximum(one.norm, other.norm)
    beyond = [group.effect - group.random_direction for group in (one, other)]
    scaled = [effect - random for effect, random in (group.scaled(larger, generator) for group in (one, other))]
    columns = {
        f"best {one.size} units: {one.name} less {other.name}, nats": one.effect - other.effect,
        "the same, beyond random directions of what each writes": beyond[0] - beyond[1],
        "the same, both at the larger norm, beyond random directions of it": scaled[0] - scaled[1],
    }
    most = torch.maximum(one.impact, other.impact)
    ratios = torch.stack([column for group in (one, other) for column in group.at_impact(most)], 1)
    per_impact = Ground(
        name="the same, both at the larger logit impact, per unit of it",
        estimate=estimate_of_means(ratios, ratio_difference, seed=seed),
    )
    found = (Ground(name=name, estimate=bootstrap_estimate(each, seed=seed)) for name, each in columns.items())
    return (*found, per_impact)


def _at_smaller_norm(one: Group, other: Group, seed: int, generator: torch.Generator) -> Ground:
    """What `one` does beyond `other` with both at the smaller norm."""
    smaller = torch.minimum(one.norm, other.norm)
    down = [group.scaled(smaller, generator)[0] for group in (one, other)]
    return Ground(name=f"{one.name} less {other.name}, nats", estimate=bootstrap_estimate(down[0] - down[1], seed=seed))


def _joint_grounds(plain: Sequence[LateRun], harm: Sequence[LateRun], seed: int) -> tuple[Ground, ...]:
    """Whether the late MLPs, patched together, carry more than late attention: the other following, or held."""

    def carried(kind: Kind, held: Kind | None) -> Tensor:
        return torch.cat([joint_effects(x, star, kind, held) for x, star in zip(plain, harm, strict=True)])

    differences = {
        "all late MLPs less all late attention, nats": carried("mlp", None) - carried("attention", None),
        "the same, the other held": carried("mlp", "attention") - carried("attention", "mlp"),
    }
    return tuple(
        Ground(name=name, estimate=bootstrap_estimate(difference, seed=seed))
        for name, difference in differences.items()
    )


def _described(group: Group, seed: int) -> ControlledUnits:
    return ControlledUnits(
        group=group.name,
        available=group.available,
        chosen=group.size,
        norm=float(group.norm.mean()),
        impact=float(group.impact.mean()),
        effect=bootstrap_estimate(group.effect, seed=seed),
        random_units=bootstrap_estimate(group.random_units, seed=seed),
        random_direction=bootstrap_estimate(group.random_direction, seed=seed),
        per_impact=estimate_of_means(torch.stack([group.effect, group.impact], 1), ratio, seed=seed),
    )


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
    plots = (_units_plot(controls.groups), _modules_plot(controls.modules))
    return Section("Controls for position and size", tuple(paragraphs), plots)


def _units_plot(groups: tuple[ControlledUnits, ...]) -> Plot:
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


def _modules_plot(modules: tuple[ControlledModule, ...]) -> Plot:
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


ANALYSIS = Analysis(
    order=10,
    name="controls",
    title="Controls for position and size",
    kind=Controls,
    claims=(LATE[0], MLP[0]),
    measure=measure,
    describe=describe,
    total=total,
)
