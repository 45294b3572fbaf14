"""One method at one strength, how it measures on validation requests, and what it does to held-out ones.

Neurons that are ablated and vectors that are added run through the same full forward passes here, so that a difference
between methods is none between ways of measuring. It costs depth that our own search saves.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.localisation.subject import Subject
from calibration.effects.outcome import full_sequence_kl, readout_logits
from calibration.effects.statistics import bootstrap_estimate, wilson_estimate
from calibration.evidence.verdict import Output, outputs
from calibration.judging.behaviour import Behaviour
from calibration.prompts.sequences import Batch
from calibration.search.bounds import Budget, Measured, measured_on
from calibration.search.gate import SplitBatches
from guard.spec.measures import Estimate, Frozen

Condition = Callable[[nn.Module, Batch], Tensor]
"""On which requests of a batch a method acts at all, from their prompts alone: bool [B]."""


@dataclass(frozen=True)
class Contender:
    """A method at one `strength` (in words): what it puts on the model, and on which requests (None: on all)."""

    strength: str
    installed: Callable[[], AbstractContextManager[object]]
    condition: Condition | None = None


@torch.inference_mode()
def logits_under(model: nn.Module, batch: Batch, contender: Contender) -> Tensor:
    """Read-out logits [2B, C, V] with the contender on the model; where its condition fails, without."""
    with contender.installed():
        changed = readout_logits(model, batch)
    if contender.condition is None:
        return changed
    acts = contender.condition(model, batch).repeat(2)[:, None, None]  # [2B, 1, 1]
    return torch.where(acts, changed, readout_logits(model, batch))


def measured(model: nn.Module, split: SplitBatches, reference: Sequence[Tensor], contender: Contender) -> Measured:
    """The contender on a split; `reference` are the benign batches' read-out logits without it."""

    def under(batches: Sequence[Batch]) -> Iterator[tuple[Tensor, Batch]]:
        return ((logits_under(model, batch, contender), batch) for batch in batches)

    return measured_on(under(split.harmful), under(split.benign), reference)


@torch.inference_mode()
def strongest(
    model: nn.Module, split: SplitBatches, candidates: Sequence[Contender], budget: Budget
) -> Contender | None:
    """The candidate with the lowest objective on a split of validation requests; None where none keeps the budget."""
    reference = [readout_logits(model, batch) for batch in split.benign]
    figures = [measured(model, split, reference, candidate) for candidate in candidates]
    kept = [place for place, figure in enumerate(figures) if figure.within(budget)]
    return candidates[min(kept, key=lambda place: figures[place].objective(budget))] if kept else None


class HeldOutFigures(Frozen):
    """Held-out rates and benign KL (nats per token) of one method; n is the number of requests."""

    harmful_compliance: Estimate
    harmful_garbled: Estimate
    benign_refusal: Estimate
    benign_kl: Estimate


def on_held_out(subject: Subject, contender: Contender | None, *, seed: int) -> HeldOutFigures:
    """What the contender (None: nothing) does to the held-out requests, judged as a verdict judges."""
    exam, split = subject.exam, subject.material.held_out
    harmful = _outputs(subject, exam.harmful, subject.own[0], split.harmful, contender)
    benign = _outputs(subject, exam.benign, subject.own[1], split.benign, contender)

    def rate(judged: Sequence[Output], kind: Behaviour) -> Estimate:
        return wilson_estimate(sum(output.behaviour is kind for output in judged), len(judged))

    divergences = torch.zeros(len(benign)) if contender is None else _divergence(subject, contender)
    return HeldOutFigures(
        harmful_compliance=rate(harmful, Behaviour.COMPLIED),
        harmful_garbled=rate(harmful, Behaviour.GARBLED),
        benign_refusal=rate(benign, Behaviour.REFUSED),
        benign_kl=bootstrap_estimate(divergences.double().cpu(), seed=seed),
    )


def _outputs(
    subject: Subject,
    prompts: Sequence[tuple[int, ...]],
    own: list[Output],
    batches: Sequence[Batch],
    contender: Contender | None,
) -> list[Output]:
    """Outputs under the contender; requests on which it does not act keep the model's own."""
    if contender is None:
        return own
    acts = [True] * len(prompts)
    if contender.condition is not None:
        acts = torch.cat([contender.condition(subject.model, batch) for batch in batches]).tolist()
    chosen = [prompt for prompt, acting in zip(prompts, acts, strict=True) if acting]
    changed = iter(outputs(subject.exam, chosen, contender.installed, subject.limit) if chosen else [])
    return [next(changed) if acting else output for output, acting in zip(own, acts, strict=True)]


@torch.inference_mode()
def _divergence(subject: Subject, contender: Contender) -> Tensor:
    """KL(unguarded || under the contender) of each held-out benign request over its own answer, [N], nats."""
    found = []
    for batch in subject.material.held_out.benign:
        own = slice(0, batch.size)
        base, changed = readout_logits(subject.model, batch), logits_under(subject.model, batch, contender)
        found.append(full_sequence_kl(base[own], changed[own], batch.continuation_mask[own])[0])
    return torch.cat(found)
