"""Three plans for harm that has several gates, on held-out requests: which does least harm within the budget.

The spec has one trigger. So a trigger for each cluster cannot be written down; it is measured, so that the evidence
says what that costs. All plans hold their neurons by the bounds that were found for the gate.
"""

from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.analyses.subject import Subject
from calibration.effects.outcome import full_sequence_kl, log_odds, outcome
from calibration.effects.statistics import bootstrap_estimate
from calibration.runs.stage import Kept, keep
from calibration.runs.trial import Transform, edit_transforms, transformed
from calibration.search.bounds import build_edits
from calibration.search.gate import ALPHA
from calibration.search.selection import Member
from calibration.search.trigger import TokenStates, entering_states, fit_trigger
from guard.analyses.shards import Plan, Tried
from guard.spec.edit import LayerEdit, Trigger

Parts = Sequence[tuple[Sequence[LayerEdit], Trigger | None]]


def try_plans(
    subject: Subject, gates: Sequence[Sequence[Member]], labels: NDArray[np.int64], fresh_labels: NDArray[np.int64]
) -> tuple[tuple[Tried, ...], Plan]:
    """Each plan on held-out requests, and the better one; `labels` are of calibration, `fresh_labels` of validation."""
    searched = subject.gate.searched
    if searched is None:
        return (), "found"
    activations, bounds = subject.late.activations, searched.bounds
    union = {(member.layer, member.neuron): member for gate in gates for member in gate}
    plans: dict[Plan, Parts] = {
        "found": [(subject.edits, subject.gate.trigger)],
        "union": [(build_edits(tuple(union.values()), activations, bounds), subject.gate.trigger)],
        "by cluster": [
            (build_edits(gate, activations, bounds), cluster_trigger(subject, labels == label, fresh_labels == label))
            for label, gate in enumerate(gates)
        ],
    }
    split, first = subject.material.held_out, subject.late.layers[0]
    harmful, benign = (keep(subject.model, batches, first) for batches in (split.harmful, split.benign))
    tried = tuple(_tried(plan, parts, harmful, benign, subject.settings.seed) for plan, parts in plans.items())
    within = [each for each in tried if each.benign_kl.value <= subject.settings.budget.kl]
    best = (
        min(within, key=lambda each: each.harmful_outcome.value)
        if within
        else min(tried, key=lambda each: each.benign_kl.value)
    )
    return tried, best.plan


def cluster_trigger(subject: Subject, wanted: NDArray[np.bool_], fresh: NDArray[np.bool_]) -> Trigger:
    """The trigger that tells one cluster's requests from benign ones, at the threshold of `find_trigger`."""
    late = subject.late
    layers = range(1, late.layers[0] + 1)

    def states(split: dict[str, Kept], kind: str, mask: NDArray[np.bool_] | None) -> dict[int, TokenStates]:
        found = entering_states(subject.model, split[kind].batches, layers)
        rows = slice(None) if mask is None else mask.nonzero()[0]
        return {
            layer: TokenStates(each.states[rows], each.mask[rows], each.decisive[rows]) for layer, each in found.items()
        }

    return fit_trigger(
        states(late.calibration, "harmful", wanted),
        states(late.calibration, "benign", None),
        states(late.validation, "harmful", fresh),
        states(late.validation, "benign", None),
        alpha=ALPHA,
    ).trigger


def _tried(plan: Plan, parts: Parts, harmful: Kept, benign: Kept, seed: int) -> Tried:
    """Run all `parts` of a plan at once, each where its own trigger is active."""
    lean, odds = [], []
    for logits, place in _edited(parts, harmful):
        batch = harmful.batches[place]
        lean.append(outcome(logits, batch))
        odds.append(log_odds(logits, batch))
    divergences = []
    for logits, place in _edited(parts, benign):
        batch = benign.batches[place]
        own = slice(0, batch.size)
        with torch.inference_mode():
            base = benign.runs[place].readout_logits()
        divergences.append(full_sequence_kl(base[own], logits[own], batch.continuation_mask[own])[0])
    return Tried(
        plan=plan,
        harmful_outcome=bootstrap_estimate(torch.cat(lean).double().cpu(), seed=seed),
        lean_to_refusal=float((torch.cat(odds) < 0).float().mean()),
        benign_kl=bootstrap_estimate(torch.cat(divergences).double().cpu(), seed=seed),
    )


@torch.inference_mode()
def _edited(parts: Parts, kept: Kept) -> Iterator[tuple[Tensor, int]]:
    """The read-out logits [2B, C, V] of each run under all `parts`, and its place."""
    active = [kept.where(trigger).active for _, trigger in parts]
    for place, run in enumerate(kept.runs):
        by_layer: dict[int, list[Transform]] = {}
        for (edits, _), where in zip(parts, active, strict=True):
            for layer, transform in edit_transforms(edits, run.residual.device, where[place]).items():
                by_layer.setdefault(layer, []).append(transform)
        with transformed(run.model, {layer: _one_after_other(several) for layer, several in by_layer.items()}):
            logits = run.readout_logits()
        yield logits, place


def _one_after_other(transforms: Sequence[Transform]) -> Transform:
    return lambda h: reduce(lambda value, transform: transform(value), transforms, h)
