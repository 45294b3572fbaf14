"""Causal mediation: how much of the change from x to x* passes through a mediator.

With Y(x*, m(x)) the outcome of the harmful run whose mediator has its value from the reference run (Pearl 2001; Vig et
al. 2020), per contrast pair and in nats:

    total effect                     TE   = Y(x*) - Y(x)
    pure natural indirect effect     NIE  = Y(x, m(x*)) - Y(x)          denoising
    total natural indirect effect    TNIE = Y(x*) - Y(x*, m(x))         noising
    natural direct effect            NDE  = Y(x*, m(x)) - Y(x)          TE = NDE + TNIE
    controlled effect                CE(e) = Y(x*) - Y(x*, do(edit e))

Both kinds of contrast are measured alike; only the pairs differ. Each intervention is run, not estimated, but from the
mediator's layer on: what comes before it is the same in every run, and is kept. Intervals are `statistics.py`'s.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import torch
from torch import Tensor, nn

from calibration.effects.outcome import outcome, readout_logits
from calibration.prompts.sequences import Batch
from calibration.runs.interventions import Kind, Mediator, TokenGroup, editing, patching, recording
from calibration.runs.processes import in_shares
from calibration.runs.resume import LateRun, record
from guard.errors import NeuronGuardError
from guard.families.architectures import architecture_of
from guard.spec.edit_spec import LayerEdit

MEDIATOR_KINDS: tuple[Kind, ...] = ("layer", "attention", "mlp")


@dataclass(frozen=True)
class PairEffects:
    """Effects of one mediator for each contrast pair, each [B] in nats."""

    total: Tensor
    natural_indirect: Tensor
    total_natural_indirect: Tensor
    natural_direct: Tensor

    @classmethod
    def joined(cls, parts: Sequence["PairEffects"]) -> "PairEffects":
        """The effects on the pairs of all `parts`, one after the other."""
        names = ("total", "natural_indirect", "total_natural_indirect", "natural_direct")
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def all_mediators(
    model: nn.Module,
    layers: Iterable[int] | None = None,
    kinds: Sequence[Kind] = MEDIATOR_KINDS,
    tokens: Sequence[TokenGroup] = ("edited",),
) -> list[Mediator]:
    """Every mediator of the given kinds at the given token groups, layer by layer (all layers if None)."""
    chosen = range(architecture_of(model).num_layers(model)) if layers is None else layers
    return [Mediator(kind, layer, tokens=group) for layer in chosen for kind in kinds for group in tokens]


def aligned(reference: Batch, harmful: Batch) -> None:
    """Raise NeuronGuardError unless column t means the same in both batches."""
    same = (
        reference.prompt_width == harmful.prompt_width
        and reference.tail == harmful.tail
        and torch.equal(reference.targets, harmful.targets)
        and torch.equal(reference.continuation_mask, harmful.continuation_mask)
    )
    if not same:
        raise NeuronGuardError(
            "the two batches of a contrast pair do not line up: collate both with one prompt_width, one tail and the "
            "same continuations."
        )


def _from_each_layer(run: LateRun, layers: Iterable[int]) -> Iterator[tuple[int, LateRun]]:
    """The same run as it enters each of `layers` (ascending), one layer stepped at a time."""
    for layer in layers:
        while run.first_layer < layer:
            run = run.advanced()
        yield layer, run


def _patched_run(run: LateRun, mediator: Mediator, values: Tensor) -> Tensor:
    """Y of `run` with the mediator at `values`, [B]."""
    with patching(run.model, run.batch, {mediator: values}):
        return outcome(run.readout_logits(), run.batch)


@torch.inference_mode()
def pair_effects(
    model: nn.Module, reference: Batch, harmful: Batch, mediators: Sequence[Mediator]
) -> dict[Mediator, PairEffects]:
    """The effects of each mediator on each pair (x, x*) of two aligned batches, by exact interventions."""
    aligned(reference, harmful)
    ordered = sorted(mediators, key=attrgetter("layer"))
    by_layer = {layer: list(group) for layer, group in groupby(ordered, key=attrgetter("layer"))}
    if not by_layer:
        return {}
    first = min(by_layer)
    plain, harm = record(model, reference, first), record(model, harmful, first)
    found: dict[Mediator, PairEffects] = {}
    entering = zip(_from_each_layer(plain, by_layer), _from_each_layer(harm, by_layer), strict=True)
    for (layer, plain_here), (_, harm_here) in entering:
        at_layer = by_layer[layer]
        with recording(model, reference, at_layer) as plain_values:
            y_plain = outcome(plain_here.readout_logits(), reference)
        with recording(model, harmful, at_layer) as harm_values:
            y_harm = outcome(harm_here.readout_logits(), harmful)
        for mediator in at_layer:
            denoised = _patched_run(plain_here, mediator, harm_values[mediator])
            noised = _patched_run(harm_here, mediator, plain_values[mediator])
            found[mediator] = PairEffects(
                total=y_harm - y_plain,
                natural_indirect=denoised - y_plain,
                total_natural_indirect=y_harm - noised,
                natural_direct=noised - y_plain,
            )
    return {mediator: found[mediator] for mediator in mediators}


def mediator_effects(
    model: nn.Module,
    pairs: Sequence[tuple[Batch, Batch]],
    mediators: Sequence[Mediator],
    progress: Callable[[int], None] | None = None,
) -> dict[Mediator, PairEffects]:
    """`pair_effects` over batches of pairs (reference, harmful), concatenated: each value is [pairs in all batches].

    `progress` is told the number of pairs done after each batch.
    """

    def measured(some: Sequence[tuple[Batch, Batch]]) -> list[dict[Mediator, PairEffects]]:
        found = []
        for reference, harmful in some:
            found.append(pair_effects(model, reference, harmful, mediators))
            if progress is not None:
                progress(harmful.size)
        return found

    parts = in_shares(pairs, measured)
    return {mediator: PairEffects.joined([part[mediator] for part in parts]) for mediator in mediators}


@torch.inference_mode()
def controlled_effect(
    model: nn.Module, harmful: Batch, edits: Sequence[LayerEdit], active: Tensor | None = None
) -> Tensor:
    """CE(e) = Y(x*) - Y(x*, do(edit e)), [B] nats; `active` bool [2B, P + C], every token if None."""
    base = outcome(readout_logits(model, harmful), harmful)
    with editing(model, harmful, edits, active):
        return base - outcome(readout_logits(model, harmful), harmful)
