"""A refuted spec guards nothing unless it is allowed by name."""

import pytest

from guard.errors import RefutedSpecError
from guard.spec.permission import is_servable, require_servable
from tests.guard.specs import REFUTED, evidence_with, small_spec


@pytest.mark.parametrize("allowed", [False, True])
def test_an_effective_spec_may_be_served(allowed: bool) -> None:
    assert is_servable(small_spec(), allow_refuted=allowed)
    require_servable(small_spec(), allow_refuted=allowed)


def test_a_refuted_spec_may_be_served_only_by_name() -> None:
    refuted = small_spec(evidence=evidence_with(verdict=REFUTED))
    assert is_servable(refuted, allow_refuted=True)
    assert not is_servable(refuted, allow_refuted=False)
    require_servable(refuted, allow_refuted=True)


def test_the_refusal_names_the_spec_the_reasons_and_the_remedy() -> None:
    refuted = small_spec(evidence=evidence_with(verdict=REFUTED))
    with pytest.raises(RefutedSpecError) as caught:
        require_servable(refuted, allow_refuted=False, name="the spec at hand", remedy="pass --please to serve it")
    said = str(caught.value)
    assert said.startswith("the spec at hand failed its held-out test")
    assert all(reason in said for reason in REFUTED.reasons)
    assert said.endswith("pass --please to serve it all the same.")
