"""The curve: its intervals are those of the answers, its front is the front, and what is written says the same."""

import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape

from benchmarks.safety.conditions.catalogue import GUARDED, PLAIN
from benchmarks.safety.conditions.condition import Condition
from benchmarks.safety.conditions.strength import Strength
from benchmarks.safety.curve.document import CurveError, Point, drawing, markdown, page, pareto_front, points, write
from benchmarks.safety.curve.parts import LEAST, divergence, for_logarithm, told
from benchmarks.safety.curve.points import Cost, Floats
from benchmarks.safety.prompt_sets import Kind
from calibration.effects.statistics import bootstrap_estimate, wilson_estimate
from calibration.judging.behaviour import Behaviour
from calibration.report.display import number
from calibration.report.plots_of_gate import SMALLEST_KL
from guard.spec.measures import Estimate

GOALS = 40
STRENGTHS = (
    Strength(PLAIN, nullcontext),
    Strength("guard, 4 of 8 neurons", nullcontext, sweep="neurons", neurons=4, of_neurons=8, tightness=1.0),
    Strength("guard, bounds at 50%", nullcontext, sweep="bounds", neurons=8, of_neurons=8, tightness=0.5),
    Strength(GUARDED, nullcontext, neurons=8, of_neurons=8, tightness=1.0),
)
BASELINES = (Condition("system <b>prompt</b>", nullcontext), Condition("true gate", nullcontext))
# of the goals, how many harmful ones are refused, and how many harmless ones are refused and garbled
COUNTS = {
    PLAIN: (1, 0, 0),
    "guard, 4 of 8 neurons": (20, 1, 0),
    "guard, bounds at 50%": (18, 1, 2),
    GUARDED: (38, 2, 0),
    "system <b>prompt</b>": (30, 12, 0),
    "true gate": (40, 0, 0),
}
COST = {name: place / 100 for place, name in enumerate(COUNTS)}


def shares(condition: str, kind: Kind, behaviour: Behaviour) -> Floats:
    harmful, refused, garbled = COUNTS[condition]
    classes = [Behaviour.REFUSED] * (harmful if kind == "harmful" else refused)
    classes += [Behaviour.GARBLED] * (garbled if kind == "harmless" else 0)
    classes += [Behaviour.COMPLIED] * (GOALS - len(classes))
    return np.array([one is behaviour for one in classes], dtype=np.float64)


def kl(*without: str) -> dict[str, Estimate]:
    return {name: Estimate(value=cost, low=cost / 2, high=2 * cost, n=16) for name, cost in COST.items()
            if name not in without}  # fmt: skip


def made(*without: str) -> dict[str, Point]:
    return {one.condition: one for one in points((*STRENGTHS, *BASELINES), shares, kl(*without), seed=0)}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_the_front_is_what_no_other_point_beats(drawn: list[tuple[int, int]]) -> None:
    expected = [not any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in drawn) for cost, gain in drawn]
    assert pareto_front([cost for cost, _ in drawn], [gain for _, gain in drawn]) == expected


def test_shares_have_wilson_intervals_and_changes_paired_bootstrap_ones() -> None:
    point = made()[GUARDED]
    assert point.harmful_refused == wilson_estimate(38, GOALS)
    assert point.harmless_refused == wilson_estimate(2, GOALS)
    changed = [0.0] + [1.0] * 37 + [0.0] * 2
    assert point.harmful_refused_change == bootstrap_estimate(changed, seed=0)


def test_a_harmless_request_whose_answer_is_garbled_is_lost() -> None:
    point = made()["guard, bounds at 50%"]
    assert point.harmless_lost.value == 3 / GOALS
    assert point.harmless_refused.value == 1 / GOALS


def test_the_front_is_marked_by_each_cost() -> None:
    found = made()
    assert {name for name, point in found.items() if "harmless" in point.front} == {"true gate"}
    assert {name for name, point in found.items() if "kl" in point.front} == {
        PLAIN, "guard, 4 of 8 neurons", GUARDED, "true gate",
    }  # fmt: skip


def test_rounding_in_the_kl_decides_no_front() -> None:
    barely = kl() | {GUARDED: Estimate(value=-1e-10, low=-1e-9, high=1e-9, n=16)}
    barely |= {"true gate": Estimate(value=3e-10, low=-1e-9, high=1e-9, n=16)}
    found = points((*STRENGTHS, *BASELINES), shares, barely, seed=0)
    assert {one.condition for one in found if "kl" in one.front} == {"true gate"}


def test_a_cost_that_was_not_read_puts_nothing_on_its_front() -> None:
    assert made(GUARDED)[GUARDED].kl is None
    assert made(GUARDED)[GUARDED].front == ()
    assert not any("kl" in point.front for point in made(*COST).values())


def test_of_a_strength_and_a_condition_by_one_name_the_strength_is_taken() -> None:
    twice = points((Condition(PLAIN, nullcontext), *BASELINES, *STRENGTHS), shares, kl(), seed=0)
    assert {one.condition: one for one in twice} == made()
    assert len(twice) == len(made())


def test_a_curve_without_no_guard_or_of_one_request_is_an_error() -> None:
    with pytest.raises(CurveError, match="without a guard"):
        points(STRENGTHS[1:], shares, {}, seed=0)
    with pytest.raises(CurveError, match="at least two"):
        points(STRENGTHS, lambda *asked: shares(*asked)[:1], {}, seed=0)


def test_points_come_back_from_json() -> None:
    for point in made().values():
        assert Point.model_validate_json(point.model_dump_json()) == point


@pytest.mark.parametrize("without", [(), tuple(COST)], ids=["both costs", "no KL"])
def test_each_point_says_what_it_is_in_each_panel_of_the_drawing(without: tuple[str, ...]) -> None:
    pytest.importorskip("matplotlib", reason="it draws the pictures")
    found = list(made(*without).values())
    said = re.findall(r"<title>(.*?)</title>", drawing(found))
    costs: tuple[Cost, ...] = ("harmless",) if without else ("harmless", "kl")
    assert said == [str(escape(told(point, cost))) for cost in costs for point in found]


def test_the_drawing_has_the_colours_of_the_page_alone() -> None:
    pytest.importorskip("matplotlib", reason="it draws the pictures")
    unseen = re.compile(r'<g id="(?:harmless|kl)-\d+">.*?</g>', re.DOTALL)
    assert re.findall(r"#[0-9a-f]{6}\b", unseen.sub("", drawing(list(made().values())))) == []


def test_a_kl_that_is_rounding_is_told_as_less_than_the_least_and_zero_only_where_it_is() -> None:
    def told_of(value: float, low: float, high: float) -> str:
        return divergence(Estimate(value=value, low=low, high=high, n=4))

    assert told_of(0.0, 0.0, 0.0) == "0"
    assert told_of(-4.6e-12, -1.7e-10, 1.5e-10) == LEAST
    assert told_of(1.4e-5, -6.8e-21, 6.3e-5) == f"{number(1.4e-5)} ({LEAST} to {number(6.3e-5)})"
    assert told_of(2e-3, 0.0, 3e-3) == f"{number(2e-3)} (0 to {number(3e-3)})"
    assert number(SMALLEST_KL).endswith(LEAST.removeprefix("< "))


def test_the_table_has_a_line_for_each_point_with_as_many_cells_as_the_head() -> None:
    head, ruler, *lines = [line for line in markdown(list(made().values())).splitlines() if line.startswith("|")]
    assert len(lines) == len(made())
    assert {line.count("|") for line in (head, ruler, *lines)} == {head.count("|")}


def test_what_comes_from_outside_is_escaped_on_the_page() -> None:
    pytest.importorskip("matplotlib", reason="it draws the pictures")
    assert "<b>prompt</b>" not in page(list(made().values()))


def test_pictures_page_and_table_are_written_and_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="it draws the pictures")
    written: list[dict[str, bytes]] = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        write(list(made().values()), folder)
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0] == written[1]
    assert written[0].keys() == {"curve.png", "curve.svg", "curve.html", "curve.md"}
    assert written[0]["curve.png"].startswith(b"\x89PNG")
    assert written[0]["curve.svg"].rstrip().endswith(b"</svg>")


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CurveError, match="pip install"):
        write(list(made().values()), tmp_path)


def test_no_kl_and_rounding_below_it_are_drawn_at_the_left_edge_and_the_rest_as_it_is() -> None:
    costs = [-1e-9, 0.0, 3e-4, 0.02]
    read = [
        next(iter(made().values())).model_copy(
            update={"kl": Estimate(value=cost, low=min(cost, 0.0), high=cost + 1e-5, n=4)}
        )
        for cost in costs
    ]
    drawn = [point.kl for point in for_logarithm(read)]
    assert [kl.value for kl in drawn if kl] == [1.5e-4, 1.5e-4, 3e-4, 0.02]
    assert all(kl is not None and 1.5e-4 <= kl.low <= kl.value <= kl.high for kl in drawn)
