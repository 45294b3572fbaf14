"""Which requests calibrate, which validate, and which are kept for the verdict.

Variants of one request (its jailbreak wrappers) never straddle two parts, or the held-out figures would be rehearsed
ones.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from guard.errors import NeuronGuardError

FRACTIONS = (0.4, 0.3, 0.3)
MINIMUM_GOALS = 8


class SplitError(NeuronGuardError):
    """Too few requests to calibrate, validate and hold some out."""


class Grouped(Protocol):
    """Anything that belongs to a group of variants."""

    @property
    def group(self) -> str:
        """The name of the group, the same for all variants of one request."""


Item = TypeVar("Item", bound=Grouped)


@dataclass(frozen=True)
class Splits(Generic[Item]):
    """Three parts that share no group: to find a gate on, to choose it and its bounds on, and to judge it on."""

    calibration: tuple[Item, ...]
    validation: tuple[Item, ...]
    held_out: tuple[Item, ...]


def split(
    items: Sequence[Item],
    seed: int,
    fractions: tuple[float, float, float] = FRACTIONS,
    *,
    minimum: int = MINIMUM_GOALS,
) -> Splits[Item]:
    """Cut `items` (requests or contrast pairs) into three parts by group, in a seeded order.

    Only the set of groups, the seed and the fractions decide which part a group falls in, not the order of `items`.
    Raises SplitError where a part would have fewer than `minimum` groups, ValueError for fractions that are not
    positive or do not add up to 1.
    """
    if min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError("fractions must be positive and add up to 1")
    groups = sorted({item.group for item in items})
    random.Random(seed).shuffle(groups)
    first = round(len(groups) * fractions[0])
    second = round(len(groups) * (fractions[0] + fractions[1]))
    parts = groups[:first], groups[first:second], groups[second:]
    if min(map(len, parts)) < minimum:
        sizes = ", ".join(str(len(part)) for part in parts)
        needed = next(n for n in range(3 * minimum, 10**9) if _smallest(n, fractions) >= minimum)
        raise SplitError(
            f"{len(groups)} different requests make parts of {sizes}; each needs {minimum}: supply at least {needed}"
        )
    calibration, validation, held_out = (
        tuple(item for item in items if item.group in members) for members in map(frozenset, parts)
    )
    return Splits(calibration, validation, held_out)


def sample(items: Sequence[Item], count: int | None, seed: int) -> tuple[Item, ...]:
    """At most `count` groups of `items`, drawn by seed, in their order; all of them for None."""
    groups = sorted({item.group for item in items})
    if count is None or count >= len(groups):
        return tuple(items)
    chosen = frozenset(random.Random(seed).sample(groups, count))
    return tuple(item for item in items if item.group in chosen)


def _smallest(n: int, fractions: tuple[float, float, float]) -> int:
    first, second = round(n * fractions[0]), round(n * (fractions[0] + fractions[1]))
    return min(first, second - first, n - second)
