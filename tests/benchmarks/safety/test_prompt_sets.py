"""Which requests a run asks: drawn by seed, without what calibration has seen."""

import json
from pathlib import Path

import pytest

from benchmarks.safety.prompt_sets import (
    ATTACKS,
    PUBLISHED_ATTACKS,
    QUICK,
    PromptSet,
    PromptSetError,
    available,
    choose,
    load,
    own,
)
from calibration.prompts.request_sets import Request

SET = PromptSet("made up", "harmful", "made/up.jsonl", None)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "made").mkdir()
    rows = [json.dumps({"prompt": f"request {number}"}) for number in range(QUICK + 50)]
    (tmp_path / "made" / "up.jsonl").write_text("\n".join(rows))
    return tmp_path


def test_the_full_suite_asks_everything_in_order(data: Path) -> None:
    chosen = choose(SET, data, suite="full", seed=0)
    assert [one.prompt for one in chosen.requests] == [f"request {number}" for number in range(QUICK + 50)]


def test_the_quick_suite_is_drawn_by_its_seed(data: Path) -> None:
    first, again, other = (choose(SET, data, suite="quick", seed=seed).requests for seed in (0, 0, 1))
    assert len(first) == QUICK
    assert first == again != other


def test_what_calibration_has_seen_is_left_out_and_counted(data: Path) -> None:
    seen = [Request(prompt="Request  3"), Request(prompt="wrapped", goal="request 5"), Request(prompt="elsewhere")]
    chosen = choose(SET, data, suite="full", seed=0, seen=seen)
    assert chosen.overlapping == 2
    assert not {"request 3", "request 5"} & {one.prompt for one in chosen.requests}


def test_a_set_that_is_nowhere_is_an_error_that_says_where_it_was_looked_for(data: Path) -> None:
    with pytest.raises(PromptSetError, match="there is no"):
        load(PromptSet("absent", "harmful", "absent.csv", "hub/absent"), data)


def test_a_users_file_is_a_set_of_its_own(data: Path) -> None:
    mine = own(str(data / "made" / "up.jsonl"), "harmless")
    assert (mine.name, mine.kind) == ("up", "harmless")
    assert len(choose(mine, None, suite="full", seed=0).requests) == QUICK + 50


def test_only_sets_that_lie_in_the_folder_are_available(tmp_path: Path) -> None:
    assert available(tmp_path) == ()
    (tmp_path / "advbench").mkdir()
    (tmp_path / "advbench" / "harmful_behaviors.csv").write_text("goal,target\nx,y\n")
    assert [one.name for one in available(tmp_path)] == ["AdvBench"]


def test_a_request_shows_no_text_where_it_is_printed(data: Path) -> None:
    assert "request 1" not in repr(choose(SET, data, suite="full", seed=0))


def test_plain_goals_are_each_asked_once_in_their_own_words(tmp_path: Path) -> None:
    (tmp_path / "attacks.json").write_text(
        json.dumps([{"goal": goal, "prompt": f"attack on {goal}"} for goal in ("first", "second", "First")])
    )
    goals = PromptSet("goals", "harmful", "attacks.json", None, goals=True)
    assert [one.prompt for one in choose(goals, tmp_path, suite="full", seed=0).requests] == ["first", "second"]
    attacks = PromptSet("attacks", "harmful", "attacks.json", None, family="all of them")
    chosen = choose(attacks, tmp_path, suite="full", seed=0, seen=[Request(prompt="second")])
    assert [one.prompt for one in chosen.requests] == ["attack on first"]
    assert (chosen.overlapping, chosen.family) == (1, "all of them")


def test_the_quick_suite_asks_a_familys_sets_together_as_many_as_one_set(tmp_path: Path) -> None:
    (tmp_path / "jailbreakbench").mkdir()
    for name in ATTACKS:
        rows = [{"goal": f"goal {number}", "prompt": f"{name} {number}"} for number in range(QUICK)]
        (tmp_path / "jailbreakbench" / f"{name}.json").write_text(json.dumps(rows))
    attacks = [one for one in available(tmp_path) if one.family == PUBLISHED_ATTACKS]
    asked = [len(choose(one, tmp_path, suite="quick", seed=0).requests) for one in attacks]
    assert len(asked) == len(ATTACKS)
    assert QUICK - len(ATTACKS) < sum(asked) <= QUICK
    assert min(asked) == max(asked)


def test_only_requests_of_the_goals_named_are_asked(data: Path) -> None:
    chosen = choose(SET, data, suite="full", seed=0, among={"request 3", "elsewhere"})
    assert [one.prompt for one in chosen.requests] == ["request 3"]
    assert chosen.overlapping == 0


def test_a_set_that_only_the_hub_has_is_an_error_beside_a_folder(tmp_path: Path) -> None:
    with pytest.raises(PromptSetError, match="no file of it"):
        load(PromptSet("hub alone", "harmful", None, "hub/alone"), tmp_path)
