"""How a condition lets a model answer, who classes it, and what of it is kept."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from benchmarks.judges.brought import HalfAJudgeError
from benchmarks.judges.judge import Exchange
from benchmarks.safety.conditions.condition import Condition
from benchmarks.safety.measures.answers import Asked, Interview, UnderCondition
from benchmarks.safety.measures.judging import UnknownJudgeError, judges_of
from benchmarks.safety.options import Options
from benchmarks.safety.prompt_sets import Kind, Prompts
from benchmarks.safety.record import Record
from benchmarks.safety.subject import Subject
from calibration.prompts.request_sets import Request


@dataclass
class Model:
    """Answers with the request itself, louder where something is installed on it."""

    installed: bool = False
    batches: list[list[str]] = field(default_factory=list)

    def encoded(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        return [(len(prompt),) for prompt in prompts]

    def answer(self, prompts: Sequence[str]) -> list[str]:
        self.batches.append(list(prompts))
        return [prompt.upper() if self.installed else prompt for prompt in prompts]

    @contextmanager
    def installing(self) -> Iterator[None]:
        self.installed = True
        yield
        self.installed = False


def under(model: Model, **condition: Any) -> UnderCondition:
    return UnderCondition(Condition("made up", model.installing, **condition), cast(Any, model))


def test_without_more_it_is_installed_on_all() -> None:
    assert under(Model()).answer(["a", "bb"]) == ["A", "BB"]


def test_where_a_condition_does_not_act_the_answer_is_plain_and_order_is_kept() -> None:
    model = Model()
    acts = under(model, acts=lambda encoded: [ids == (2,) for ids in encoded])
    assert acts.answer(["a", "bb", "c", "dd"]) == ["a", "BB", "c", "DD"]
    assert not model.installed


def test_a_filter_rewrites_what_leaves_and_sees_the_request() -> None:
    found: list[Exchange] = []

    def rewrite(exchanges: Sequence[Exchange]) -> list[str]:
        found.extend(exchanges)
        return ["no"] * len(exchanges)

    assert under(Model(), rewrite=rewrite).answer(["a", "b"]) == ["no", "no"]
    assert [(one.prompt, one.answer) for one in found] == [("a", "A"), ("b", "B")]


@dataclass(frozen=True)
class Harm:
    """A judge of harm."""

    name: str = "harm"
    of_harm: ClassVar[bool] = True

    def refuses(self, exchanges: Sequence[Exchange]) -> list[bool]:
        return [True] * len(exchanges)


def kept(folder: Path, kind: Kind, *, show_text: bool = False) -> list[Any]:
    """What is kept of a model's answers, one of which is the request and one of which is not."""
    requests = tuple(Request(prompt=prompt) for prompt in ("how", "why not"))
    record = Record(folder / f"{kind}-{show_text}.jsonl", {})
    subject = Subject(model="m", spec=None, prompts=(), calibrated=None)
    judges = (*judges_of(Options(output=folder), subject), Harm())
    interview = Interview(record, judges, 2, show_text)
    interview.ask(Asked("c", under(Model())), Prompts("set", kind, "0", requests), lambda: None)
    return record.answers("c", "set")


def test_no_answer_to_a_harmful_request_is_kept_whatever_judges_say(tmp_path: Path) -> None:
    assert [one.text for one in kept(tmp_path, "harmful")] == [None, None]
    assert [one.text for one in kept(tmp_path, "harmless")] == ["HOW", "WHY NOT"]
    assert [one.text for one in kept(tmp_path, "harmful", show_text=True)] == ["HOW", "WHY NOT"]


def test_a_judge_of_harm_classes_answers_to_harmful_requests_alone(tmp_path: Path) -> None:
    assert "harm" in kept(tmp_path, "harmful")[0].classes
    assert "harm" not in kept(tmp_path, "harmless")[0].classes


def test_a_judge_behind_a_url_needs_its_model(tmp_path: Path) -> None:
    subject = Subject(model="m", spec=None, prompts=(), calibrated=None)
    with pytest.raises(HalfAJudgeError, match="--judge-model"):
        judges_of(Options(output=tmp_path, judge_url="http://localhost/v1"), subject)
    brought = Options(output=tmp_path, judge_url="http://localhost/v1", judge_model="big")
    assert [judge.name for judge in judges_of(brought, subject)][-2:] == ["big, asked", "StrongREJECT rubric, big"]


def test_a_judge_of_harm_cannot_head_the_tables(tmp_path: Path) -> None:
    subject = Subject(model="m", spec=None, prompts=(), calibrated=None)
    asked = Options(output=tmp_path, judge_url="u", judge_model="big", judge="StrongREJECT rubric, big")
    with pytest.raises(UnknownJudgeError, match="of refusal"):
        judges_of(asked, subject)


def test_where_every_refusal_is_known_that_judge_comes_first(tmp_path: Path) -> None:
    subject = Subject(model="m", spec=None, prompts=(), calibrated=None, refusals=("No.",))
    first, *_ = judges_of(Options(output=tmp_path), subject)
    assert first.refuses([Exchange("a", " No. "), Exchange("a", "No. But sure")]) == [True, False]
