"""Y read directly off the residual stream, after each module of each layer.

What the final norm and the unembedding would make of the stream if the model ended there (the logit lens,
nostalgebraist 2020). A stream in the middle of a layer is the one that leaves it with its MLP's output at 0, so that no
family needs a formula of its own. It costs two passes, and tells where the answer can be read, not where it is made: a
module may write what later ones undo. The effects beside it tell that.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from calibration.effects.outcome import outcome
from calibration.runs.interventions import Mediator, through
from calibration.runs.resume import LateRun, record
from calibration.trace.document import Step, Turn
from calibration.trace.subject import Subject
from guard.families.architectures import architecture_of


@torch.inference_mode()
def entering(subject: Subject) -> list[LateRun]:
    """The run as it enters each layer, with whatever is installed now, and as it leaves the last: 1 + layers."""
    run = record(subject.model, subject.batch, 0)
    runs = [run]
    while run.arguments:
        run = run.advanced()
        runs.append(run)
    return runs


@torch.inference_mode()
def readings(subject: Subject, runs: Sequence[LateRun]) -> list[float]:
    """Y read off the embedding, and after the attention and the MLP of each layer: [1 + 2 layers] nats.

    `runs` are those of `entering`, made with the same edits installed. The last is Y itself.
    """
    return [_outcome(subject, stream) for stream in _streams(runs)]


def _streams(runs: Sequence[LateRun]) -> Iterator[Tensor]:
    """The residual stream [2, T, d_model] after each module."""
    yield runs[0].residual
    for layer, (before, after) in enumerate(pairwise(runs)):
        with through(before.model, Mediator("mlp", layer), torch.zeros_like):
            yield before.advanced().residual
        yield after.residual


def _outcome(subject: Subject, stream: Tensor) -> float:
    batch = subject.batch
    logits = architecture_of(subject.model).logits(subject.model, stream[:, batch.readout])
    return float(outcome(logits, batch))


def as_steps(values: Sequence[float]) -> tuple[Step, ...]:
    """The readings with the modules after which they were taken."""
    steps = [Step(layer=0, module="embedding", reading=values[0])]
    for place, value in enumerate(values[1:]):
        steps.append(Step(layer=place // 2, module="mlp" if place % 2 else "attention", reading=value))
    return tuple(steps)


def turn(steps: Sequence[Step]) -> Turn:
    """The first module from which on the reading keeps the sign of the last, which is Y."""
    positive = steps[-1].reading > 0
    other = [place for place, step in enumerate(steps) if (step.reading > 0) != positive]
    here = steps[other[-1] + 1 if other else 0]
    return Turn(layer=here.layer, module=here.module, reading=here.reading)


@torch.inference_mode()
def lens(subject: Subject, runs: Sequence[LateRun]) -> list[list[float]]:
    """Log-odds of the replies' opening tokens, compliance over refusal, read off the stream at each prompt token.

    [1 + layers][prompt columns] nats: as it enters the first layer and leaves each.
    """
    architecture = architecture_of(subject.model)
    complies, refuses = subject.continuations.opening
    columns = list(subject.prompt_columns)
    found = []
    for run in runs:
        logits = architecture.logits(subject.model, run.residual[:1, columns]).float()  # [1, prompt columns, V]
        found.append((logits[0, :, complies] - logits[0, :, refuses]).tolist())
    return found
