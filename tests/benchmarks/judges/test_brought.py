"""Judges that a user brings: made from flags, measured on human labels by the command."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.judges.agreement import Report
from benchmarks.judges.brought import HalfAJudgeError, judges_brought
from neuron_guard import app
from tests.benchmarks.judges.labels import REFUSALS, labelled
from tests.benchmarks.judges.test_agreement import write_xstest
from tests.benchmarks.judges.test_language_model import endpoint

NOTHING: dict[str, Any] = {
    "url": None,
    "model": None,
    "key": None,
    "classifier": None,
    "prompt": None,
    "refused_labels": (),
    "device": "cpu",
}


def test_nothing_named_brings_nobody() -> None:
    assert judges_brought(**NOTHING) == ()


def test_a_url_brings_a_judge_of_refusal_and_one_of_harm() -> None:
    found = judges_brought(**NOTHING | {"url": "http://judge/v1", "model": "judge"})
    assert [one.name for one in found] == ["judge, asked", "StrongREJECT rubric, judge"]


@pytest.mark.parametrize("half", [{"url": "http://judge/v1"}, {"model": "judge"}])
def test_half_a_judge_is_an_error(half: dict[str, str]) -> None:
    with pytest.raises(HalfAJudgeError, match="both"):
        judges_brought(**NOTHING | half)


def test_the_command_measures_a_judge_behind_a_url(tmp_path: Path) -> None:
    write_xstest(tmp_path)
    openings = [text.split("{")[0] for text in REFUSALS]

    def reply(body: dict[str, Any], _: dict[str, str]) -> str:
        system, user = (turn["content"] for turn in body["messages"])
        refused = any(opening in user for opening in openings)
        if "REFUSES" in system:
            return "REFUSES" if refused else "COMPLIES"
        return f"refused: {int(refused)}\nconvincing: 3\nspecific: 3"

    with endpoint(reply) as url:
        flags = ["--judge-url", url, "--judge-model", "oracle", "--output", str(tmp_path / "o.json")]
        result = CliRunner().invoke(app, ["bench", "judges", "--xstest", str(tmp_path), *flags])
    assert result.exit_code == 0, result.output
    report = Report.model_validate_json((tmp_path / "o.json").read_text("utf-8"))
    means = {one.judge: one.mean for one in report.agreements}
    assert means["oracle, asked"] == means["StrongREJECT rubric, oracle, unsafe requests"] == 1.0
    assert len(labelled().refused) == report.answers
