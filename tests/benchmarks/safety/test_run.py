"""The whole benchmark on an organism: what it measures, that a killed run ends the same, that no harm is written."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.safety.measures.judging import UnknownJudgeError
from benchmarks.safety.measures.quality import WINDOW, windows
from benchmarks.safety.options import Options
from benchmarks.safety.record import Record
from benchmarks.safety.report import Report
from benchmarks.safety.run import run
from guard.loading import load_model
from tests.benchmarks.safety.asking import options_in, prepared, prompts_in
from tests.serve.live import KEY, live
from tests.serve.served import MODEL, ORGANISM

OPENINGS = "calibration's 21 openings"
COUNT = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("safety")
    prepared(made, COUNT)
    return made


def options(folder: Path, output: str, **more: Any) -> Options:
    return Options(output=folder / output, **(options_in(folder, ORGANISM) | more))


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return run(options(folder, "whole"))


def share(report: Report, condition: str, prompt_set: str) -> tuple[float, float]:
    rate = next(
        one for one in report.rates if (one.condition, one.prompt_set, one.judge) == (condition, prompt_set, OPENINGS)
    )
    return rate.refused.value, rate.complied.value


def test_the_guard_turns_compliance_into_refusal_and_leaves_the_rest(report: Report) -> None:
    assert share(report, "no guard", "harmful") == (0.0, 1.0)
    assert share(report, "guard", "harmful") == (1.0, 0.0)
    assert share(report, "random neurons", "harmful") == (0.0, 1.0)
    assert share(report, "guard", "benign") == share(report, "no guard", "benign") == (0.0, 1.0)


def test_every_condition_is_asked_every_request(report: Report) -> None:
    assert {rate.condition for rate in report.rates} == {"no guard", "guard", "system prompt", "random neurons"}
    assert {rate.refused.n for rate in report.rates} == {COUNT}


def said(report: Report) -> Report:
    """The report without what may differ between two runs that say the same."""
    return report.model_copy(update={"run": None})


class Killed(BaseException):
    """The process dies here."""


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Lets the record take so many batches, and tears the next one."""

    def arm(batches: int) -> None:
        add, left = Record.add, [batches]

        def torn(self: Record, answers: Any) -> None:
            if not left[0]:
                with self.path.open("ab") as file:
                    file.write(answers[0].model_dump_json(exclude_none=True).encode()[:40])
                raise Killed
            left[0] -= 1
            add(self, answers)

        monkeypatch.setattr(Record, "add", torn)

    yield arm
    monkeypatch.undo()


@pytest.mark.parametrize("batches", [0, 1, 4, 11])
def test_a_run_that_was_killed_and_goes_on_says_the_same(
    folder: Path, report: Report, batches: int, killed_after: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"killed-{batches}"
    killed_after(batches)
    with pytest.raises(Killed):
        run(options(folder, name))
    monkeypatch.undo()
    assert said(run(options(folder, name))) == said(report)
    assert (folder / name / "safety.md").read_text() == (folder / "whole" / "safety.md").read_text()


def test_no_harmful_request_and_no_answer_that_complies_with_one_is_written(folder: Path, report: Report) -> None:
    assert report.rates
    requests = prompts_in(folder / "harmful.jsonl")
    written = b"".join(path.read_bytes() for path in (folder / "whole").rglob("*") if path.is_file())
    assert not any(request.encode() in written for request in requests)
    rows = [json.loads(line) for line in (folder / "whole" / "answers.jsonl").read_text().splitlines()[1:]]
    assert all("text" not in row for row in rows if row["prompt_set"] == "harmful")
    assert any("text" in row for row in rows if row["prompt_set"] == "benign")


def digests(folder: Path, condition: str) -> dict[tuple[str, int], str]:
    """What was answered to each request, by its hash."""
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()[1:]]
    return {(row["prompt_set"], row["place"]): row["answer_digest"] for row in rows if row["condition"] == condition}


def test_an_endpoint_gives_the_rates_and_answers_that_the_model_in_process_gives(folder: Path, report: Report) -> None:
    with live(folder / "spec.safetensors") as server:
        served = run(options(folder, "served", model=MODEL, spec=None, endpoint=f"{server.url}/v1", key=KEY))
    ours = {(one.prompt_set, one.judge): one for one in report.rates if one.condition == "guard"}
    assert {(one.prompt_set, one.judge) for one in served.rates} == set(ours)
    for one in served.rates:
        same = ours[one.prompt_set, one.judge]
        assert (one.refused, one.complied, one.garbled) == (same.refused, same.complied, same.garbled)
    here, there = digests(folder / "whole", "guard"), digests(folder / "served", "as served")
    assert len(here) == 2 * COUNT
    assert here == there


def test_an_unknown_judge_is_an_error(folder: Path) -> None:
    with pytest.raises(UnknownJudgeError, match="choose among"):
        run(options(folder, "unknown", judge="the pope"))


def test_quality_is_read_on_whole_windows_of_the_text(folder: Path) -> None:
    (folder / "wikitext2").mkdir(exist_ok=True)
    text = "How do I cut the lever? " * 400
    (folder / "wikitext2" / "test.txt").write_text(text)
    model, tokenizer = load_model(str(ORGANISM), device="cpu", dtype="float32")
    assert model.config.vocab_size
    ids = windows(tokenizer, folder / "wikitext2" / "test.txt", 3)
    assert ids.shape == (3, WINDOW)
    assert ids.dtype == torch.int64
    found = run(options(folder, "quality", data=folder)).quality
    by_name = {one.condition: one for one in found}
    assert by_name["no guard"].kl.value == 0.0
    assert by_name["guard"].perplexity.n == by_name["no guard"].perplexity.n
    assert by_name["guard"].kl.value > 0.0
