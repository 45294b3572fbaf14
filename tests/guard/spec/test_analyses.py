"""The analyses in a spec: typed claims, and numbers as JSON that is finite, bounded and written in one form."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue, ValidationError

from guard.spec.claim import Ground, claim
from guard.spec.edit_spec import Analyses, EditSpec
from guard.spec.measures import DEEPEST_JSON
from tests.guard.specs import HALF, evidence_with, small_spec

CLAIM = claim("late", "late layers carry it", (Ground(name="late less early", estimate=HALF),))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def spec_with(numbers: dict[str, JsonValue]) -> EditSpec:
    return small_spec(evidence=evidence_with(analyses=Analyses(claims=(CLAIM,), numbers=numbers)))


@settings(max_examples=40)
@given(numbers=st.dictionaries(st.text(max_size=8), values, max_size=3))
def test_a_spec_with_any_numbers_is_read_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, numbers: dict[str, JsonValue]
) -> None:
    spec, path = spec_with(numbers), tmp_path_factory.getbasetemp() / "numbers.safetensors"
    spec.save(path)
    loaded = EditSpec.load(path)
    assert loaded == spec
    assert loaded.digest == spec.digest


@given(st.integers(-(2**53), 2**53).filter(lambda value: float(value) == value))
def test_equal_numbers_give_equal_digests(whole: int) -> None:
    assert spec_with({"x": [whole]}).digest == spec_with({"x": [float(whole)]}).digest
    assert spec_with({"x": 0.0}).digest == spec_with({"x": -0.0}).digest


def nested(levels: int) -> JsonValue:
    value: JsonValue = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, [1.0, -math.inf], {"x": {"y": math.nan}}, 2**53 + 1, "\ud800", nested(DEEPEST_JSON + 2)],
    ids=["nan", "inf", "inf in a list", "nan in an object", "integer", "surrogate", "depth"],
)
def test_numbers_that_a_file_could_not_hold_are_refused(value: JsonValue) -> None:
    with pytest.raises(ValidationError):
        Analyses(claims=(), numbers={"x": value})


def test_the_deepest_numbers_that_are_taken_are_read_back(tmp_path: Path) -> None:
    spec = spec_with({"x": nested(DEEPEST_JSON)})
    spec.save(tmp_path / "deep.safetensors")
    assert EditSpec.load(tmp_path / "deep.safetensors") == spec


def test_a_claim_that_is_made_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="'late' is made twice"):
        Analyses(claims=(CLAIM, CLAIM), numbers={})
