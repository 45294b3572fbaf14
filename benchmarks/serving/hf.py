"""The embedded engine's way through a batch, timed: its rows, its draws, its counts, without queue, HTTP and text.

What is left out costs the same with the guard off and on; leaving it out makes what the guard costs show.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.serving.generate_models import Size, edits
from benchmarks.serving.setting import NEW_TOKENS, THRESHOLDS, Arm, Timing, trigger_for
from guard.hf import Installation, install_edits
from guard.runtime.counts import Counts, Tally
from serve.hf import batch as hf_batch
from serve.hf.row import Row
from serve.hf.ticket import Ticket
from serve.http.errors import RequestError
from serve.job import Job, Piece, Sampling


class Recorder(Ticket):
    """Stands for a waiting client: notes when its pieces come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    @property
    def cancelled(self) -> bool:
        """Nobody leaves."""
        return False

    def put(self, index: int, piece: Piece) -> None:  # noqa: ARG002 (one sequence a ticket)
        """Note the time."""
        self.times.append(time.perf_counter())

    def fail(self, error: RequestError) -> None:
        """A request that fails is no time."""
        raise error


class NotCounted(Counts):
    """What a server without a guard counts: nothing, at no cost."""

    def __init__(self) -> None:
        super().__init__([])
        self._size = 0

    @contextmanager
    def counting(self, present: Tensor) -> Iterator[None]:
        """Only the number of rows is kept."""
        self._size = present.shape[0]
        yield

    def going_on(self, rows: Tensor) -> None:
        """Nothing to announce."""

    def add_up(self) -> None:
        """Nothing to add."""

    def rows(self) -> list[Tally]:
        """Empty ones."""
        return [Tally.none()] * self._size


class ServedByTransformers:
    """One model, guarded anew for every round."""

    name = "hf"

    def __init__(self, model: PreTrainedModel, size: Size, *, seed: int) -> None:
        self._model = model
        hf_batch.plain_generation(model)
        edited = edits(size, seed=seed)
        self._install: dict[Arm, Callable[[], Installation]] = {
            arm: partial(install_edits, model, edited, trigger_for(arm, size)) for arm in THRESHOLDS
        }

    def round(self, arm: Arm, prompts: list[list[int]]) -> Timing:
        """See Served."""
        with self._guarded(arm) as counts:
            recorders = [Recorder() for _ in prompts]
            rows = rows_for(prompts, recorders)
            started = time.perf_counter()
            hf_batch.generate(self._model, rows, never, counts, unread)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            total = time.perf_counter() - started
        first, last = ([recorder.times[place] - started for recorder in recorders] for place in (0, -1))
        return Timing.of(total, first, last, NEW_TOKENS)

    def tokens(self, arm: Arm, prompts: list[list[int]]) -> list[list[int]]:
        """See Served."""
        rows = rows_for(prompts, [Recorder() for _ in prompts])
        with self._guarded(arm) as counts:
            hf_batch.generate(self._model, rows, never, counts, unread)
        return [row.generated for row in rows]

    def close(self) -> None:
        """See Served."""

    @contextmanager
    def _guarded(self, arm: Arm) -> Iterator[Counts]:
        if arm == "absent":
            yield NotCounted()
            return
        with self._install[arm]() as installation:
            yield installation.count()


def rows_for(prompts: Sequence[Sequence[int]], tickets: Sequence[Ticket]) -> list[Row]:
    """Rows that generate NEW_TOKENS tokens greedily; a token reads as one letter."""
    sampling = Sampling(max_tokens=NEW_TOKENS, temperature=0.0)
    return [
        Row(Job(tuple(prompt), sampling), ticket, 0, letters, ())
        for prompt, ticket in zip(prompts, tickets, strict=True)
    ]


def letters(tokens: Sequence[int]) -> str:
    """A text that is as long as there are tokens."""
    return "x" * len(tokens)


def never(_: int) -> bool:
    """No batch is broken off."""
    return False


def unread(_: int) -> None:
    """Nobody asks how many tokens were made."""
