"""What a condition is, and what one that learns may learn from."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from benchmarks.judges.judge import Exchange
from calibration.prompts.request_sets import Request


@dataclass(frozen=True)
class Condition:
    """`installed` puts it on the model; `system` is a system prompt that goes with every request (None: none).

    `acts` says of encoded prompts on which of them it is installed at all (None: on all); `rewrite` of finished answers
    what leaves in their place (None: they do). `words` is what was chosen for it, for people.
    """

    name: str
    installed: Callable[[], AbstractContextManager[object]]
    system: str | None = None
    acts: Callable[[Sequence[tuple[int, ...]]], list[bool]] | None = None
    rewrite: Callable[[Sequence[Exchange]], list[str]] | None = None
    words: str = ""


@dataclass(frozen=True, repr=False)
class Calibrated:
    """The requests that a calibration has seen: all that a baseline may learn from.

    Where it was shown jailbreaks, `harmful` holds the plain requests as well as the wrapped ones with their goals, and
    `benign` has wrapped ones too, or a wrapper would pass for harm.
    """

    harmful: tuple[Request, ...]
    benign: tuple[Request, ...]
