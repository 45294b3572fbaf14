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
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from calibration.analyses.patches import ModuleEffects, joint_effects, module_effects
from calibration.analyses.subject import Subject
from calibration.analyses.unit_groups import Group, measured_group
from calibration.analyses.units import Place, places_of
from calibration.effects.means import estimate_of_means, ratio, ratio_difference
from calibration.effects.statistics import bootstrap_estimate
from calibration.runs.interventions import Kind
from calibration.runs.resume import LateRun, record
from calibration.search.findings import Advance
from guard.analyses import Ground
from guard.analyses.controls import ControlledModule, ControlledUnits, Controls, UnitGroup
from guard.spec.claim import claim

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
    groups, claims, at_smaller_norm = [late, attention, mlp], [], []
    if len(earlier) > 0:
        early = group("early", places_of(earlier, "attention", "mlp"))
        groups.insert(0, early)
        claims.append(claim(*LATE, _grounds(late, early, seed, generator)))
        at_smaller_norm.append(_at_smaller_norm(late, early, seed, generator))
    grounds = _grounds(mlp, attention, seed, generator)
    if len(earlier) == 0 or float((late.effect - early.effect).mean()) > 0:
        grounds += _joint_grounds(late_plain, late_harm, seed)
    claims.append(claim(*MLP, grounds))
    at_smaller_norm.append(_at_smaller_norm(mlp, attention, seed, generator))
    return Controls(
        modules=modules,
        groups=tuple(_described(group, seed) for group in groups),
        at_smaller_norm=tuple(at_smaller_norm),
        claims=tuple(claims),
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
