"""One calibration in several processes: each runs its share of the prompts through a model of its own.

What is shared are the forward passes that make up most of the time and need nothing from each other: the model's own
answers, the mediation, the held-out test. A share is a run of whole batches, so that every number is the one that a
single process computes. The search for a gate stays with the first process, whose findings go to the others: they
never decide anything themselves, and write nothing. Every process holds the whole model, which is what this costs.

`accelerate launch` starts such processes, on one machine or many, and so does `--processes`.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

LONGEST_STAGE = timedelta(days=7)  # the others wait for as long while the first searches
COUNT = "WORLD_SIZE"

Item = TypeVar("Item")
Found = TypeVar("Found")

_sharing = False


@dataclass(frozen=True)
class Shared(Generic[Found]):
    """A stage's computation whose forward passes are shared among the processes: all of them make it together."""

    compute: Callable[[], Found]

    def __call__(self) -> Found:
        """Compute, each process its share of what goes through `in_shares`."""
        global _sharing
        _sharing = True
        try:
            return self.compute()
        finally:
            _sharing = False


def in_shares(items: Sequence[Item], compute: Callable[[Sequence[Item]], Sequence[Found]]) -> list[Found]:
    """`compute(items)`, one result an item; within a shared stage each process computes a part, and all get all."""
    if not _sharing or (state := joined()) is None:
        return list(compute(items))
    rank, count = state.process_index, state.num_processes
    own = items[len(items) * rank // count : len(items) * (rank + 1) // count]
    found: list[Found] = gather_object(list(compute(own)))
    return found


def joined() -> PartialState | None:
    """The processes that this one belongs to; None where it is alone. The first call waits for all of them."""
    if int(os.environ.get(COUNT, "1")) < 2:
        return None
    return PartialState(cpu=True, timeout=LONGEST_STAGE)  # only small objects are sent: by way of the CPU, always


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    state = joined()
    return state is None or bool(state.is_main_process)
