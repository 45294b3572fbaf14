"""Complete a gate: the neurons that linear effects misjudge, measured exactly, first in and last in.

A neuron whose own effect bends (it is cancelled by another, or two of its effects oppose each other) is missed by
gradients. So those late neurons with the largest linear effects, of either sign and at either end, are measured exactly
on a few requests: alone, and with every mediator found so far removed. The mean of the two says what a neuron carries:
compliance, and it joins the gate if its joint effect bears it out; or refusal, and it joins to be scaled up
(`balance.py` has the one exception). It costs two exact passes over a shortlist, which is what exactness can be had
for on every late layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from calibration.effects.exact.late_trace import record_trace
from calibration.effects.exact.suffix import traced_effects
from calibration.prompts.sequences import Batch
from calibration.search.selection import (
    Masks,
    Member,
    Requests,
    SelectionSettings,
    borne_out,
    joint_outcomes,
    linear_effects,
    specific,
)
from guard.spec.edit_spec import LayerEdit

SHORTLIST = 192
REQUESTS = 24
SHARE = 0.008


def first_requests(batch: Batch, count: int) -> Batch:
    """The first `count` requests of a batch, both rows of each."""
    kept = min(count, batch.size)
    rows = torch.cat([torch.arange(kept), batch.size + torch.arange(kept)]).to(batch.input_ids.device)  # [2 kept]
    return replace(
        batch,
        input_ids=batch.input_ids[rows],
        attention_mask=batch.attention_mask[rows],
        position_ids=batch.position_ids[rows],
        continuation_mask=batch.continuation_mask[rows],
    )


def _held(members: Sequence[Member], values: Mapping[int, Tensor]) -> tuple[LayerEdit, ...]:
    """The edits that move all members to their replacement values, so that none hides what another does."""
    edits = []
    for layer in sorted(values):
        neurons = sorted(m.neuron for m in members if m.layer == layer)
        if neurons:
            held = tuple(values[layer][neurons].float().tolist())
            edits.append(
                LayerEdit(layer=layer, neurons=tuple(neurons), scale=(1.0,) * len(neurons), lower=held, upper=held)
            )
    return tuple(edits)


def exact_weights(
    harmful: Requests, members: Sequence[Member], values: Mapping[int, Tensor], shortlist: Tensor
) -> Tensor:
    """Mean of exact first-in and last-in effects on Y, [layers, d_ff] nats; 0 outside `shortlist` (bool, alike)."""
    layers, run = sorted(values), harmful.runs[0]
    batch = first_requests(run.batch, REQUESTS)
    found = torch.zeros(shortlist.shape, dtype=torch.float32, device=shortlist.device)
    for edits in ((), _held(members, values)):
        trace = record_trace(run.model, batch, layers[0], edits=edits)
        for place, layer in enumerate(layers):
            neurons = shortlist[place].nonzero().flatten()  # [n]
            if len(neurons):
                effects = traced_effects(trace, layer, neurons, values[layer][neurons])  # [B, n]
                found[place, neurons] += effects.float().mean(0) / 2
    return found


def complete_gate(
    harmful: Requests,
    benign: Requests,
    members: Sequence[Member],
    values: Mapping[int, Tensor],
    settings: SelectionSettings,
) -> list[Member]:
    """`members` (of an unconditional gate), with the neurons added that the exact weights name, strongest first."""
    layers = sorted(values)
    masks = Masks(values).with_members(members)
    ends = [torch.stack([e.mean(0).abs() for e in linear_effects(harmful, m).values()]) for m in (Masks(values), masks)]
    linear = torch.maximum(*ends)  # [layers, d_ff]
    for member in members:
        linear[layers.index(member.layer), member.neuron] = 0.0
    shortlist = torch.zeros_like(linear, dtype=torch.bool)
    shortlist.view(-1)[linear.flatten().topk(min(SHORTLIST, linear.numel())).indices] = True
    weights = exact_weights(harmful, members, values, shortlist)
    for member in members:
        weights[layers.index(member.layer), member.neuron] = 0.0
    start, current = (float(outcomes) for outcomes in _ends(harmful, values, members))
    enough = SHARE * max(0.0, start - current)
    specific_weights = specific(weights, benign, masks, settings)
    order = weights.abs().flatten().argsort(descending=True).tolist()
    grown = list(members)
    width = weights.shape[1]
    for place in order[: max(0, settings.max_neurons - len(members))]:
        weight = float(weights.flatten()[place])
        if abs(weight) < enough or enough == 0:
            break
        layer, neuron = layers[place // width], place % width
        if weight < 0:
            grown.append(Member(layer=layer, neuron=neuron, carries="refusal", effect=weight))
        if float(specific_weights.flatten()[place]) <= 0.0:
            continue
        member = Member(layer=layer, neuron=neuron, carries="compliance", effect=weight)
        kept, current = borne_out(harmful, Masks(values), grown, [member], current, promised=0.0)
        grown += kept
    return [m for m in grown if m.carries == "compliance"] + [m for m in grown if m.carries == "refusal"]


def _ends(harmful: Requests, values: Mapping[int, Tensor], members: Sequence[Member]) -> tuple[Tensor, Tensor]:
    empty = Masks(values)
    return joint_outcomes(harmful, empty).mean(), joint_outcomes(harmful, empty.with_members(members)).mean()
