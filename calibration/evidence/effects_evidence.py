"""The evidence that travels in a spec: effects by layer and module, by neuron, and by size of the set.

Mediation is measured on the calibration pairs before any gate is known; the neurons of the gate found are then
measured one by one, first in (alone) and last in (all the others edited already), exactly, since a redundant neuron
shows only in one of the two. P-values are of sign-flip permutations over pairs, adjusted over the neurons tested.
"""

from collections.abc import Callable, Sequence

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from calibration.effects.mediation import all_mediators, mediator_effects
from calibration.effects.outcome import outcome, readout_logits
from calibration.effects.statistics import (
    benjamini_hochberg,
    bootstrap_estimate,
    bootstrap_estimates,
    sign_flip_p_values,
)
from calibration.prompts.sequences import Batch
from calibration.runs.trial import edit_transforms, transformed
from calibration.search.bounds import build_edits
from calibration.search.gate import SEARCHED, Gate, Late, SplitBatches
from calibration.search.selection import Member
from guard.spec.edit_spec import Estimate, LayerEdit, MediatorEffect, NeuronEvidence, SetSize


class Mediation(BaseModel):
    """Y on both sides of the contrast, the total effect, and what passes through each layer and module."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome_harmful: Estimate
    outcome_reference: Estimate
    total_effect: Estimate
    mediators: tuple[MediatorEffect, ...]


def mediation_evidence(
    model: nn.Module, split: SplitBatches, *, seed: int, progress: Callable[[int], None] | None = None
) -> Mediation:
    """Natural indirect effects of every layer, attention and MLP, over the template tail and forced response together,
    and of every layer at the last prompt token and over the response alone.
    """
    wanted = all_mediators(model) + all_mediators(model, kinds=("layer",), tokens=("last_prompt", "response"))
    pairs = list(zip(split.reference, split.harmful, strict=True))
    found = mediator_effects(model, pairs, wanted, progress)
    nie = bootstrap_estimates(torch.stack([found[m].natural_indirect for m in wanted], 1).double().cpu(), seed=seed)
    tnie = bootstrap_estimates(
        torch.stack([found[m].total_natural_indirect for m in wanted], 1).double().cpu(), seed=seed
    )
    first = found[wanted[0]]
    return Mediation(
        outcome_harmful=_outcome_estimate(model, split.harmful, seed),
        outcome_reference=_outcome_estimate(model, split.reference, seed),
        total_effect=bootstrap_estimate(first.total.double().cpu(), seed=seed),
        mediators=tuple(
            MediatorEffect(
                layer=mediator.layer,
                kind=mediator.kind,  # type: ignore[arg-type]  # never neurons: all_mediators makes layers and modules
                tokens=str(mediator.tokens),
                natural_indirect_effect=indirect,
                total_natural_indirect_effect=total,
            )
            for mediator, indirect, total in zip(wanted, nie, tnie, strict=True)
        ),
    )


@torch.inference_mode()
def _outcome_estimate(model: nn.Module, batches: Sequence[Batch], seed: int) -> Estimate:
    found = torch.cat([outcome(readout_logits(model, batch), batch) for batch in batches])
    return bootstrap_estimate(found.double().cpu(), seed=seed)


def _outcomes(gate: Gate, late: Late, members: Sequence[Member]) -> torch.Tensor:
    """Y of each harmful calibration request under the gate's own bounds for `members` alone, [pairs]."""
    harmful = late.calibration["harmful"].where(gate.trigger, limit=SEARCHED)
    if not members or gate.searched is None:
        edits: tuple[LayerEdit, ...] = ()
    else:
        edits = build_edits(members, late.activations, gate.searched.bounds)
    found = []
    with torch.inference_mode():
        for run, active in zip(harmful.runs, harmful.active, strict=True):
            with transformed(run.model, edit_transforms(edits, run.residual.device, active)):
                found.append(outcome(run.readout_logits(), run.batch))
    return torch.cat(found).double().cpu()


def neuron_evidence(
    gate: Gate, late: Late, *, seed: int, progress: Callable[[int], None] | None = None
) -> tuple[NeuronEvidence, ...]:
    """Controlled effects of each member's own edit, first in and last in, over the calibration pairs."""
    members = gate.members
    if not members:
        return ()
    none, every = _outcomes(gate, late, ()), _outcomes(gate, late, members)
    first, last = [], []
    for place, member in enumerate(members):
        first.append(none - _outcomes(gate, late, (member,)))
        last.append(_outcomes(gate, late, members[:place] + members[place + 1 :]) - every)
        if progress is not None:
            progress(1)
    first_in, last_in = torch.stack(first, 1), torch.stack(last, 1)  # [pairs, members]
    average = ((first_in + last_in) / 2).numpy()
    adjusted = benjamini_hochberg(sign_flip_p_values(average, seed=seed))
    measured = zip(
        members,
        bootstrap_estimates(first_in, seed=seed),
        bootstrap_estimates(last_in, seed=seed),
        adjusted,
        strict=True,
    )
    return tuple(
        NeuronEvidence(layer=member.layer, neuron=member.neuron, first_in=alone, last_in=final, p_value=float(p))
        for member, alone, final, p in measured
    )


def set_sizes(gate: Gate, late: Late) -> tuple[SetSize, ...]:
    """Joint controlled effect of the first 1, 2, 4, ... members in the order in which they were taken."""
    count = len(gate.members)
    sizes = sorted({*(2**power for power in range(count.bit_length())), count} - {0})
    none = _outcomes(gate, late, ())
    return tuple(
        SetSize(size=size, effect=float((none - _outcomes(gate, late, gate.members[:size])).mean())) for size in sizes
    )
