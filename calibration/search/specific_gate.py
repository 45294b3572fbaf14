"""Drop from a gate the neurons that are not specific to harm, where it works without them.

It costs one pass over a few benign requests for a gate that is specific, and one more for every neuron of one that is
not. A neuron is judged alone, by its own edit: one whose harm shows only beside others may be dropped with the benign
task that it carries, and then the bounds that are searched again say whether it was needed. Where it was, the gate
stays as it is, and a trigger has to hold it off benign requests.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from calibration.evidence.specificity import KeptOutcomes, KindEffect, failing
from calibration.search.bounds import Activations, Budget, Searched, build_edits
from calibration.search.gate import Gate, Late
from calibration.search.selection import Member

GIVEN_UP = 0.1  # of the objective, for a gate that is specific


def unspecific_kinds(gate: Gate, late: Late, *, seed: int) -> tuple[KindEffect, ...]:
    """The kinds of benign outcome that the gate, behind its trigger if it has one, moves like harm; on validation."""
    if gate.searched is None or late.outcomes is None:
        return ()
    moved = late.outcomes.edited(gate.searched.edits, gate.trigger)
    return failing(late.outcomes.answers.effects(moved[:, None], "deployed", seed=seed)[0])


def alone(
    gate: Gate, activations: Activations, outcomes: KeptOutcomes, advance: Callable[[int], None] | None = None
) -> Tensor:
    """A of each request under each member's own edit, everywhere, [N, members]; `advance` is told of each done."""
    if gate.searched is None:
        return torch.zeros(len(outcomes.answers.kinds), 0)
    edited = []
    for member in gate.members:
        edited.append(outcomes.edited(build_edits((member,), activations, gate.searched.bounds), None))
        if advance is not None:
            advance(1)
    return torch.stack(edited, dim=1)


def without_unspecific(
    gate: Gate, late: Late, search: Callable[[tuple[Member, ...]], Searched], budget: Budget, *, seed: int
) -> Gate:
    """`gate` without the neurons that are not specific, if it is specific then and about as good; else as it is."""
    if late.outcomes is None or not unspecific_kinds(gate, late, seed=seed):
        return gate
    effects = late.outcomes.answers.effects(alone(gate, late.activations, late.outcomes), "edit", seed=seed)
    kept = tuple(member for member, of_it in zip(gate.members, effects, strict=True) if not failing(of_it))
    if not any(member.carries == "compliance" for member in kept) or len(kept) == len(gate.members):
        return gate
    dropped = tuple(member for member in gate.members if member not in kept)
    smaller = Gate(members=kept, searched=search(kept), trigger=gate.trigger, dropped=dropped)
    as_good = smaller.objective(budget) <= gate.objective(budget) + GIVEN_UP
    return smaller if as_good and not unspecific_kinds(smaller, late, seed=seed) else gate
