"""Find a gate: its neurons, its bounds, and whether a trigger confines it.

Both kinds are found on the same material and compared on the same validation requests: an unconditional gate, whose
neurons must act on harmful requests beyond benign ones, and a conditional one, which leaves specificity to its trigger
and may use neurons that carry compliance as such. `auto` takes the one with the lower objective under the budget.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from calibration.evidence.specificity import KeptOutcomes
from calibration.prompts.sequences import Batch
from calibration.runs.shelf import Shelf
from calibration.runs.stage import Kept, keep, late_layers, summarise
from calibration.runs.store import Keep, compute_anew
from calibration.search.balance import balance
from calibration.search.bounds import Activations, Budget, Searched, search_bounds
from calibration.search.completion import complete_gate
from calibration.search.selection import Member, SelectionSettings, grow_gate
from calibration.search.trigger import FittedTrigger, TokenStates, entering_states, fit_trigger
from guard.spec.edit_spec import Trigger

TriggerMode = Literal["auto", "always", "never"]
ALPHA = 0.01
CONDITIONAL_TOLERANCE = 0.02
SEARCHED = 96


@dataclass(frozen=True)
class SplitBatches:
    """One split: harmful requests x*, their references x, and benign requests with the model's own continuations."""

    harmful: tuple[Batch, ...]
    reference: tuple[Batch, ...]
    benign: tuple[Batch, ...]


class Gate(BaseModel):
    """What was found: members in the order taken (none if nothing was), their bounds, the trigger if it has one, and
    the neurons that were dropped from it because they were not specific to harm.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    members: tuple[Member, ...] = ()
    searched: Searched | None = None
    trigger: Trigger | None = None
    dropped: tuple[Member, ...] = ()

    def objective(self, budget: Budget) -> float:
        """The validation objective of its bounds, infinite for an empty gate."""
        return self.searched.measured.objective(budget) if self.searched else float("inf")


@dataclass(frozen=True)
class Late:
    """The late layers of both splits that a search uses, and the activations of the calibration split.

    `outcomes` are the validation requests on which specificity is measured; a search without them does not ask for it.
    """

    layers: tuple[int, ...]
    calibration: dict[str, Kept]
    validation: dict[str, Kept]
    activations: Activations
    shelf: Shelf = field(default_factory=Shelf)
    outcomes: KeptOutcomes | None = None


def prepare(model: nn.Module, calibration: SplitBatches, validation: SplitBatches, shelf: Shelf | None = None) -> Late:
    """Run everything once up to the first late layer, keep that on `shelf` (without one in memory), and summarise the
    late activations.
    """
    layers, keeper = late_layers(model), shelf or Shelf()

    def kept(split: SplitBatches) -> dict[str, Kept]:
        kinds = {"harmful": split.harmful, "reference": split.reference, "benign": split.benign}
        return {kind: keep(model, batches, layers[0], keeper) for kind, batches in kinds.items()}

    calibrated, validated = kept(calibration), kept(validation)
    activations = summarise(calibrated["harmful"], calibrated["reference"], calibrated["benign"], layers, keeper)
    return Late(layers, calibrated, validated, activations, keeper)


def replacement_values(activations: Activations, conditional: bool) -> dict[str, Mapping[int, Tensor]]:
    """The values that selection moves neurons to by name, each tried: zero, and a mean.

    The mean is that on benign requests for an edit of every token, and that on reference requests where a trigger
    confines the edit to harmful ones, for it is what the neurons would have said had the model refused.
    """
    zero = {layer: torch.zeros_like(mean) for layer, mean in activations.benign_mean.items()}
    return {"zero": zero, "mean": activations.reference_mean if conditional else activations.benign_mean}


class Grown(BaseModel):
    """The neurons that selection took, in the order taken, before their bounds were searched."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    members: tuple[Member, ...]


def bounds_search(
    late: Late, trigger: Trigger | None, budget: Budget, *, seed: int, trials: int, keep: Keep = compute_anew
) -> Callable[[tuple[Member, ...]], Searched]:
    """The search for the bounds of given members, on the validation requests; kept by what it searches for."""
    harmful, benign = (late.validation[kind].where(trigger) for kind in ("harmful", "benign"))

    def search(members: tuple[Member, ...]) -> Searched:
        def searched() -> Searched:
            return search_bounds(members, late.activations, harmful, benign, budget, seed=seed, trials=trials)

        wanted = Gate(members=members, trigger=trigger).model_dump_json()
        return keep(f"bounds-{hashlib.sha256(wanted.encode()).hexdigest()}", Searched, searched)

    return search


def find_gate(
    late: Late,
    trigger: Trigger | None,
    budget: Budget,
    settings: SelectionSettings,
    *,
    seed: int,
    trials: int,
    keep: Keep = compute_anew,
) -> Gate:
    """The best gate under `trigger` (None: unconditional) over the replacement values; bounds searched on validation.

    Where no bounds keep the budget the gate is halved, last taken first, until some do or one neuron is left. The
    neurons that each value takes and each search for bounds go through `keep`.
    """
    if trigger is not None:
        settings = replace(settings, benign_weight=0.0, tolerance=CONDITIONAL_TOLERANCE)
    harmful, benign = (late.calibration[kind].where(trigger, limit=SEARCHED) for kind in ("harmful", "benign"))
    validation_harmful, validation_benign = (late.validation[kind].where(trigger) for kind in ("harmful", "benign"))
    best = Gate(trigger=trigger)
    search = bounds_search(late, trigger, budget, seed=seed, trials=trials, keep=keep)

    def grown(values: Mapping[int, Tensor]) -> Grown:
        members = grow_gate(harmful, benign, values, settings)
        if members and trigger is None:
            members = complete_gate(harmful, benign, members, values, settings)
        return Grown(members=tuple(members))

    kind = "unconditional" if trigger is None else "conditional"
    for name, values in replacement_values(late.activations, trigger is not None).items():
        members = keep(f"neurons-{kind}-{name}", Grown, partial(grown, values)).members
        while members:
            searched = search(members)
            balanced = balance(members, searched, late.activations, validation_harmful, validation_benign, budget)
            if balanced != members:
                members, searched = balanced, search(balanced)
            found = Gate(members=members, searched=searched, trigger=trigger)
            if found.objective(budget) < best.objective(budget):
                best = found
            if searched.measured.within(budget) or len(members) == 1:
                break
            members = members[: len(members) // 2]
    return best


def find_trigger(model: nn.Module, late: Late, *, alpha: float) -> FittedTrigger:
    """Fit a trigger before the late layers: direction on the calibration split, threshold on the validation split."""
    layers = range(1, late.layers[0] + 1)

    def states(split: dict[str, Kept], kind: str) -> Mapping[int, TokenStates]:
        return entering_states(model, split[kind].batches, layers, shelf=late.shelf)

    calibration, validation = late.calibration, late.validation
    return fit_trigger(
        states(calibration, "harmful"),
        states(calibration, "benign"),
        states(validation, "harmful"),
        states(validation, "benign"),
        alpha=alpha,
    )
