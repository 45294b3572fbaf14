"""The record of a run: whole batches or nothing, one setting, and nothing lost when the process dies."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.safety.record import Answer, Record, RecordError
from calibration.judging.behaviour import Behaviour

SETTING = {"model": "m", "seed": 0}


def answer(place: int, condition: str = "guard") -> Answer:
    return Answer(
        condition=condition,
        prompt_set="set",
        place=place,
        digest=f"{place:064x}",
        answer_digest="0" * 64,
        words=3,
        classes={"judge": Behaviour.REFUSED},
        text="No.\u2028No." if place % 2 else None,
    )


def test_what_was_added_is_there_when_the_record_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    Record(path, SETTING).add([answer(0), answer(1)])
    again = Record(path, SETTING)
    assert again.answers("guard", "set") == [answer(0), answer(1)]
    assert again.has("guard", "set", [0, 1])
    assert not again.has("guard", "set", [0, 1, 2])
    assert not again.has("no guard", "set", [0])


@settings(deadline=None, max_examples=60)
@given(cut=st.integers(0, 2_000))
def test_a_torn_file_gives_back_whole_answers_and_can_be_gone_on_with(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("torn") / "answers.jsonl"
    Record(path, SETTING).add([answer(place) for place in range(4)])
    path.write_bytes(path.read_bytes()[:cut])
    record = Record(path, SETTING)
    kept = record.answers("guard", "set")
    assert kept == [answer(place) for place in range(len(kept))]
    record.add([answer(place) for place in range(len(kept), 5)])
    assert Record(path, SETTING).answers("guard", "set") == [answer(place) for place in range(5)]


def test_a_record_of_another_setting_is_an_error(tmp_path: Path) -> None:
    Record(tmp_path / "answers.jsonl", SETTING).add([answer(0)])
    with pytest.raises(RecordError, match="other settings"):
        Record(tmp_path / "answers.jsonl", SETTING | {"seed": 1})


def test_a_line_that_is_no_answer_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    Record(path, SETTING).add([answer(0)])
    with path.open("a") as file:
        file.write(json.dumps({"answer": 1}) + "\n")
    with pytest.raises(RecordError, match="no answer"):
        Record(path, SETTING)
