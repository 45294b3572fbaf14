"""The analyses as they are found in their folder, chosen by name, and read back from a spec."""

import importlib
from pathlib import Path

import pytest

import calibration.analyses
from calibration.analyses import registry
from calibration.analyses.analysis import Analysis, Numbers, Section, UnreadableNumbersError
from calibration.analyses.registry import ANALYSES, NAMES, UnknownAnalysisError, chosen, makers, sections
from calibration.analyses.subject import Subject
from calibration.search.findings import Advance
from guard.spec.edit_spec import Analyses
from guard.spec.measures import Count, Estimate

HALF = Estimate(value=0.5, low=1e-9, high=1.0, n=3)


class Found(Numbers):
    """Numbers of an analysis that there is in these tests alone."""

    count: Count
    half: Estimate
    parts: tuple[Estimate, ...] = ()


def measure(_: Subject, __: Advance) -> Found:
    return Found(count=2, half=HALF, parts=(HALF,))


def describe(found: Found) -> Section:
    return Section("Found", (f"{found.count} of them.",))


FOUND = Analysis(
    order=1, name="found", title="Found", kind=Found, claims=(), measure=measure, describe=describe
)  # fmt: skip
NUMBERS = Found(count=2, half=HALF, parts=(HALF,))


def kept(**changes: object) -> Analyses:
    """A spec's analyses with the numbers of `FOUND`, some of them changed."""
    return Analyses(claims=(), numbers={"found": NUMBERS.model_dump(mode="json") | changes})


def test_an_unknown_analysis_is_answered_with_the_name_of_every_one() -> None:
    with pytest.raises(UnknownAnalysisError) as refused:
        chosen("controls, shard")
    told = str(refused.value).rpartition(" among ")[2].rstrip(".").split(", ")
    assert told == ["all", "none", *NAMES]


def test_every_file_that_defines_an_analysis_is_found_and_named_as_its_file() -> None:
    files = Path(calibration.analyses.__path__[0]).glob("*.py")
    defining = {path.stem for path in files if "\nANALYSIS = " in path.read_text("utf-8")}
    assert len(defining) == len(NAMES)
    for analysis in ANALYSES:
        assert importlib.import_module(f"calibration.analyses.{analysis.name}").ANALYSIS is analysis


def test_no_two_analyses_have_the_same_place_in_the_report() -> None:
    orders = [analysis.order for analysis in ANALYSES]
    assert orders == sorted(set(orders))


def test_each_claim_is_asked_of_the_one_analysis_that_makes_it() -> None:
    for analysis in ANALYSES:
        assert all(makers([claim]) == (analysis.name,) for claim in analysis.claims)


def test_the_report_has_a_section_for_the_analyses_that_were_made_and_for_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "ANALYSES", (FOUND,))
    assert sections(kept()) == {"found": describe(NUMBERS)}
    assert sections(Analyses(claims=(), numbers={"of another version": [1]})) == {}
    assert sections(None) == {}


def test_numbers_are_read_back_from_a_spec_as_they_were_measured() -> None:
    assert FOUND.read(Analyses.model_validate_json(kept().model_dump_json())) == NUMBERS


@pytest.mark.parametrize("change", [{"count": -1}, {"count": "1"}, {"unknown": 1}, {"half": 0.5}])
def test_numbers_that_are_not_the_analysis_own_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(UnreadableNumbersError, match=f"analysis found .* at {next(iter(change))}: calibrate again"):
        FOUND.read(kept(**change))
