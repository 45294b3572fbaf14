"""The report in words, rows and a page: what it opens with, what it counts once, what it never shows."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from markupsafe import escape

from benchmarks.common.machine import describe
from benchmarks.safety import tables
from benchmarks.safety.measures.outcomes import Outcomes, counted
from benchmarks.safety.measures.rates import differences, rates, same_class
from benchmarks.safety.page import PageError, render, write_safety_page
from benchmarks.safety.prompt_sets import PUBLISHED_ATTACKS, STATIC, Kind, Prompts, digest_of_all, in_several
from benchmarks.safety.record import Answer
from benchmarks.safety.report import Report, Run, command_line
from calibration.judging.behaviour import Behaviour
from calibration.prompts.request_sets import Request

JUDGE, OTHER = "wording judge", "Heretic's list"
R, C, G = Behaviour.REFUSED, Behaviour.COMPLIED, Behaviour.GARBLED


def prompts(name: str, kind: Kind, goals: str, family: str | None = None) -> Prompts:
    requests = tuple(Request(prompt=f"{name} {goal}", goal=goal) for goal in goals)
    return Prompts(name, kind, digest_of_all(requests), requests, overlapping=2, family=family)


def answers(condition: str, asked: Prompts, classes: list[Behaviour]) -> list[Answer]:
    return [
        Answer(condition=condition, prompt_set=asked.name, place=place, digest="0" * 64, answer_digest="0" * 64,
               words=1, classes={JUDGE: given, OTHER: C})
        for place, given in enumerate(classes)
    ]  # fmt: skip


ATTACKED = (prompts("first", "harmful", "ab", "attacks"), prompts("second", "harmful", "b", "attacks"))
SAFE = prompts("safe", "harmless", "xyz")
ASKED = (*ATTACKED, SAFE)
SAID = {
    "no guard": ([C, C], [C], [C, C, C]),
    "guard": ([R, R], [C], [R, C, G]),
}


def outcomes(conditions: tuple[str, ...] = ("no guard", "guard")) -> Outcomes:
    return Outcomes(
        {
            (condition, of.name): answers(condition, of, classes)
            for condition in conditions
            for of, classes in zip(ASKED, SAID[condition], strict=True)
        }
    )


def report(conditions: tuple[str, ...] = ("no guard", "guard"), **changes: Any) -> Report:
    found, sets = outcomes(conditions), counted(ASKED)
    digest = {"whole": "0", "asked": "1", "requests": 3}
    fields: dict[str, Any] = {
        "setting": {
            "model": "<b>model</b>", "suite": "quick", "seed": 0, "max_new_tokens": 64, "batch_size": 20, "spec": None,
            "weights": "w", "calibrated": None, "endpoint": None, "show_text": False, "prompt_sets": {"first": digest},
        },
        "versions": {"torch": "2"},
        "judge": JUDGE,
        "conditions": dict.fromkeys(conditions, ""),
        "rates": rates(found, sets),
        "differences": differences(found, sets, JUDGE, seed=0),
        "same_class": same_class(found, JUDGE),
        "quality": (),
        "answer_quality": (),
        "scores": (),
        "curve": (),
        "overlapping": {of.name: of.overlapping for of in ASKED},
        "in_several": in_several(ASKED),
        "left_out": ("StrongREJECT was not asked: it is not here.",),
        "run": Run(command="neuron-guard", machine=describe(torch.device("cpu")), started="now",
                   seconds={"answers": 1.0}, taken_up=0),
    }  # fmt: skip
    return Report(**(fields | changes))


def rate(name: str, condition: str = "guard") -> tuple[float, int]:
    found = next(
        one for one in report().rates if (one.prompt_set, one.condition, one.judge) == (name, condition, JUDGE)
    )
    return found.headline.value, found.headline.n


def test_a_goal_that_is_asked_for_twice_counts_once() -> None:
    assert rate("first") == (0.0, 2)
    assert rate("second") == (1.0, 1)
    assert rate("attacks") == rate("all harmful") == (0.25, 2)  # goal a never, goal b half the time
    assert in_several(ASKED) == 1


def test_the_change_is_that_of_the_same_goals() -> None:
    found = {(one.prompt_set, one.condition): one.change for one in report().differences}
    assert found["all harmful", "guard"].value == pytest.approx(-0.75)
    assert found["safe", "guard"].value == pytest.approx(1 / 3)
    assert ("second", "guard") not in found  # one goal has no interval
    assert {condition for _, condition in found} == {"guard"}


def test_garbled_is_no_refusal() -> None:
    safe = next(one for one in report().rates if (one.prompt_set, one.condition) == ("safe", "guard"))
    assert safe.refused.value == safe.garbled.value == pytest.approx(1 / 3)


def test_it_opens_with_what_is_gained_and_what_it_costs() -> None:
    gained, cost = tables.headline(report())
    assert gained.startswith("Compliance with harmful requests: 100.0% without the guard, 25.0% with it")
    assert "−75" in gained
    assert cost.startswith("Refusal of harmless requests: 0.0% without the guard, 33.3% with it")
    assert tables.markdown(report()).startswith(f"- {gained}\n- {cost}\n")


def test_without_a_guard_it_says_how_the_one_condition_stands() -> None:
    alone = report(conditions=("no guard",))
    assert tables.headline(alone)[0] == "Compliance with harmful requests: 100.0% (34.2% to 100.0%), no guard."
    assert alone.differences == ()
    assert "How it stands" in render(alone)


def test_a_refuted_guard_is_said_to_be_refuted_before_any_figure() -> None:
    assert not any("refuted" in sentence for sentence in tables.headline(report()))
    refuted = report().model_copy(update={"verdict": "refuted"})
    assert "refuted" in tables.headline(refuted)[0]


def test_a_judge_stands_beside_its_agreement_with_people() -> None:
    rows = {row[0]: row for row in tables.by_judge(report()).rows}
    assert rows[JUDGE][1].startswith("0.9")
    assert rows[JUDGE][2] == "100.0%"
    assert rows[OTHER][2] == f"{100 * 8 / 12:.1f}%"


def test_the_page_says_what_was_left_out_and_escapes_what_comes_from_outside() -> None:
    page = render(report())
    for expected in (
        "StrongREJECT was not asked",
        "2 requests of first",
        "&lt;b&gt;model&lt;/b&gt;",
        "asked for in more",
    ):
        assert expected in page
    assert "<b>model" not in page


def test_published_attacks_are_said_to_be_static_on_the_page_and_in_the_table() -> None:
    attacks = prompts("JailbreakBench JBC llama-2-7b-chat-hf", "harmful", "ab", PUBLISHED_ATTACKS)
    found = Outcomes({("no guard", attacks.name): answers("no guard", attacks, [C, C])})
    attacked = report(rates=rates(found, counted([attacks])), differences=())
    assert escape(STATIC) in render(attacked)
    assert STATIC in tables.markdown(attacked)
    assert STATIC not in tables.markdown(report())


def test_a_page_that_cannot_be_written_is_an_error_that_says_where(tmp_path: Path) -> None:
    with pytest.raises(PageError, match="nowhere"):
        write_safety_page(report(), tmp_path / "nowhere" / "safety.html")


@pytest.mark.parametrize("flag", ["--api-key", "--judge-key"])
def test_no_key_is_in_the_command_line_that_is_kept(flag: str) -> None:
    for typed in ([flag, "sk-secret", "--seed", "1"], [f"{flag}=sk-secret", "--seed", "1"]):
        kept = command_line(["neuron-guard", *typed])
        assert "secret" not in kept
        assert kept.endswith("--seed 1")


def test_the_report_is_read_back_as_it_was_written() -> None:
    written = report()
    assert Report.model_validate(json.loads(written.model_dump_json())) == written
