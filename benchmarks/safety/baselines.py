"""Baselines that learn: what else could be made of the requests that a guard's calibration has seen.

Each is built from those requests alone (`baselines_requests.py`), and the strength of what is added to the residual
stream is chosen on a part of them by the objective and within the budget of the guard's own search. A baseline that
would let more harm through than no guard, or that leaves the budget, is not used: it does nothing, and says so. So all
of them only ever lead towards refusal.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from benchmarks.peers import conditional, refusal_direction
from benchmarks.peers.contender import Condition as Where
from benchmarks.peers.contender import Contender, strongest
from benchmarks.ranking import best, contrast
from benchmarks.safety.baselines_filter import learnt_filter
from benchmarks.safety.baselines_requests import BaselineError, Lesson, lesson
from benchmarks.safety.condition import Calibrated, Condition
from benchmarks.truth import ablation
from calibration.behaviour import pad_token
from calibration.bounds import Budget
from calibration.display import percent, plural
from calibration.findings import Settings
from calibration.material import Encoder
from calibration.sequences import Example, collate
from calibration.stage import late_layers
from guard.hf import install_edits
from guard.spec import EditSpec

CONTRAST, DIRECTION, CONDITIONAL, FILTER = (
    "contrast neurons", "refusal direction", "conditional vector", "output filter",
)  # fmt: skip
LEARNT = (CONTRAST, DIRECTION, CONDITIONAL, FILTER)
NOTHING = Contender("does nothing: no strength lowers harm within the budget", nullcontext)
LESS_HARM_ALONE = Budget(kl=math.inf, refusal=1.0)


def learnt(encoder: Encoder, spec: EditSpec | None, calibrated: Calibrated, *, seed: int) -> tuple[Condition, ...]:
    """The baselines of `LEARNT`, in that order; without a spec there is no number of neurons for the first."""
    requests, budget = lesson(encoder, calibrated, seed=seed), budget_of(spec)
    model = encoder.model
    direction = refusal_direction.candidates(
        model, requests.learning_batches.reference, requests.learning_batches.benign
    )
    output_filter = learnt_filter(requests, budget)
    found = [
        _condition(DIRECTION, encoder, chosen(requests, direction, budget)),
        _condition(
            CONDITIONAL,
            encoder,
            chosen(requests, conditional.candidates(model, requests.learning_batches), budget),
        ),
        Condition(
            FILTER,
            nullcontext,
            rewrite=output_filter,
            words=f"reads finished answers, meant to stop {percent(output_filter.rate)} of benign ones at most",
        ),
    ]
    if spec is not None and spec.layers:
        count = sum(len(edit.neurons) for edit in spec.layers)
        found.insert(0, _condition(CONTRAST, encoder, contrast_neurons(requests, count)))
    return tuple(found)


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


def _condition(name: str, encoder: Encoder, chosen: Contender) -> Condition:
    acts = None if chosen.condition is None else acting(encoder, chosen.condition)
    return Condition(name, chosen.installed, acts=acts, words=chosen.strength)


def acting(encoder: Encoder, where: Where) -> Callable[[Sequence[tuple[int, ...]]], list[bool]]:
    """Whether a method acts on each of some encoded prompts, by the model as it is then: without the method."""
    model, pad = encoder.model, pad_token(encoder.tokenizer)

    @torch.inference_mode()
    def acts(prompts: Sequence[tuple[int, ...]]) -> list[bool]:
        examples = [Example(prompt, prompt[-1:], prompt[-1:]) for prompt in prompts]  # a batch has continuations
        batch = collate(examples, pad_id=pad, device=_device(model))
        return [bool(one) for one in where(model, batch)]

    return acts


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
