"""Patches of layers and modules with their controls: the same patch at another norm, and random ones of its norm.

All at the tokens that line up, in both directions: the reference run with what the harmful run writes, and the harmful
run with what the reference run writes. An effect here is the mean of the two, (NIE + TNIE) / 2, so that neither
redundancy nor saturation on one side decides. A norm is that of the patch before any norm or multiplier that the
module's output passes on its way to the stream.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor, nn

from calibration.analyses.units import random_directions
from calibration.effects.mediation import aligned, all_mediators
from calibration.effects.outcome import outcome
from calibration.prompts.sequences import Batch
from calibration.runs.interventions import Kind, Mediator, patching, recording
from calibration.runs.resume import LateRun, record


@dataclass(frozen=True)
class ModuleEffects:
    """One mediator's effects for each contrast pair, each [pairs] float64 on the CPU: nats, and norms as they are."""

    effect: Tensor
    equal_norm: Tensor
    random_direction: Tensor
    impact: Tensor
    norm: Tensor

    @classmethod
    def joined(cls, parts: Sequence["ModuleEffects"]) -> "ModuleEffects":
        """The effects of several batches as those of one."""
        return cls(*(torch.cat(values) for values in zip(*(astuple(part) for part in parts), strict=True)))


@dataclass(frozen=True)
class _Side:
    """One run of a contrast pair before a layer: `sign` makes its effects speak for compliance."""

    run: LateRun
    sign: float
    logits: Tensor
    own: Mapping[Mediator, Tensor]
    other: Mapping[Mediator, Tensor]

    def effect(self, logits: Tensor) -> Tensor:
        """What the intervention moves towards compliance, [B]."""
        batch = self.run.batch
        moved: Tensor = self.sign * (outcome(logits, batch) - outcome(self.logits, batch))
        return moved

    def patched(self, values: Mapping[Mediator, Tensor]) -> Tensor:
        """Read-out logits with mediators at `values`, [2B, C, V]."""
        with patching(self.run.model, self.run.batch, values):
            return self.run.readout_logits()


def impact(base: Tensor, logits: Tensor, batch: Batch) -> Tensor:
    """L2 norm of the change of all log-probabilities, averaged over the tokens read out, both rows added: [B]."""
    change = (logits.float().log_softmax(-1) - base.float().log_softmax(-1)).norm(dim=-1)  # [2B, C]
    by_row = (change * batch.continuation_mask).sum(1) / batch.continuation_mask.sum(1)
    both: Tensor = by_row[: batch.size] + by_row[batch.size :]
    return both


def patch_norm(change: Tensor, batch: Batch) -> Tensor:
    """L2 norm of a patch [2B, T_edited, width] over a request's real tokens and both rows, [B] float32, on the device
    of the batch.
    """
    by_row = (change.float().square().sum(-1).to(batch.reading.device) * batch.reading).sum(-1)
    return (by_row[: batch.size] + by_row[batch.size :]).sqrt()


def _sides(
    reference: Batch, harmful: Batch, runs: tuple[LateRun, LateRun], mediators: Sequence[Mediator]
) -> list[_Side]:
    """Both runs with every mediator's own and other value."""
    aligned(reference, harmful)
    found = []
    for run in runs:
        with recording(run.model, run.batch, mediators) as values:
            found.append((run, run.readout_logits(), values))
    (plain, plain_logits, of_plain), (harm, harm_logits, of_harm) = found
    return [_Side(plain, 1.0, plain_logits, of_plain, of_harm), _Side(harm, -1.0, harm_logits, of_harm, of_plain)]


@torch.inference_mode()
def module_effects(
    model: nn.Module, reference: Batch, harmful: Batch, generator: torch.Generator
) -> dict[Mediator, ModuleEffects]:
    """The effects of every layer, attention and MLP on the pairs of two aligned batches, with their controls.

    The common norm of a pair is the middle one of its patches of attention and MLP; random directions are drawn for
    each pair, token and side.
    """
    mediators = all_mediators(model)
    sides = _sides(reference, harmful, (record(model, reference, 0), record(model, harmful, 0)), mediators)
    norms = {m: patch_norm(sides[0].other[m] - sides[0].own[m], harmful) for m in mediators}
    modules = torch.stack([norm for mediator, norm in norms.items() if mediator.kind != "layer"])
    common = modules.median(dim=0).values  # [B]
    found: dict[Mediator, ModuleEffects] = {}
    for mediator in mediators:
        sides = [_before(side, mediator.layer) for side in sides]
        factor = torch.where(norms[mediator] > 0, common / norms[mediator], torch.zeros_like(common))
        parts = [_controlled(side, mediator, factor, generator) for side in sides]
        effect, equal_norm, random_direction, total = (sum(pair) / 2 for pair in zip(*parts, strict=True))
        values = (effect, equal_norm, random_direction, total, norms[mediator])
        found[mediator] = ModuleEffects(*(torch.as_tensor(each).double().cpu() for each in values))
    return found


def _before(side: _Side, layer: int) -> _Side:
    """The same side with its run advanced to the entrance of `layer`."""
    run = side.run
    while run.first_layer < layer:
        run = run.advanced()
    return _Side(run, side.sign, side.logits, side.own, side.other)


def _controlled(
    side: _Side, mediator: Mediator, factor: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Effect of the patch, of the patch times `factor` [B], of a random one of its norm, and its impact, each [B]."""
    own = side.own[mediator]
    change = side.other[mediator] - own  # [2B, T_edited, d_model]
    by_row = factor.repeat(2)[:, None, None].to(change)
    lengths = change.norm(dim=-1, keepdim=True)
    whole = side.patched({mediator: side.other[mediator]})
    scaled = side.patched({mediator: own + by_row * change})
    random = side.patched({mediator: own + lengths * random_directions(change, generator)})
    return side.effect(whole), side.effect(scaled), side.effect(random), impact(side.logits, whole, side.run.batch)


@torch.inference_mode()
def joint_effects(plain: LateRun, harm: LateRun, kind: Kind, held: Kind | None) -> Tensor:
    """(NIE + TNIE) / 2 of all modules of `kind` from the runs' first layer on, patched together, [B] nats.

    The modules of kind `held` stay at their values in the run, so that only what `kind` writes itself counts.
    """
    layers = range(plain.first_layer, plain.first_layer + len(plain.arguments))
    mediators = [Mediator(each, layer) for layer in layers for each in (kind, held) if each is not None]
    total = torch.zeros(harm.batch.size, dtype=torch.float64)
    for side in _sides(plain.batch, harm.batch, (plain, harm), mediators):
        values = {m: (side.other if m.kind == kind else side.own)[m] for m in mediators}
        total += side.effect(side.patched(values)).double().cpu() / 2
    return total
