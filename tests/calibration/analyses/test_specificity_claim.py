"""What a specificity says: which kinds fail, and that the claim rests on the neurons rather than on the trigger."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.analyses.specificity import NeuronSpecificity, Specificity
from calibration.evidence.specificity import Intervention, KindEffect, LeftOut
from guard.spec.measures import Estimate

LIMIT, NEGLIGIBLE = 0.5, 0.02


def around(value: float, width: float = 0.1) -> Estimate:
    return Estimate(value=value, low=value - width, high=value + width, n=12)


def an_effect(index: float, benign: float = 0.5, intervention: Intervention = "edit", kind: str = "sums") -> KindEffect:
    return KindEffect(
        kind=kind, intervention=intervention, harmful=around(1.0), benign=around(benign, 0.01), index=around(index)
    )


def measured(*kinds: KindEffect) -> Specificity:
    return Specificity(limit=LIMIT, negligible=NEGLIGIBLE, kinds=kinds, neurons=(), left_out=())


@given(st.floats(-0.9, 0.9), st.floats(0, 3))
def test_a_kind_fails_only_where_its_whole_interval_is_below_the_limit_and_the_change_is_more_than_negligible(
    index: float, benign: float
) -> None:
    effect = an_effect(index, benign)
    assert effect.fails(LIMIT, NEGLIGIBLE) == (effect.index.high < LIMIT and effect.benign.low > NEGLIGIBLE)


@pytest.mark.parametrize(("edit", "natural", "said"), [(0.9, 0.9, "yes"), (0.9, 0.1, "no"), (0.9, 0.55, "undecided")])
def test_the_claim_has_the_limit_for_its_zero_and_needs_every_kind(edit: float, natural: float, said: str) -> None:
    kinds = an_effect(edit), an_effect(edit, kind="songs"), an_effect(natural, intervention="natural")
    (claim,) = measured(*kinds).claims
    assert (claim.name, claim.said) == ("specific", said)
    assert [ground.estimate.value for ground in claim.grounds] == pytest.approx(
        [each.index.value - 0.5 for each in kinds]
    )


def test_a_trigger_that_holds_the_gate_off_a_kind_makes_no_claim_about_its_neurons() -> None:
    (claim,) = measured(an_effect(1.0, 0.0, "deployed"), an_effect(0.1)).claims
    assert claim.said == "no"
    assert measured(an_effect(1.0, 0.0, "deployed")).claims == ()


def test_a_specificity_survives_its_json() -> None:
    effect = an_effect(0.9)
    neuron = NeuronSpecificity(layer=5, neuron=7, edit=effect, natural=effect, specific=True)
    whole = measured(effect).model_copy(
        update={"neurons": (neuron,), "left_out": (LeftOut(kind="style", reason="no words"),)}
    )
    assert Specificity.model_validate_json(whole.model_dump_json()) == whole
