"""What was learnt for a run is taken up by the same run alone, and decides which scores are whose."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.safety.conditions.kept import KeptBaselines, KeptChange, KeptFilter
from benchmarks.safety.measures.measuring import scored
from benchmarks.safety.options import Options
from benchmarks.safety.prompt_sets import Prompts
from benchmarks.safety.stages import load
from benchmarks.safety.subject import Subject, read_subject
from benchmarks.tasks.scores import Scoring
from calibration.prompts.request_sets import Request
from tests.benchmarks.safety.asking import options_in, prepared
from tests.serve.served import ORGANISM

NOTHING = KeptChange(words="does nothing")
LEARNT = KeptBaselines(
    contrast=None,
    direction=NOTHING,
    conditional=NOTHING,
    output_filter=KeptFilter(layer=0, direction=(0.0,), threshold=0.0, rate=0.0, refusal="No."),
)


def asked(folder: Path, **more: Any) -> Options:
    return Options(output=folder / "out", **(options_in(folder, ORGANISM, calibrated=True) | more))


def with_answer(subject: Subject, answer: str) -> Subject:
    """The same subject, but for what one of its calibrated requests is answered."""
    assert subject.calibrated is not None
    first, *others = subject.calibrated.harmful
    changed = (first.model_copy(update={"compliance": answer}), *others)
    return replace(subject, calibrated=replace(subject.calibrated, harmful=changed))


def test_baselines_are_learnt_again_where_something_else_decides_them_and_only_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(tmp_path, 4)
    learnt: list[str] = []

    def learn(*_: object, **__: object) -> KeptBaselines:
        learnt.append("once")
        return LEARNT

    monkeypatch.setattr("benchmarks.safety.conditions.learnt.learn_all", learn)
    options = asked(tmp_path)
    subject = read_subject(options)
    for times, (given, of) in enumerate(
        [
            (options, subject),
            (asked(tmp_path, seed=1), subject),
            (asked(tmp_path, seed=1), with_answer(subject, "Sure")),
        ]
    ):
        for _ in range(2):
            (tmp_path / "out").mkdir(exist_ok=True)
            load(given, of)
            assert len(learnt) == times + 1


def test_scores_belong_to_the_requests_that_baselines_learnt_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(tmp_path, 4)
    paths: list[object] = []

    def kept(_: object, scoring: Scoring, **__: object) -> tuple[()]:
        paths.append(scoring.of)
        return ()

    monkeypatch.setattr("benchmarks.tasks.scores.score", kept)
    monkeypatch.setattr("benchmarks.tasks.scores.left_out", lambda *_: ())
    options = asked(tmp_path, tasks=True, endpoint="http://localhost/v1")
    prompts = Prompts("made up", "harmful", "0", (Request(prompt="How?"),))
    subject = replace(read_subject(options), prompts=(prompts,))
    for one in (subject, with_answer(subject, "Sure"), subject):
        scored(options, one, None, lambda *_: nullcontext(lambda _: None))
    assert paths[0] == paths[2] != paths[1]
