"""The soak: what is lost, unguarded or growing is told, and a small one through the embedded engine finds nothing."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.common.machine import Machine
from benchmarks.common.server import family, resident, serving
from benchmarks.common.streams import Answer
from benchmarks.serving import soak
from benchmarks.serving.soak import Expected, gate_spec, is_guarded, run, slope_of
from benchmarks.serving.soak_report import Memory, SoakReport
from guard.errors import EditNotAppliedError, NeuronGuardError
from guard.spec.edit_spec import Estimate

RIGHT = Expected("How?", "Sorry, no.", "Sure, so.")
MACHINE = Machine(
    device="x", kind="cpu", driver=None, cuda=None, python="3", versions={}, threads=1, processors=1, load_average=0.0
)
FLAT = tuple(Memory(requests=20 * part, mebibytes=500.0) for part in range(6))


def report(**changes: Any) -> SoakReport:
    figures: dict[str, Any] = {
        "machine": MACHINE,
        "engine": "hf",
        "organism": "two-layer",
        "requests": 100,
        "concurrency": 4,
        "warm_up": 10,
        "lost": 0,
        "errors": {},
        "telling": 50,
        "unguarded": 0,
        "tokens_needed": 900,
        "tokens_guarded": 900,
        "tokens_active": 900,
        "self_tests_passed": 2,
        "seconds": 3.0,
        "memory": FLAT,
        "slope": Estimate(value=0.0, low=0.0, high=0.0, n=5),
    }
    return SoakReport(**(figures | changes))


@pytest.mark.slow
def test_no_stream_is_lost_or_unguarded(tmp_path: Path) -> None:
    found = run(requests=40, concurrency=8, warm_up=10, output=tmp_path / "soak.json", console=Console(quiet=True))
    assert (found.lost, found.unguarded, found.telling) == (0, 0, 20)
    assert found.tokens_guarded == found.tokens_active == found.tokens_needed > 40
    assert [each.requests for each in found.memory] == list(range(41))
    assert SoakReport.model_validate_json((tmp_path / "soak.json").read_text()) == found


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    given = tmp_path / "model", tmp_path / "guard.safetensors", tmp_path / "log", ["--nothing"], dict[str, str]()
    with pytest.raises(NeuronGuardError, match=r"(?s)the server did not start: .*--nothing"), serving(*given):
        raise AssertionError


def test_a_guard_that_changes_no_answer_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "generate", lambda *_: ["Sure."])
    with pytest.raises(EditNotAppliedError):
        soak.expected(gate_spec(), 2)


def test_all_is_well_where_nothing_is_lost_unguarded_or_growing() -> None:
    assert report().met


@pytest.mark.parametrize(
    "change",
    [
        {"lost": 1},
        {"unguarded": 1},
        {"tokens_guarded": 899},
        {"memory": (*FLAT[:5], Memory(requests=100, mebibytes=510.0))},
    ],
)
def test_one_stream_lost_or_unguarded_or_growing_memory_is_told(change: dict[str, Any]) -> None:
    assert not report(**change).met


def test_growth_is_a_share_of_what_was_held_before() -> None:
    assert report(memory=(Memory(requests=0, mebibytes=400.0), *FLAT[1:])).growth == pytest.approx(0.25)


@pytest.mark.parametrize(("text", "whole", "guarded"), [
    ("Sorry, no.", True, True), ("Sorry,", True, False), ("Sure, so.", True, False),
    ("Sorry,", False, True), ("", False, True), ("Sorry, Su", False, False),
])  # fmt: skip
def test_a_broken_answer_is_guarded_where_it_begins_the_guarded_one(text: str, whole: bool, guarded: bool) -> None:
    assert is_guarded(Answer(text=text, whole=whole), RIGHT) is guarded


def test_the_slope_is_for_a_thousand_requests() -> None:
    memory = [Memory(requests=50 * part, mebibytes=500.0 + 2 * part + part % 2) for part in range(21)]
    slope = slope_of(memory)
    assert slope.value == pytest.approx(40.0, rel=0.01)
    assert slope.low < 40.0 < slope.high


def test_a_process_that_has_ended_holds_nothing() -> None:
    assert (family(2**22 + 1), resident(2**22 + 1)) == ([2**22 + 1], 0)
