"""Which refusal-carrying members are better held than scaled up.

Two neurons may carry compliance and refusal in equal parts, so that together they do nothing. Hold one and scale up
the other, and the model is driven past refusing into saying something else. Such a member is held with the rest of the
gate, but only where the whole edit, measured exactly on validation requests, then does less harm: a refusal-carrying
neuron is never held for its own sake.
"""

from collections.abc import Sequence

from calibration.search.bounds import Activations, Budget, Searched, build_edits, measure, unedited_logits
from calibration.search.selection import Member, Requests

GAIN = 1e-3
STRONGEST = 4


def balance(
    members: Sequence[Member],
    searched: Searched,
    activations: Activations,
    harmful: Requests,
    benign: Requests,
    budget: Budget,
) -> tuple[Member, ...]:
    """`members`, with those refusal-carrying ones turned to held that lower the objective at the bounds found.

    One pass over the `STRONGEST` of them, strongest first, each judged given those turned before it.
    """
    reference = unedited_logits(benign)
    best = searched.measured.objective(budget)
    current = tuple(members)
    refusing = [place for place, member in enumerate(members) if member.carries == "refusal"]
    for place in sorted(refusing, key=lambda place: members[place].effect)[:STRONGEST]:
        member = members[place]
        held = member.model_copy(update={"carries": "compliance"})
        tried = (*current[:place], held, *current[place + 1 :])
        edits = build_edits(tried, activations, searched.bounds)
        objective = measure(harmful, benign, reference, edits).objective(budget)
        if objective < best - GAIN:
            current, best = tried, objective
    return current
