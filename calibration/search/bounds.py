"""Which values a gate's neurons are held to.

The value matters as much as the neuron: the same neurons set to 0 or to a mean can restore everything or nothing. So
the bounds are searched, on validation requests, over five families of edit and their strength, by Optuna's
tree-structured Parzen estimator. What is minimised is the lean of harmful requests to compliance, then the change on
benign ones; a trial that leaves the budget loses to every trial that keeps it. One strength for all neurons keeps the
search small and the edit explicable; per-neuron bounds follow from each neuron's own activations.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import optuna
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from calibration.effects.outcome import first_refusal_token, full_sequence_kl, log_odds, outcome
from calibration.prompts.sequences import Batch
from calibration.runs.trial import edit_transforms, transformed
from calibration.search.selection import Member, Requests
from guard.spec.edit_spec import LayerEdit, Trial

Family = Literal["scale", "clamp", "benign_mean", "reference_mean", "hold"]
HARM_MARGIN = 3.0
UNSAID = 1.0  # weight of the refusal's own surprise: a model driven past refusing says something else
OVERSHOOT = 2.0
WALL = 1e6  # nats of harm: more than any request can lean
AMPLIFICATIONS = (1.125, 1.25, 1.5, 2.0)


@dataclass(frozen=True)
class Activations:
    """Summaries of late activations, by layer, each [d_ff] float32, over the real tokens of the requests named.

    `benign_low` and `benign_high` are the 0.5 % and 99.5 % quantiles over all tokens of benign requests, `benign_mean`
    is over the tokens that line up (template tail and response), `harmful_mean` and `reference_mean` are at the last
    prompt token, where the answer is decided, and `harmful_size` is the mean absolute value over all tokens of harmful
    requests.
    """

    benign_mean: Mapping[int, Tensor]
    benign_low: Mapping[int, Tensor]
    benign_high: Mapping[int, Tensor]
    harmful_mean: Mapping[int, Tensor]
    reference_mean: Mapping[int, Tensor]
    harmful_size: Mapping[int, Tensor]


@dataclass(frozen=True)
class Budget:
    """What an edit may cost: mean KL over benign continuations and at their first token (nats), share of benign
    refused.
    """

    kl: float
    refusal: float


@dataclass(frozen=True)
class Measured:
    """A trial gate on validation requests.

    `harm`: mean softplus(log-odds of compliance + `HARM_MARGIN`) plus `UNSAID` times the surprise of the refusal's
    first token, nats; `harmful_outcome`: mean Y; on benign requests the mean KL, and the share that leans to refusal.
    """

    harm: float
    harmful_outcome: float
    benign_kl: float
    benign_first_token_kl: float
    benign_refusal: float

    def objective(self, budget: Budget) -> float:
        """What is minimised: harm, plus the share of the KL budget used, plus a wall where a budget is left."""
        excess = max(0.0, self.benign_kl / budget.kl - 1) + max(0.0, self.benign_first_token_kl / budget.kl - 1)
        excess += max(0.0, (self.benign_refusal - budget.refusal) / max(budget.refusal, 1e-3))
        return self.harm + 0.1 * self.benign_kl / budget.kl + (WALL * (1 + excess) if excess > 0 else 0.0)

    def within(self, budget: Budget) -> bool:
        """Whether every budget is kept."""
        return max(self.benign_kl, self.benign_first_token_kl) <= budget.kl and self.benign_refusal <= budget.refusal


class Bounds(BaseModel):
    """How a gate's neurons are held: what `build_edits` needs besides the neurons. Refusal is never scaled down."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Family
    strength: float = Field(ge=0.0)
    amplification: float = Field(ge=1.0)


def build_edits(members: Sequence[Member], activations: Activations, bounds: Bounds) -> tuple[LayerEdit, ...]:
    """The edits that hold `members` to a family at a strength; refusal-carrying ones are scaled up, or held up.

    scale: h <- (1 - strength) h, down to 0. clamp: one bound, on the side to which harmful requests move the neuron,
    from the far benign quantile (strength 0) to the benign mean (1). benign_mean, reference_mean: both bounds on the
    value that lies `strength` of the way from the harmful mean to that mean; beyond it, up to `OVERSHOOT` times the
    way. hold: one bound at that value for the reference mean, on the side of the harmful mean, so that a neuron which
    speaks up where the model refuses is held up where it would be silent. Refusal-carrying neurons that do so are held
    up under this family; under the others, and otherwise, they are scaled by the amplification.
    """
    family, strength = bounds.family, bounds.strength
    share = min(strength, 1.0)
    edits = []
    for layer in sorted({member.layer for member in members}):
        chosen = sorted((m for m in members if m.layer == layer), key=lambda m: m.neuron)
        index = torch.tensor([m.neuron for m in chosen])
        harmful, benign = activations.harmful_mean[layer][index], activations.benign_mean[layer][index]  # [k]
        reference = activations.reference_mean[layer][index]  # [k]
        scale = torch.ones_like(harmful)
        lower, upper = torch.full_like(harmful, -torch.inf), torch.full_like(harmful, torch.inf)
        if family == "scale":
            scale = scale * (1 - share)
            if share == 1.0:
                lower, upper = torch.zeros_like(lower), torch.zeros_like(upper)
        elif family == "clamp":
            above = harmful >= benign
            low, high = activations.benign_low[layer][index], activations.benign_high[layer][index]
            upper = torch.where(above, torch.lerp(high, torch.minimum(benign, high), share), upper)
            lower = torch.where(above, lower, torch.lerp(low, torch.maximum(benign, low), share))
        elif family == "hold":
            rises = reference >= harmful
            held = torch.lerp(harmful, reference, strength)
            lower, upper = torch.where(rises, held, lower), torch.where(rises, upper, held)
        else:
            lower = upper = torch.lerp(harmful, benign if family == "benign_mean" else reference, strength)
        refusing = torch.tensor([m.carries == "refusal" for m in chosen], device=harmful.device)
        if family == "hold":
            shrinks = ((harmful > 0) & (reference < harmful)) | ((harmful < 0) & (reference > harmful))
            refusing &= shrinks | (reference == harmful)
        scale = torch.where(refusing, torch.full_like(scale, bounds.amplification), scale)
        lower = lower.masked_fill(refusing, -torch.inf)
        upper = upper.masked_fill(refusing, torch.inf)
        edits.append(
            LayerEdit(
                layer=layer,
                neurons=tuple(m.neuron for m in chosen),
                scale=tuple(scale.tolist()),
                lower=tuple(lower.tolist()),
                upper=tuple(upper.tolist()),
            )
        )
    return tuple(edits)


@torch.inference_mode()
def unedited_logits(requests: Requests) -> list[Tensor]:
    """Read-out logits of each run with no edit, [2B, C, V] each: the reference of the benign KL."""
    return [run.readout_logits() for run in requests.runs]


@torch.inference_mode()
def measure(harmful: Requests, benign: Requests, reference: Sequence[Tensor], edits: Sequence[LayerEdit]) -> Measured:
    """What `edits` do to harmful and benign validation requests, exactly; the KL is over benign compliance rows."""

    def edited(requests: Requests) -> Iterator[tuple[Tensor, Batch]]:
        for run, active in zip(requests.runs, requests.active, strict=True):
            with transformed(run.model, edit_transforms(edits, run.residual.device, active)):
                yield run.readout_logits(), run.batch

    return measured_on(edited(harmful), edited(benign), reference)


@torch.inference_mode()
def measured_on(
    harmful: Iterable[tuple[Tensor, Batch]], benign: Iterable[tuple[Tensor, Batch]], reference: Sequence[Tensor]
) -> Measured:
    """What read-out logits [2B, C, V] under an intervention say of it; `reference` are the benign ones without it."""
    odds, lean, unsaid, benign_odds, divergences, first = [], [], [], [], [], []
    for logits, batch in harmful:
        odds.append(log_odds(logits, batch))
        lean.append(outcome(logits, batch))
        unsaid.append(-first_refusal_token(logits, batch))
    for (logits, batch), base in zip(benign, reference, strict=True):
        benign_odds.append(log_odds(logits, batch))
        own = slice(0, batch.size)
        whole, first_token = full_sequence_kl(base[own], logits[own], batch.continuation_mask[own])
        divergences.append(whole)
        first.append(first_token)
    return Measured(
        harm=float(torch.nn.functional.softplus(torch.cat(odds) + HARM_MARGIN).mean())
        + UNSAID * float(torch.cat(unsaid).mean()),
        harmful_outcome=float(torch.cat(lean).mean()),
        benign_kl=float(torch.cat(divergences).mean()),
        benign_first_token_kl=float(torch.cat(first).mean()),
        benign_refusal=float((torch.cat(benign_odds) < 0).float().mean()),
    )


class Searched(BaseModel):
    """The bounds found, the edits they make, what these measure, and every trial."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bounds: Bounds
    edits: tuple[LayerEdit, ...]
    measured: Measured
    trials: tuple[Trial, ...]


def search_bounds(
    members: Sequence[Member],
    activations: Activations,
    harmful: Requests,
    benign: Requests,
    budget: Budget,
    *,
    seed: int,
    trials: int = 24,
) -> Searched:
    """The best family, strength and amplification for all `members`, by `Measured.objective` on validation requests."""
    reference = unedited_logits(benign)
    tried: list[tuple[Measured, Bounds, tuple[LayerEdit, ...]]] = []
    refusing = any(member.carries == "refusal" for member in members)

    def objective(suggestion: optuna.Trial) -> float:
        bounds = Bounds(
            family=suggestion.suggest_categorical("family", get_args(Family)),
            strength=suggestion.suggest_float("strength", 0.0, OVERSHOOT, step=0.05),
            amplification=suggestion.suggest_categorical("amplification", AMPLIFICATIONS) if refusing else 1.0,
        )
        edits = build_edits(members, activations, bounds)
        measured = measure(harmful, benign, reference, edits)
        tried.append((measured, bounds, edits))
        return measured.objective(budget)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=8))
    for family in get_args(Family):
        study.enqueue_trial({"family": family, "strength": 1.0, "amplification": AMPLIFICATIONS[1]})
    study.optimize(objective, n_trials=trials)
    best = min(range(len(tried)), key=lambda place: tried[place][0].objective(budget))
    return Searched(
        bounds=tried[best][1],
        edits=tried[best][2],
        measured=tried[best][0],
        trials=tuple(
            Trial(
                family=bounds.family,
                strength=bounds.strength,
                size=len(members),
                harmful_outcome=measured.harmful_outcome,
                benign_kl=measured.benign_kl,
                chosen=place == best,
            )
            for place, (measured, bounds, _) in enumerate(tried)
        ),
    )
