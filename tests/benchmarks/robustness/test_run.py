"""The whole benchmark: resumed or not it says the same, and no text is in what it writes."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.robustness import options as options_module
from benchmarks.robustness import run as run_module
from benchmarks.robustness.attacks.suffix import Budget
from benchmarks.robustness.options import Options, Size
from benchmarks.robustness.result import Report
from benchmarks.robustness.run import NO_SUFFIXES, NothingToAttackError, run
from benchmarks.safety.conditions.catalogue import GUARDED
from neuron_guard import app
from tests.benchmarks.robustness.guarded import NAME, guarded_organism
from tests.serve.served import ORGANISM, organism_spec

PROMPTS = ORGANISM.parents[1] / "prompts"
SHORT = ("replay", "prefill", "suffix")
SMALL = Size(requests=6, searched=2, steps=(1,), budget=Budget(tokens=2, steps=1, candidates=3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("robustness")
    organism_spec().save(made / "spec.safetensors")
    rows = (PROMPTS / "harmful.jsonl").read_text().splitlines()[:8]
    (made / "harmful.jsonl").write_text("\n".join(rows))
    return made


@pytest.fixture(scope="module", autouse=True)
def small() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options_module, "QUICK", SMALL)
        yield


def options(folder: Path, name: str, **more: Any) -> Options:
    fields: dict[str, Any] = {
        "organism": NAME,
        "spec": folder / "spec.safetensors",
        "output": folder / name,
        "quick": True,
    }
    return Options(**(fields | more))


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return run(options(folder, "whole"))


def comparable(report: Report) -> dict[str, Any]:
    return report.model_dump(exclude={"run"})


def test_all_attacks_are_tried_on_an_organism(report: Report) -> None:
    assert [one.attack for one in report.attacks] == ["replay", "prefill", "suffix", "fine-tuning", "quantisation"]
    assert all(any(row.condition == GUARDED for row in one.rows) for one in report.attacks)
    assert report.left_out == ()


def test_what_is_written_is_the_report_and_a_table(folder: Path, report: Report) -> None:
    assert Report.model_validate_json((folder / "whole" / "robustness.json").read_text()) == report
    assert "break by the answer begun" in (folder / "whole" / "robustness.md").read_text()
    assert sorted(path.name for path in (folder / "whole").iterdir()) == ["robustness.json", "robustness.md"]


def test_no_request_and_no_answer_is_written(folder: Path, report: Report) -> None:
    assert report.attacks
    written = "".join(path.read_text() for path in (folder / "whole").iterdir())
    for request in guarded_organism(SMALL.requests).requests:
        assert request.prompt not in written
        assert (request.compliance or "") not in written


@pytest.fixture(scope="module")
def short(folder: Path) -> Report:
    return run(options(folder, "short", attacks=SHORT))


@pytest.mark.parametrize("stage", ["replay", "suffix"])
def test_a_run_that_was_killed_and_goes_on_says_the_same(
    folder: Path, short: Report, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"killed-{stage}"
    attack, asked = run_module._attack, []

    def killed(which: str, *arguments: Any) -> Any:
        asked.append(which)
        if which == stage and asked.count(stage) == 1:
            raise KeyboardInterrupt
        return attack(which, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(run_module, "_attack", killed)
    with pytest.raises(KeyboardInterrupt):
        run(options(folder, name, attacks=SHORT))
    again = run(options(folder, name, attacks=SHORT))
    assert comparable(again) == comparable(short)
    assert len(asked) == len(set(asked)) + 1, "an attack that was done was done again"
    assert again.run.taken_up == len(asked) - len(asked[asked.index(stage) + 1 :]) - 1


def test_a_users_model_is_put_to_the_attacks_that_only_measure(folder: Path) -> None:
    users = {"organism": None, "model": str(ORGANISM), "harmful": (str(folder / "harmful.jsonl"),)}
    found = run(options(folder, "users", **users))
    assert [one.attack for one in found.attacks] == ["replay", "prefill", "quantisation"]
    assert found.left_out == (NO_SUFFIXES,)
    assert found.setting["judged by"] == "wording"


def test_a_spec_without_an_edit_is_nothing_to_attack(folder: Path) -> None:
    spec = organism_spec()
    refuted = spec.evidence.model_copy(
        update={"verdict": spec.evidence.verdict.model_copy(update={"outcome": "refuted", "reasons": ("none",)})}
    )
    organism_spec(layers=(), evidence=refuted).save(folder / "empty.safetensors")
    with pytest.raises(NothingToAttackError, match="edits nothing"):
        run(options(folder, "empty", spec=folder / "empty.safetensors"))


def test_the_command_says_what_may_not_be_attacked(folder: Path) -> None:
    arguments = ["bench", "robustness", str(ORGANISM), "--spec", str(folder / "spec.safetensors"), "--attack", "suffix"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 2
    assert "organisms alone" in found.output
    assert json.dumps(found.output)
