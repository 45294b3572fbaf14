"""Static attacks: the same requests plain and attacked, with the guard and without."""

from pathlib import Path

import pytest

from benchmarks.robustness.attacks.replay import StaticAttack, published, replay, wrappers
from benchmarks.safety.conditions.catalogue import GUARDED, PLAIN
from tests.benchmarks.robustness.guarded import guarded_organism, is_bare

OWN = guarded_organism(5)
DATA = Path(__file__).parents[4] / "shared" / "data"


def test_wrappers_are_taken_in_turn_and_keep_the_answer() -> None:
    attack = wrappers("a", ("{prompt} x", "y {prompt}"), OWN.requests)
    for place, (plain, attacked) in enumerate(zip(attack.plain, attack.attacked, strict=True)):
        assert attacked.prompt == (f"y {plain.prompt}" if place % 2 else f"{plain.prompt} x")
        assert attacked.compliance == plain.compliance


def test_an_attack_is_asked_with_the_guard_and_without() -> None:
    attack = wrappers("known", OWN.organism.lexicon.wrappers, OWN.requests)
    rows = {one.condition: one for one in replay(OWN, [attack]).rows}
    assert set(rows) == {PLAIN, GUARDED}
    assert rows[PLAIN].after.complied.value == 1.0
    assert rows[GUARDED].after.refused.value == 1.0
    assert is_bare(OWN.model)


def test_no_attack_prompts_are_said_to_be_missing() -> None:
    result = replay(OWN, [StaticAttack("empty", (), ())])
    assert not result.rows
    assert "name the folder" in result.left_out[0]
    assert published(None, count=3, seed=0, seen=()) == []


def test_an_attack_that_does_not_fit_into_the_context_is_left_out_with_its_plain_request_and_counted() -> None:
    attack = wrappers("long", ("{prompt}", "{prompt}" + " the door" * 400), OWN.requests)
    short = wrappers("long", ("{prompt}",), OWN.requests[::2])
    whole, alone = replay(OWN, [attack]), replay(OWN, [short])
    assert whole.rows == alone.rows
    assert whole.left_out[0].startswith("2 of 5 requests of long were not asked")
    assert alone.left_out == ()


@pytest.mark.skipif(not DATA.exists(), reason="JailbreakBench's attacks are not at hand")
def test_published_attacks_come_with_their_goals_and_none_that_calibration_has_seen() -> None:
    attacks = published(DATA, count=3, seed=0, seen=())
    assert len(attacks) > 1
    for attack in attacks:
        assert len(attack.plain) == len(attack.attacked) == 3
        assert all(one.prompt == other.goal for one, other in zip(attack.plain, attack.attacked, strict=True))
        assert all(one.prompt != other.prompt for one, other in zip(attack.plain, attack.attacked, strict=True))
    seen = attacks[0].attacked[:1]
    again = published(DATA, count=100, seed=0, seen=seen)[0]
    assert seen[0].group not in {one.group for one in again.attacked}
