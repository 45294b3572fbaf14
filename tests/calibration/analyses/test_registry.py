"""The analyses as they are found in their folder, chosen by name, and read back from a spec."""

import importlib
import json

import pytest

from calibration.analyses.analysis import UnreadableNumbersError
from calibration.analyses.registry import ANALYSES, NAMES, UnknownAnalysisError, chosen, makers, sections
from calibration.analyses.shards import Shards
from guard.spec.edit_spec import Analyses

NOTHING = Shards(count=1, silhouette=0.5, p_value=1.0, clusters=(), transfers=())


def test_an_unknown_analysis_is_answered_with_the_name_of_every_one() -> None:
    with pytest.raises(UnknownAnalysisError) as refused:
        chosen("controls, shard")
    told = str(refused.value).rpartition(" among ")[2].rstrip(".").split(", ")
    assert told == ["all", "none", *NAMES]


def test_the_analyses_are_found_in_the_order_of_the_report() -> None:
    assert NAMES == ("controls", "concentration", "specificity", "harm_signal", "token_effects", "shards")


def test_every_analysis_is_named_as_its_file() -> None:
    for analysis in ANALYSES:
        assert importlib.import_module(f"calibration.analyses.{analysis.name}").ANALYSIS is analysis


def test_a_claim_is_asked_of_the_analysis_that_makes_it() -> None:
    assert makers(["mlp", "one_gate"]) == ("controls", "shards")


def test_the_report_has_a_section_for_the_numbers_that_a_spec_has_and_for_no_others() -> None:
    kept = Analyses(claims=(), numbers={"shards": NOTHING.model_dump(mode="json"), "of another version": [1]})
    assert list(sections(kept)) == ["shards"]
    assert sections(None) == {}


def test_numbers_are_read_back_as_they_were_measured() -> None:
    kept = Analyses(claims=(), numbers={"shards": NOTHING.model_dump(mode="json")})
    (shards,) = (analysis for analysis in ANALYSES if analysis.name == "shards")
    assert shards.read(Analyses.model_validate_json(kept.model_dump_json())) == NOTHING


@pytest.mark.parametrize("change", [{"count": -1}, {"count": "1"}, {"unknown": 1}, {"p_value": 2}])
def test_numbers_that_are_not_the_analysis_own_are_refused(change: dict[str, object]) -> None:
    numbers = json.loads(NOTHING.model_dump_json()) | change
    with pytest.raises(UnreadableNumbersError, match=f"shards.* at {next(iter(change))}: calibrate again"):
        sections(Analyses(claims=(), numbers={"shards": numbers}))
