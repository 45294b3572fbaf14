"""The best units of a group of places, chosen on one half of the requests and measured on the other, with controls.

A group is what a claim compares: the earlier half of the layers, attention, and so on. Choosing and measuring on
different requests keeps a group with more units to choose from, or noisier ones, from seeming better than it is. An
effect here is what the log-probability of the refusal gains, half of Y: its other half, that of complying, falls
wherever an edit makes the model lose what was asked for, and so speaks for early units that have no gate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from calibration.analyses.patches import impact as measured_impact
from calibration.analyses.units import (
    MovedRun,
    Place,
    Weights,
    by_place,
    first_of,
    grow,
    halved,
    mean_values,
    misdirecting,
    moved_run,
)
from calibration.effects.outcome import continuation_log_probability
from calibration.prompts.sequences import Batch
from calibration.runs.resume import LateRun

UnitGroup = Literal["early", "late", "attention", "MLP"]
ROUNDS = (0.25, 0.5, 1.0)  # of the set's size: later units are chosen given the earlier ones
STEPS, STRIDE = 8, 4.0  # towards another impact, by bisection once it is bracketed


def refusing_less(logits: Tensor, batch: Batch) -> Tensor:
    """Mean per-token log-probability of each request's refusal with its sign turned, [B] nats: half of Y."""
    return -continuation_log_probability(logits, batch).chunk(2)[1]


@dataclass(frozen=True)
class Group:
    """The best `size` units of some places on each request, chosen without it, and what moving them does.

    `runs` enter the group's first layer; `chosen` are weights [B, units] by place for each run. Measurements are
    [requests] float64: effects in nats, `norm` the L2 norm of what is written into the
    residual stream, `impact` that of the change of all log-probabilities, summed over a request's two rows and averaged
    over the tokens read out.
    """

    name: UnitGroup
    runs: Sequence[LateRun]
    values: Mapping[Place, Tensor]
    chosen: Sequence[Weights]
    size: int
    effect: Tensor
    norm: Tensor
    impact: Tensor
    random_units: Tensor
    random_direction: Tensor

    @property
    def available(self) -> int:
        """How many units the group has."""
        return sum(place.count(self.runs[0].model) for place in self.values)

    def scaled(self, norm: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """With the moves scaled to write `norm` [requests]: the effect, and that of random directions of the norm.

        To first order: what enters a later place depends on what was moved before it.
        """
        tiny = torch.finfo(self.norm.dtype).tiny
        factor = torch.where(self.norm > 0, norm / self.norm.clamp(min=tiny), 0.0)
        effects, misdirected, start = [], [], 0
        for run, weights in zip(self.runs, self.chosen, strict=True):
            own = factor[start : start + run.batch.size, None].to(run.residual)
            start += run.batch.size
            scaled = {place: own * of_place for place, of_place in weights.items()}
            logits, moved, random = _moved_and_random(run, scaled, self.values, generator)
            base = refusing_less(logits, run.batch)
            effects.append(base - refusing_less(moved.logits, run.batch))
            misdirected.append(base - random)
        return torch.cat(effects).double().cpu(), torch.cat(misdirected).double().cpu()

    def at_impact(self, impact: Tensor) -> tuple[Tensor, Tensor]:
        """With the moves scaled until they have the logit impact [requests], or as near to it as was found: the effect,
        and the impact that they have then.
        """
        effects, reached, start = [], [], 0
        for run, weights in zip(self.runs, self.chosen, strict=True):
            wanted = impact[start : start + run.batch.size].to(run.residual)
            start += run.batch.size
            effect, found = _at_impact(run, weights, self.values, wanted)
            effects.append(effect)
            reached.append(found)
        return torch.cat(effects).double().cpu(), torch.cat(reached).double().cpu()


@torch.inference_mode()
def _at_impact(run: LateRun, weights: Weights, values: Mapping[Place, Tensor], wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The effect and the logit impact [B] with moves scaled, by bisection, to an impact as near as may be to `wanted`.

    The factors are bracketed by steps of `STRIDE` first, since an impact may saturate.
    """
    base = run.readout_logits()
    factor, low, high = torch.ones_like(wanted), torch.zeros_like(wanted), torch.full_like(wanted, torch.inf)
    effect, reached, missed = torch.zeros_like(wanted), torch.zeros_like(wanted), torch.full_like(wanted, torch.inf)
    for _ in range(STEPS):
        moved = moved_run(run, {place: factor[:, None] * of for place, of in weights.items()}, values)
        found = measured_impact(base, moved.logits, run.batch).to(wanted)
        nearer = (found - wanted).abs() < missed
        missed = torch.where(nearer, (found - wanted).abs(), missed)
        reached = torch.where(nearer, found, reached)
        effect = torch.where(nearer, refusing_less(base, run.batch) - refusing_less(moved.logits, run.batch), effect)
        if not bool(missed.any()):
            break
        low, high = torch.where(found < wanted, factor, low), torch.where(found < wanted, high, factor)
        between = torch.where(low > 0, (low * high).sqrt(), high / STRIDE)
        factor = torch.where(high.isinf(), STRIDE * low, between)
    return effect, reached


def measured_group(
    name: UnitGroup,
    runs: Sequence[LateRun],
    plain: Sequence[LateRun],
    places: Sequence[Place],
    size: int,
    generator: torch.Generator,
) -> Group:
    """Choose the best units of `places` on each half of the requests of `runs`, and measure them on the other half.

    They are moved to their mean over the real tokens of the reference runs `plain`.
    """
    values = mean_values(plain, places)
    halves = halved(runs, generator)
    order = grow(runs, places, values, [max(1, round(share * size)) for share in ROUNDS], halves, refusing_less)
    size = min(size, order.shape[1])
    best = first_of(order, size)
    chosen = [by_place(best[1 - half], places, run.model) for run, half in zip(runs, halves, strict=True)]
    parts: dict[str, list[Tensor]] = {}
    for run, own in zip(runs, chosen, strict=True):
        base, moved, misdirected = _moved_and_random(run, own, values, generator)
        lean = refusing_less(base, run.batch)
        drawn = moved_run(run, _drawn(run, places, size, generator), values)
        measured = {
            "effect": lean - refusing_less(moved.logits, run.batch),
            "norm": moved.written,
            "impact": measured_impact(base, moved.logits, run.batch),
            "random_units": lean - refusing_less(drawn.logits, run.batch),
            "random_direction": lean - misdirected,
        }
        for field, value in measured.items():
            parts.setdefault(field, []).append(value)
    together = {field: torch.cat(several).double().cpu() for field, several in parts.items()}
    return Group(name=name, runs=runs, values=values, chosen=chosen, size=size, **together)


@torch.inference_mode()
def _moved_and_random(
    run: LateRun, weights: Weights, values: Mapping[Place, Tensor], generator: torch.Generator
) -> tuple[Tensor, MovedRun, Tensor]:
    """Read-out logits as they are, the run with units moved, and what is read [B] with random directions instead."""
    base, moved = run.readout_logits(), moved_run(run, weights, values)
    with misdirecting(run, weights, values, generator):
        return base, moved, refusing_less(run.readout_logits(), run.batch)


def _drawn(run: LateRun, places: Sequence[Place], size: int, generator: torch.Generator) -> Weights:
    """`size` units of `places` for each request, drawn at random: [B, units] by place, 0 or 1."""
    count = sum(place.count(run.model) for place in places)
    order = torch.rand(run.batch.size, count, generator=generator).argsort(dim=1)
    return by_place(first_of(order, size).to(run.residual.device), places, run.model)
