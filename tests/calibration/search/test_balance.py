"""Refusal-carrying members: turned to held only where the whole edit then does less harm."""

from calibration.search.balance import balance
from calibration.search.bounds import Bounds, Budget, Searched, build_edits, measure, unedited_logits
from calibration.search.selection import Member
from tests.calibration.organisms import late as late_of

BUDGET = Budget(kl=0.01, refusal=0.01)
# The planted neurons of `cancelling` that carry compliance, and the one that balances the strongest of them.
HELD, BALANCING = (7, 258, 239, 12, 263), 226


def test_the_neuron_that_balances_another_is_held_with_it_and_the_objective_falls() -> None:
    late = late_of("cancelling")
    harmful, benign = (late.validation[kind].where(None) for kind in ("harmful", "benign"))
    members = (
        *(Member(layer=5, neuron=neuron, carries="compliance", effect=1.0) for neuron in HELD),
        Member(layer=5, neuron=BALANCING, carries="refusal", effect=-1.0),
    )
    bounds = Bounds(family="scale", strength=1.0, amplification=2.0)
    reference = unedited_logits(benign)

    def searched(of: tuple[Member, ...]) -> Searched:
        edits = build_edits(of, late.activations, bounds)
        return Searched(bounds=bounds, edits=edits, measured=measure(harmful, benign, reference, edits), trials=())

    before = searched(members)
    turned = balance(members, before, late.activations, harmful, benign, BUDGET)
    assert [member.carries for member in turned] == ["compliance"] * 6
    assert searched(turned).measured.objective(BUDGET) < before.measured.objective(BUDGET)
    assert [member.neuron for member in turned] == [member.neuron for member in members]
