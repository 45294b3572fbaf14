"""Baselines that learn: what else could be made of the requests that a guard's calibration has seen.

Each is built from those requests alone (`baselines_requests.py`), and the strength of what is added to the residual
stream is chosen on a part of them by the objective and within the budget of the guard's own search. A baseline that
would let more harm through than no guard, or that leaves the budget, is not used: it does nothing, and says so. So all
of them only ever lead towards refusal.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from benchmarks.localisation.peers import conditional, refusal_direction
from benchmarks.localisation.peers.contender import Contender, strongest
from benchmarks.localisation.ranking import best, contrast
from benchmarks.localisation.truth import ablation
from benchmarks.safety.conditions.condition import Calibrated, Condition
from benchmarks.safety.conditions.kept import (
    CONDITIONAL,
    CONTRAST,
    DIRECTION,
    FILTER,
    KeptBaselines,
    KeptChange,
    KeptFilter,
)
from benchmarks.safety.conditions.output_filter import learnt_filter
from benchmarks.safety.conditions.requests import BaselineError, Lesson, lesson
from calibration.prompts.material import Encoder
from calibration.report.display import plural
from calibration.runs.stage import late_layers
from calibration.runs.store import Store
from calibration.search.bounds import Budget
from calibration.search.findings import Settings
from guard.hf import install_edits
from guard.spec.edit_spec import EditSpec

LEARNT = (CONTRAST, DIRECTION, CONDITIONAL, FILTER)
NOTHING = Contender("does nothing: no strength lowers harm within the budget", nullcontext)
LESS_HARM_ALONE = Budget(kl=math.inf, refusal=1.0)


def learnt(
    encoder: Encoder, spec: EditSpec | None, calibrated: Calibrated, *, seed: int, work: Store | None = None
) -> tuple[Condition, ...]:
    """The baselines of `LEARNT`, in that order; without a spec there is no number of neurons for the first.

    What was learnt is kept in `work`, whose key names all that decides it, and is taken up from there.
    """
    learn = partial(learn_all, encoder, spec, calibrated, seed=seed)
    return (learn() if work is None else work.stage("baselines", KeptBaselines, learn)).conditions(encoder)


def learn_all(encoder: Encoder, spec: EditSpec | None, calibrated: Calibrated, *, seed: int) -> KeptBaselines:
    """Everything that is learnt from the calibrated requests."""
    requests, budget = lesson(encoder, calibrated, seed=seed), budget_of(spec)
    model, learning = encoder.model, requests.learning_batches
    direction = refusal_direction.candidates(model, learning.reference, learning.benign)
    count = sum(len(edit.neurons) for edit in spec.layers) if spec is not None else 0
    return KeptBaselines(
        contrast=KeptChange.of(contrast_neurons(requests, count)) if count else None,
        direction=KeptChange.of(chosen(requests, direction, budget)),
        conditional=KeptChange.of(chosen(requests, conditional.candidates(model, learning), budget)),
        output_filter=KeptFilter.of(learnt_filter(requests, budget)),
    )


def budget_of(spec: EditSpec | None) -> Budget:
    """The budget that the spec's calibration kept, as its provenance tells; else the usual one.

    Raises BaselineError where what is told is no number.
    """
    told, usual = {} if spec is None else spec.provenance.arguments, Settings().budget
    try:
        return Budget(
            kl=float(told.get("budget_kl", usual.kl)), refusal=float(told.get("budget_refusal", usual.refusal))
        )
    except ValueError as error:
        raise BaselineError(
            "the spec's provenance has a budget that is no number: calibrate again, or leave the calibrated requests "
            "out."
        ) from error


def contrast_neurons(requests: Lesson, count: int) -> Contender:
    """The `count` late neurons that differ most between harmful and benign requests, at 0, after CNA.

    Neurons that differ may carry refusal: where taking them away would let more harm through, nothing is done.
    """
    model, learning = requests.encoder.model, requests.learning_batches
    layers = late_layers(model)
    scored = contrast(model, learning.harmful, learning.benign, layers)
    neurons = best(scored, layers, min(count, scored.numel()))
    at_zero = Contender(f"{plural(count, 'neuron')} at 0", partial(install_edits, model, ablation(neurons)))
    nothing = replace(NOTHING, strength="does nothing: without its neurons the model refuses less")
    return strongest(model, requests.choosing_batches, [nothing, at_zero], LESS_HARM_ALONE) or nothing


def chosen(requests: Lesson, candidates: Sequence[Contender], budget: Budget) -> Contender:
    """The candidate that leaves the least harm on the requests to choose on, within the budget; `NOTHING` before one
    that leaves no less than no guard.
    """
    kept = strongest(requests.encoder.model, requests.choosing_batches, [NOTHING, *candidates], budget)
    return kept or NOTHING
