"""A claim about a gate, and the grounds on which it is said to hold, not to hold, or to be undecided.

A claim holds only where every ground speaks for it beyond its interval, so adding a control can only make it harder to
claim something. That errs on the side of saying too little, and is meant to.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from guard.spec.measures import Estimate, Frozen

Said = Literal["yes", "no", "undecided"]


class Ground(Frozen):
    """One measurement that a claim rests on, signed so that above 0 speaks for the claim. `name` says what it is."""

    name: str
    estimate: Estimate


class Claim(Frozen):
    """A statement on a gate, such as "late layers carry it rather than early ones", and what the grounds say of it.

    `said` is yes where the interval of every ground lies above 0, no where that of any lies below 0, and otherwise
    undecided; one that says something else is refused.
    """

    name: str
    statement: str
    said: Said
    grounds: tuple[Ground, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _as_the_grounds_say(self) -> Self:
        if self.said != verdict_of(self.grounds):
            raise ValueError(f"the claim {self.name!r} says {self.said}, its grounds say {verdict_of(self.grounds)}")
        return self


def verdict_of(grounds: tuple[Ground, ...]) -> Said:
    """What the grounds say of their claim."""
    if any(ground.estimate.high < 0 for ground in grounds):
        return "no"
    return "yes" if all(ground.estimate.low > 0 for ground in grounds) else "undecided"


def claim(name: str, statement: str, grounds: tuple[Ground, ...]) -> Claim:
    """The claim with what its grounds say of it."""
    return Claim(name=name, statement=statement, said=verdict_of(grounds), grounds=grounds)
