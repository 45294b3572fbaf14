"""Which neurons enter a gate.

Effects do not add up, so neurons are not ranked once: the gate grows in rounds, and each round measures what every
other neuron would add *given* the gate so far. A round costs one forward and one backward pass over the late layers
(the linear effect of replacing each activation, per request), and its neurons are kept only if the joint effect, run
exactly, bears them out. What counts is the effect on harmful requests beyond the effect on benign ones; neurons that
carry refusal are named too, not to be held for their own sake. Traded away: a set in which no member has any effect
given the others in any order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from calibration.effects.outcome import continuation_log_probability, outcome
from calibration.prompts.sequences import Batch
from calibration.runs.resume import LateRun
from calibration.runs.trial import Transform, transformed

Carries = Literal["compliance", "refusal"]
Reading = Callable[[Tensor, Batch], Tensor]


class Member(BaseModel):
    """A neuron of a gate: what it carries, and its linear effect given the members before it, nats."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int
    neuron: int
    carries: Carries
    effect: float


@dataclass(frozen=True)
class Requests:
    """Late runs over one kind of requests, and where the trial edit is active in each, bool [2B, T] or None for
    everywhere.
    """

    runs: Sequence[LateRun]
    active: Sequence[Tensor | None]


@dataclass
class Masks:
    """How far each late neuron is moved to its replacement value: `weights[layer]` [d_ff] in [0, 1]."""

    values: Mapping[int, Tensor]
    weights: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.weights:
            self.weights = {layer: torch.zeros_like(values) for layer, values in self.values.items()}

    def with_members(self, members: Sequence[Member]) -> "Masks":
        """The same values, with exactly the compliance-carrying members moved all the way."""
        fresh = Masks(self.values)
        for member in members:
            if member.carries == "compliance":
                fresh.weights[member.layer][member.neuron] = 1.0
        return fresh


def _replace(values: Tensor, weights: Tensor, active: Tensor | None) -> Transform:
    """h [2B, T, d_ff] -> h moved to `values` [d_ff] by `weights` ([d_ff] or [2B, 1, d_ff]) where active [2B, T]."""

    def transform(h: Tensor) -> Tensor:
        moved = weights.to(h.device) * (values.to(h) - h)
        return h + (moved if active is None else moved * active.to(h.device)[..., None])

    return transform


def joint_outcomes(requests: Requests, masks: Masks, reading: Reading = outcome) -> Tensor:
    """What `reading` makes of each request under the masked edit (Y by default), [B in all runs], nats, exactly."""
    collected = []
    with torch.inference_mode():
        for run, active in zip(requests.runs, requests.active, strict=True):
            transforms = {
                layer: _replace(values, masks.weights[layer], active)
                for layer, values in masks.values.items()
                if bool(masks.weights[layer].any())
            }
            with transformed(run.model, transforms):
                collected.append(reading(run.readout_logits(), run.batch))
    return torch.cat(collected)


def own_answer(logits: Tensor, batch: Batch) -> Tensor:
    """Mean per-token log-probability of the compliance continuation, [B], nats: of a benign request's own answer."""
    return continuation_log_probability(logits, batch).chunk(2)[0]


def linear_effects(requests: Requests, masks: Masks, reading: Reading = outcome) -> dict[int, Tensor]:
    """For each layer, [B, d_ff]: the linear controlled effect of moving each neuron to its value, given the masks.

    The effect is on what `reading` makes of the read-out logits [2B, C, V]: one for each request, [B]; Y by default.
    For a neuron that is moved already it is the effect of the move's last part, so both ends of a joint effect are
    seen.
    """
    collected: dict[int, list[Tensor]] = {layer: [] for layer in masks.values}
    for run, active in zip(requests.runs, requests.active, strict=True):
        rows = 2 * run.batch.size
        weights = {
            layer: masks.weights[layer].expand(rows, 1, -1).clone().requires_grad_() for layer in masks.values
        }  # [2B, 1, d_ff]
        transforms = {layer: _replace(masks.values[layer], weights[layer], active) for layer in weights}
        with torch.enable_grad(), transformed(run.model, transforms):
            total = reading(run.readout_logits(), run.batch).sum()
        gradients = torch.autograd.grad(total, list(weights.values()))
        for layer, gradient in zip(weights, gradients, strict=True):
            compliance_rows, refusal_rows = gradient[:, 0].chunk(2)  # [B, d_ff] each
            collected[layer].append(-(compliance_rows + refusal_rows))
    return {layer: torch.cat(parts) for layer, parts in collected.items()}


@dataclass(frozen=True)
class SelectionSettings:
    """How far a gate may grow.

    `tolerance` and `refusal_share` are the shares of the joint effect below which a neuron that carries compliance or
    refusal is left out; `benign_weight` times a neuron's effect on benign requests is taken off its effect on harmful
    ones.
    """

    max_neurons: int = 64
    tolerance: float = 0.002
    refusal_share: float = 0.015
    benign_weight: float = 1.0
    rounds: int = 32


def specific(effects: Tensor, benign: Requests, masks: Masks, settings: SelectionSettings) -> Tensor:
    """Effects on harmful requests [layers, d_ff], less the size of the effect on the model's answers to benign ones.

    An effect that is not larger than that is 0.
    """
    if settings.benign_weight == 0:
        return effects
    on_benign = torch.stack([e.pow(2).mean(0).sqrt() for e in linear_effects(benign, masks, own_answer).values()])
    return effects.sign() * (effects.abs() - settings.benign_weight * on_benign).clamp(min=0)


def _scores(harmful: Requests, benign: Requests, masks: Masks, settings: SelectionSettings) -> Tensor:
    """Specific linear effect of each late neuron on Y given the masks, [layers, d_ff]."""
    on_harmful = torch.stack([effects.mean(0) for effects in linear_effects(harmful, masks).values()])
    return specific(on_harmful, benign, masks, settings)


def grow_gate(
    harmful: Requests, benign: Requests, values: Mapping[int, Tensor], settings: SelectionSettings
) -> list[Member]:
    """Members in the order in which they were taken, compliance-carrying first, then the strong refusal-carrying ones.

    `values[layer]` [d_ff] are the replacement values. Empty where no neuron lowers Y on harmful requests more than it
    moves benign ones.
    """
    layers = sorted(values)
    empty = Masks({layer: values[layer] for layer in layers})
    members: list[Member] = []
    start = float(joint_outcomes(harmful, empty).mean())
    current = start
    first_scores = _scores(harmful, benign, empty, settings)  # [layers, d_ff]
    scores = first_scores
    out = torch.zeros_like(scores, dtype=torch.bool)  # taken, or tried and not borne out
    for _ in range(settings.rounds):
        open_scores = scores.masked_fill(out, 0.0)
        best = float(open_scores.max())
        if best <= max(0.0, settings.tolerance * (start - current)) or len(members) >= settings.max_neurons:
            break
        proposed = _round_members(open_scores, layers, best, settings.max_neurons - len(members))
        kept, current = borne_out(harmful, empty, members, proposed, current)
        for member in kept or proposed[:1]:
            out[layers.index(member.layer), member.neuron] = True
        if kept:
            members += kept
            scores = _scores(harmful, benign, empty.with_members(members), settings)
    for member in members:
        first_scores[layers.index(member.layer), member.neuron] = 0.0  # a neuron carries one thing in a gate
    return members + _refusal_members(first_scores, layers, start - current, settings, len(members))


def _round_members(scores: Tensor, layers: Sequence[int], best: float, room: int) -> list[Member]:
    """The neurons whose score is at least half of the round's best, best first."""
    flat = scores.flatten()
    order = flat.argsort(descending=True)[:room].tolist()
    width = scores.shape[1]
    return [
        Member(layer=layers[place // width], neuron=place % width, carries="compliance", effect=float(flat[place]))
        for place in order
        if float(flat[place]) >= best / 2
    ]


def borne_out(
    harmful: Requests,
    empty: Masks,
    members: list[Member],
    proposed: list[Member],
    current: float,
    promised: float = 0.25,
) -> tuple[list[Member], float]:
    """The longest halving of `proposed` that lowers Y jointly by the share `promised` of its effects, and Y then."""
    while proposed:
        after = float(joint_outcomes(harmful, empty.with_members(members + proposed)).mean())
        if current - after > promised * sum(member.effect for member in proposed):
            return proposed, after
        proposed = proposed[: len(proposed) // 2]
    return [], current


def _refusal_members(
    scores: Tensor, layers: Sequence[int], total: float, settings: SelectionSettings, taken: int
) -> list[Member]:
    """Neurons whose removal would raise Y by a large share of the joint effect: they carry refusal."""
    flat = scores.flatten()
    width = scores.shape[1]
    order = flat.argsort()[: max(0, settings.max_neurons - taken)].tolist()
    return [
        Member(layer=layers[place // width], neuron=place % width, carries="refusal", effect=float(flat[place]))
        for place in order
        if float(flat[place]) < -settings.refusal_share * total and total > 0
    ]
