"""The way back: pieces from an engine's thread to the coroutine that answers the client.

Nothing blocks on either side. What a slow client has not read yet waits here, bounded by what its request may generate;
what a lost client will not read is dropped, and the engine is told to stop generating it.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress

from serve.http.errors import RequestError
from serve.job import Piece


class Ticket:
    """The pieces of `jobs` sequences. Made in the event loop; `put` and `fail` are for any thread."""

    def __init__(self, jobs: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._lock = threading.Lock()
        self._pieces: deque[tuple[int, Piece]] = deque()
        self._error: RequestError | None = None
        self._unfinished = jobs
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """True once nobody waits for further pieces."""
        return self._cancelled

    def put(self, index: int, piece: Piece) -> None:
        """Hand over the next piece of sequence `index`."""
        with self._lock:
            if self._cancelled or self._error is not None:
                return
            self._pieces.append((index, piece))
        self._wake()

    def fail(self, error: RequestError) -> None:
        """End all sequences with `error`; what was handed over before can still be read."""
        with self._lock:
            self._error = self._error or error
        self._wake()

    def cancel(self) -> None:
        """Say that nobody waits any longer, and let go of what was not read."""
        with self._lock:
            self._cancelled = True
            self._pieces.clear()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        """Each piece with the index of its sequence, until all have ended; raises what `fail` was given."""
        while self._unfinished:
            await self._ready.wait()
            self._ready.clear()
            with self._lock:
                pieces, error = list(self._pieces), self._error
                self._pieces.clear()
            for index, piece in pieces:
                self._unfinished -= piece.finish is not None
                yield index, piece
            if error is not None and self._unfinished:
                raise error

    def _wake(self) -> None:
        # a loop that is closed has no client any more
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ready.set)
