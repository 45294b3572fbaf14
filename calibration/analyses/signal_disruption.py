"""A second kind of edit: the harm signal itself, disrupted early, as a guard beside the clamp of the gate.

Where the component s along a direction is above what benign requests reach, s <- threshold + factor (s - threshold): a
factor of 0 or less takes the signal away before it can open the gate, one above 1 makes it so loud that refusal
survives what hushed it. Which of them guards is not assumed: all are tried on validation requests under the gate's own
objective and budget, and only one that lowers harm there is ever generated with. It is measured, and written into no
spec.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from calibration.analyses.subject import Subject
from calibration.effects.outcome import outcome, readout_logits
from calibration.effects.statistics import bootstrap_estimate, wilson_estimate
from calibration.evidence.verdict import Installed, Output, benign_divergence, outputs, surprise_limit
from calibration.judging.behaviour import Behaviour
from calibration.prompts.sequences import Batch
from calibration.runs.resume import LateRun, record
from calibration.runs.token_window import Window, windowed_stream
from calibration.search.bounds import Measured, measured_on, unedited_logits
from calibration.search.findings import held_out_examination
from calibration.search.selection import Requests
from calibration.search.trigger import conformal_threshold
from guard.analyses.harm_signal import Direction, Disruption, EditOutcome
from guard.hf import install_edits
from guard.spec.edit_spec import OffOn
from guard.spec.measures import Estimate

FACTORS = (-8.0, -4.0, -2.0, 0.0, 2.0, 4.0, 8.0)
ALPHA = 0.01


@dataclass(frozen=True)
class Stretch:
    """One variant: at the stream that leaves `layer`, along the unit `direction` [d_model] named `name`."""

    layer: int
    name: Direction
    direction: Tensor
    threshold: float
    factor: float

    def __call__(self, stream: Tensor) -> Tensor:
        """The stream [..., d_model] with its component above the threshold stretched; others stay bit for bit."""
        direction = self.direction.to(stream)
        above = (stream @ direction - self.threshold).clamp(min=0)[..., None]
        return torch.where(above > 0, stream + (self.factor - 1) * above * direction, stream)


def _runs(subject: Subject, batches: Sequence[Batch], layer: int) -> Requests:
    runs = [record(subject.model, batch, layer + 1) for batch in batches]
    return Requests(runs, (None,) * len(runs))


def _highest(run: LateRun, direction: Tensor) -> Tensor:
    """Each request's highest component along `direction` over its own answer and the template tail, [B]."""
    batch = run.batch
    scores = run.residual[: batch.size, batch.edited].float() @ direction.to(run.residual.device)
    return scores.masked_fill(~batch.reading[: batch.size].to(scores.device), -torch.inf).amax(1).cpu()


@torch.inference_mode()
def best_stretch(subject: Subject, layer: int, directions: Mapping[Direction, Tensor]) -> Stretch | None:
    """The variant with the lowest objective on validation requests among those that lower harm; None if none does."""
    material, budget = subject.material, subject.settings.budget
    fitted = _runs(subject, material.calibration.benign, layer).runs
    harmful, benign = (
        _runs(subject, batches, layer) for batches in (material.validation.harmful, material.validation.benign)
    )
    reference = unedited_logits(benign)
    unguarded = measured_on(_logits(harmful, None), _logits(benign, None), reference)
    tried: list[tuple[Measured, Stretch]] = []
    for name, direction in directions.items():
        threshold, _ = conformal_threshold(torch.cat([_highest(run, direction) for run in fitted]), ALPHA)
        for factor in FACTORS:
            stretch = Stretch(layer, name, direction, threshold, factor)
            tried.append((measured_on(_logits(harmful, stretch), _logits(benign, stretch), reference), stretch))
    guarding = [
        pair for pair in tried if pair[0].harm < unguarded.harm and pair[0].harmful_outcome < unguarded.harmful_outcome
    ]
    return min(guarding, key=lambda pair: pair[0].objective(budget))[1] if guarding else None


def _logits(requests: Requests, stretch: Stretch | None) -> Iterator[tuple[Tensor, Batch]]:
    """Read-out logits of each run, its stream stretched from the template tail on."""
    for run in requests.runs:
        stream = run.residual
        if stretch is not None:
            stream = stream.clone()
            columns = slice(run.batch.edited.start, None)
            stream[:, columns] = stretch(stream[:, columns])
        yield replace(run, residual=stream).readout_logits(), run.batch


class SideBySide:
    """Held-out requests, on which the early edit is measured as the verdict measures the gate's."""

    def __init__(self, subject: Subject) -> None:
        settings, material = subject.settings, subject.material
        self.subject, self.held_out = subject, subject.findings.examined.held_out
        self.exam = held_out_examination(subject.model, subject.tokenizer, material, settings)

    def without(self) -> EditOutcome:
        """The model as it is; its rates are the verdict's."""
        outcomes = self._outcomes(nullcontext)
        nothing = bootstrap_estimate(torch.zeros(len(self.exam.benign)), seed=self.subject.settings.seed)
        return self._of_verdict(outcomes, lambda rate: rate.off, nothing)

    def clamp(self) -> EditOutcome:
        """The gate's edit; its rates are the verdict's."""
        edits, trigger = self.subject.edits, self.subject.gate.trigger
        outcomes = self._outcomes(partial(install_edits, self.subject.model, edits, trigger))
        return self._of_verdict(outcomes, lambda rate: rate.on, self.held_out.benign_kl)

    def _of_verdict(self, outcomes: Estimate, side: Callable[[OffOn], Estimate], divergence: Estimate) -> EditOutcome:
        return EditOutcome(
            harmful_outcome=outcomes,
            harmful_compliance=side(self.held_out.harmful_compliance),
            harmful_garbled=side(self.held_out.harmful_garbled),
            benign_refusal=side(self.held_out.benign_refusal),
            benign_kl=divergence,
        )

    def disruption(self, stretch: Stretch) -> Disruption:
        """The early edit, at the template tail and the response."""
        batch, exam = self.subject.material.held_out.harmful[0], self.exam
        window = Window(first=1 - batch.tail)

        def stretched(prompt_width: int) -> AbstractContextManager[None]:
            model = self.subject.model
            return windowed_stream(model, stretch.layer, stretch, window, prompt_width=prompt_width)

        forced = partial(stretched, batch.prompt_width)
        own = outputs(exam, exam.benign, nullcontext, float("inf"))
        harmful, benign = (
            outputs(exam, prompts, nullcontext, surprise_limit(own), within=stretched)
            for prompts in (exam.harmful, exam.benign)
        )
        measured = EditOutcome(
            harmful_outcome=self._outcomes(forced),
            harmful_compliance=_rate(harmful, Behaviour.COMPLIED),
            harmful_garbled=_rate(harmful, Behaviour.GARBLED),
            benign_refusal=_rate(benign, Behaviour.REFUSED),
            benign_kl=bootstrap_estimate(
                benign_divergence(exam, forced)[0].double().cpu(), seed=self.subject.settings.seed
            ),
        )
        return Disruption(
            layer=stretch.layer,
            direction=stretch.name,
            threshold=stretch.threshold,
            factor=stretch.factor,
            outcome=measured,
        )

    @torch.inference_mode()
    def _outcomes(self, installed: Installed) -> Estimate:
        """Mean Y of the harmful requests with an edit installed."""
        with installed():
            found = [
                outcome(readout_logits(self.subject.model, batch), batch)
                for batch in self.subject.material.held_out.harmful
            ]
        return bootstrap_estimate(torch.cat(found).double().cpu(), seed=self.subject.settings.seed)


def _rate(judged: Sequence[Output], kind: Behaviour) -> Estimate:
    return wilson_estimate(sum(output.behaviour is kind for output in judged), len(judged))
