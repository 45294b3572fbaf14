"""Which neurons enter a gate.

Effects do not add up, so neurons are not ranked once: the gate grows in rounds, and each round measures what every
other neuron would add *given* the gate so far. A round costs one forward and one backward pass over the late layers
(the linear effect of replacing each activation, per request), and its neurons are kept only if the joint effect, run
exactly, bears them out. What counts is the effect on harmful requests beyond the effect on benign ones; neurons that
carry refusal are named too, and never switched off. Traded away: a set in which no member has any effect given the
others in any order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from calibration.outcome import outcome
from calibration.resume import LateRun
from calibration.trial import Transform, transformed

Carries = Literal["compliance", "refusal"]


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
        moved = weights * (values.to(h.dtype) - h)
        return h + (moved if active is None else moved * active[..., None])

    return transform


def joint_outcomes(requests: Requests, masks: Masks) -> Tensor:
    """Y of each request under the masked edit, [B in all runs], nats, exactly."""
    collected = []
    with torch.inference_mode():
        for run, active in zip(requests.runs, requests.active, strict=True):
            transforms = {
                layer: _replace(values, masks.weights[layer], active)
                for layer, values in masks.values.items()
                if bool(masks.weights[layer].any())
            }
            with transformed(run.model, transforms):
                collected.append(outcome(run.readout_logits(), run.batch))
    return torch.cat(collected)


def linear_effects(requests: Requests, masks: Masks) -> dict[int, Tensor]:
    """For each layer, [B, d_ff]: the linear controlled effect on Y of moving each neuron to its value, given the masks.

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
            total = outcome(run.readout_logits(), run.batch).sum()
        gradients = torch.autograd.grad(total, list(weights.values()))
        for layer, gradient in zip(weights, gradients, strict=True):
            compliance_rows, refusal_rows = gradient[:, 0].chunk(2)  # [B, d_ff] each
            collected[layer].append(-(compliance_rows + refusal_rows))
    return {layer: torch.cat(parts) for layer, parts in collected.items()}


@dataclass(frozen=True)
class SelectionSettings:
    """How far a gate may grow: `tolerance` is the share of the joint effect below which a neuron is left out."""

    max_neurons: int = 64
    tolerance: float = 0.004
    refusal_share: float = 0.1
    benign_weight: float = 1.0
    rounds: int = 24


def _scores(harmful: Requests, benign: Requests, masks: Masks, settings: SelectionSettings) -> Tensor:
    """Specific effect of each late neuron given the masks, [layers, d_ff]: on harmful requests, less its size on
    benign.
    """
    on_harmful = torch.stack([effects.mean(0) for effects in linear_effects(harmful, masks).values()])
    if settings.benign_weight == 0:
        return on_harmful
    on_benign = torch.stack([effects.pow(2).mean(0).sqrt() for effects in linear_effects(benign, masks).values()])
    return on_harmful.sign() * (on_harmful.abs() - settings.benign_weight * on_benign).clamp(min=0)


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
    start = joint_outcomes(harmful, empty).mean()
    first_scores = _scores(harmful, benign, empty, settings)  # [layers, d_ff]
    current = start
    for _ in range(settings.rounds):
        masks = empty.with_members(members)
        scores = _scores(harmful, benign, masks, settings)
        taken = torch.stack([masks.weights[layer] for layer in layers]).bool()
        scores = scores.masked_fill(taken, 0.0)
        best = scores.max()
        if best <= max(0.0, settings.tolerance * float(start - current)) or len(members) >= settings.max_neurons:
            break
        round_ = _round_members(scores, layers, float(best), settings.max_neurons - len(members))
        kept, current_after = _borne_out(harmful, empty, members, round_, float(current))
        if not kept:
            break
        members, current = members + kept, torch.tensor(current_after)
    total = float(start - current)
    for member in members:
        first_scores[layers.index(member.layer), member.neuron] = 0.0  # a neuron carries one thing in a gate
    return members + _refusal_members(first_scores, layers, total, settings, len(members))


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


def _borne_out(
    harmful: Requests, empty: Masks, members: list[Member], round_: list[Member], current: float
) -> tuple[list[Member], float]:
    """The longest halving of the round that lowers Y jointly by a quarter or more of what its effects promise."""
    while round_:
        after = float(joint_outcomes(harmful, empty.with_members(members + round_)).mean())
        if current - after >= 0.25 * sum(member.effect for member in round_):
            return round_, after
        round_ = round_[: len(round_) // 2]
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
