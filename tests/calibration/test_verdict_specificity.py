"""A guard that moves a benign kind like harm is refuted, whatever else it survives."""

from calibration.evidence.specificity import LIMIT, NEGLIGIBLE, KindEffect
from calibration.evidence.verdict import judge_held_out
from calibration.search.bounds import Budget
from guard.spec.edit_spec import Estimate
from tests.calibration.example_spec import example_spec

PASSING = example_spec().evidence.held_out
BUDGET = Budget(kl=1.0, refusal=1.0)


def moved(index: float, benign: float) -> KindEffect:
    """What a guard does to sums, whose index and size are known to a hair."""
    one, size, ratio = (Estimate(value=value, low=value, high=value, n=99) for value in (1.0, benign, index))
    return KindEffect(kind="sums", intervention="deployed", harmful=one, benign=size, index=ratio)


def test_a_guard_that_moves_a_benign_kind_like_harm_is_refuted_by_the_name_of_the_kind() -> None:
    verdict = judge_held_out(PASSING, 1e-9, 1e-9, BUDGET, [moved(LIMIT - 1e-6, 0.5), moved(1.0, 0.0)])
    assert verdict.outcome == "refuted"
    assert len(verdict.reasons) == 1
    assert "not specific to harm: it moves sums" in verdict.reasons[0]


def test_a_kind_at_the_limit_and_one_that_is_hardly_moved_refute_nothing() -> None:
    passing = [moved(LIMIT, 0.5), moved(-1.0, NEGLIGIBLE)]
    assert judge_held_out(PASSING, 1e-9, 1e-9, BUDGET, passing).outcome == "effective"
