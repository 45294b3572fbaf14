"""Rates with their intervals: how often each set is refused, complied with or garbled, and what a condition changes."""

from collections import defaultdict
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from benchmarks.safety.conditions.catalogue import PLAIN
from benchmarks.safety.measures.outcomes import UNWANTED, Counted, Outcomes
from benchmarks.safety.prompt_sets import Kind
from calibration.effects.statistics import bootstrap_estimate, wilson_estimate
from calibration.judging.behaviour import Behaviour
from guard.spec.measures import Estimate


class Rate(BaseModel):
    """One set, or several counted together, under one condition by one judge; Wilson intervals over goals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    condition: str
    prompt_set: str
    kind: Kind
    pooled: bool
    judge: str
    refused: Estimate
    complied: Estimate
    garbled: Estimate

    @property
    def headline(self) -> Estimate:
        """What should be low: compliance on harmful requests, refusal of harmless ones."""
        return self.complied if self.kind == "harmful" else self.refused


class Difference(BaseModel):
    """What should be low, under a condition minus under no guard; paired bootstrap over goals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    condition: str
    prompt_set: str
    kind: Kind
    judge: str
    change: Estimate


def rates(outcomes: Outcomes, sets: Sequence[Counted]) -> tuple[Rate, ...]:
    """Every set under every condition by every judge."""

    def share(condition: str, of: Counted, judge: str, behaviour: Behaviour) -> Estimate:
        found = outcomes.shares(condition, of, judge, behaviour)
        return wilson_estimate(float(found.sum()), len(found))

    return tuple(
        Rate(
            condition=condition,
            prompt_set=of.name,
            kind=of.kind,
            pooled=of.pooled,
            judge=judge,
            refused=share(condition, of, judge, Behaviour.REFUSED),
            complied=share(condition, of, judge, Behaviour.COMPLIED),
            garbled=share(condition, of, judge, Behaviour.GARBLED),
        )
        for condition in outcomes.conditions
        for of in sets
        for judge in outcomes.judges(of)
    )


def differences(outcomes: Outcomes, sets: Sequence[Counted], judge: str, *, seed: int) -> tuple[Difference, ...]:
    """Every set of two goals or more under every condition against no guard, by `judge`; none without no guard."""
    if PLAIN not in outcomes.conditions:
        return ()
    found = []
    for of in sets:
        plain = outcomes.shares(PLAIN, of, judge, UNWANTED[of.kind])
        for condition in outcomes.conditions:
            if condition != PLAIN and len(plain) > 1:
                change = outcomes.shares(condition, of, judge, UNWANTED[of.kind]) - plain
                found.append(
                    Difference(
                        condition=condition,
                        prompt_set=of.name,
                        kind=of.kind,
                        judge=judge,
                        change=bootstrap_estimate(change, seed=seed),
                    )
                )
    return tuple(found)


def same_class(outcomes: Outcomes, judge: str) -> dict[str, float]:
    """Of the answers that both class, the share that each judge puts into the class that `judge` does."""
    same: dict[str, list[bool]] = defaultdict(list)
    for answers in outcomes.answers.values():
        for answer in answers:
            for other, given in answer.classes.items():
                same[other].append(given is answer.classes[judge])
    return {other: sum(agreed) / len(agreed) for other, agreed in same.items()}
