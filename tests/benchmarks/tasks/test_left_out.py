"""What cannot be scored is left out with a sentence, never silently."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.tasks import scores
from benchmarks.tasks.answering import ScoredEndpoint, ScoredModel
from benchmarks.tasks.catalogue import TASKS
from benchmarks.tasks.scores import Scoring, left_out, score
from tests.benchmarks.tasks import small_data
from tests.serve.served import MODEL

pytest.importorskip("lm_eval")
from benchmarks.tasks import harness

CHOICES = tuple(task for task in TASKS if not task.generates)


def test_a_task_without_rows_is_left_out_with_a_sentence(
    organism: ScoredModel, scoring: Scoring, tmp_path: Path
) -> None:
    nowhere = replace(scoring, data=tmp_path)
    assert score(organism, nowhere) == ()
    sentences = left_out(organism, nowhere)
    assert len(sentences) == len(TASKS)
    assert all(
        sentence.startswith(f"{task.name} is left out: there is no ")
        for task, sentence in zip(TASKS, sentences, strict=True)
    )


def test_ifeval_without_its_packages_is_left_out_with_a_sentence(
    organism: ScoredModel, scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: None if name == "langdetect" else find_spec("os"))
    assert score(organism, scoring, TASKS[1:2]) == ()
    assert left_out(organism, scoring, TASKS[1:2]) == (
        "IFEval is left out: it needs langdetect; pip install 'neuron-guard[bench]'.",
    )


def test_values_that_are_not_finite_are_no_score(
    organism: ScoredModel, scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "values_by_row", lambda *_, **__: {("acc", "none"): [0.5, float("nan")]})
    assert score(organism, scoring, CHOICES[:1]) == ()
    assert left_out(organism, scoring, CHOICES[:1]) == ("PIQA is left out under no guard: 1 values are not finite.",)


def test_rows_with_a_choice_longer_than_the_context_are_left_out_with_a_sentence(
    organism: ScoredModel, scoring: Scoring, tmp_path: Path
) -> None:
    data = small_data.write(tmp_path / "long")
    goals = (data / "piqa" / "valid.jsonl").read_text().splitlines()
    goals[2] = goals[2].replace("the door", "the door " * 260)
    (data / "piqa" / "valid.jsonl").write_text("\n".join(goals))
    long = replace(scoring, data=data, limit=None)
    assert {one.estimate.n for one in score(organism, long, CHOICES[:1])} == {small_data.ROWS - 1}
    assert left_out(organism, long, CHOICES[:1]) == (
        "PIQA under no guard is without 1 of 5 rows: a choice does not fit into 256 tokens.",
    )


def test_lm_eval_that_is_not_installed_is_an_error(
    organism: ScoredModel, scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "PACKAGE", "no-such-package")
    with pytest.raises(scores.HarnessMissingError, match="neuron-guard\\[bench\\]"):
        score(organism, scoring)


def test_an_endpoint_that_is_not_there_has_a_sentence_for_every_task_of_choices(scoring: Scoring) -> None:
    nobody = ScoredEndpoint("http://127.0.0.1:1/v1", MODEL)
    assert score(nobody, scoring, CHOICES) == ()
    assert all("does not answer" in sentence for sentence in left_out(nobody, scoring, CHOICES))
