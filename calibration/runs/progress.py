"""What a long command shows on stderr while it works: bars in a terminal, elsewhere a line a stage.

Where no terminal is, a log is read later or by someone else: it must neither be silent for an hour nor fill up. So a
stage gets one line when it starts, and one more each time that it has taken twice as long as at the line before.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Lock, Thread
from time import monotonic

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers.utils import logging as transformers_logging

from calibration.runs.processes import is_first
from calibration.search.findings import Advance, StageBars, silent

FIRST_UPDATE, LONGEST_SILENCE = 30.0, 600.0  # seconds
BEAT = 1.0  # seconds between looks at whether a line is due


@contextmanager
def shown_progress() -> Iterator[StageBars]:
    """Stages shown on stderr within the block, by the first process alone."""
    if not is_first():
        yield silent
        return
    console = Console(stderr=True)
    # Rich alone takes a log for a terminal where FORCE_COLOR is set, as continuous integration does.
    watched = console.is_terminal and console.file.isatty() and not console.is_dumb_terminal
    with _bars(console) if watched else _lines() as stages:
        yield stages


@contextmanager
def _bars(console: Console) -> Iterator[StageBars]:
    """A bar a stage, pulsing where the total is not known; a bar is gone when its stage is."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:

        @contextmanager
        def stage(title: str, total: int | None) -> Iterator[Advance]:
            task = progress.add_task(title, total=total)
            try:
                yield lambda step: progress.advance(task, step)
            finally:
                progress.remove_task(task)

        yield stage


@contextmanager
def _lines() -> Iterator[StageBars]:
    """`StageLines` on stderr, with a thread that lets them write while a stage computes; no other library's bars."""
    lines, ended = StageLines(_to_stderr, monotonic), Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            lines.beat()

    thread = Thread(target=beat, name="progress", daemon=True)
    others = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    thread.start()
    try:
        yield lines.stage
    finally:
        ended.set()
        thread.join()
        if others:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _to_stderr(line: str) -> None:
    with suppress(BrokenPipeError):  # hours of work do not end because nobody reads the log any longer
        typer.echo(line, err=True)


@dataclass
class Running:
    """A stage that has started: when, in seconds of the clock, how much of it is done, when its next line is due."""

    title: str
    total: int | None
    began: float
    due: float
    done: int = 0

    def so_far(self, now: float) -> str:
        """How far it is, with the time left at its own rate; how long it has been running where that is unknown."""
        taken = now - self.began
        if self.total is None:
            return f"running for {minutes(taken)}"
        counted = f"{self.done} of {self.total}"
        if not 0 < self.done < self.total:
            return f"{counted}, running for {minutes(taken)}"
        return f"{counted}, about {minutes(taken * (self.total - self.done) / self.done)} left"


class StageLines:
    """Stages as lines for `write`: "[ 0:12] late layers", the time being that since this was made, by `clock`.

    A stage within another has no line of its own; the updates of the outer one name it.
    """

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._write, self._clock = write, clock
        self._began = clock()
        self._running: list[Running] = []
        self._lock = Lock()

    @contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Advance]:
        """A stage runs for as long as the block; `total` as for the bars."""
        now = self._clock()
        running = Running(title, total, now, now + FIRST_UPDATE)
        with self._lock:
            if not self._running:
                self._line(title)
            self._running.append(running)

        def advance(step: int) -> None:
            running.done += step

        try:
            yield advance
        finally:
            with self._lock:
                self._running.remove(running)

    def beat(self) -> None:
        """Write how far the running stage is, if a line of it is due."""
        now = self._clock()
        with self._lock:
            if not self._running or now < self._running[0].due:
                return
            outer, inner = self._running[0], self._running[-1]
            outer.due = now + min(now - outer.began, LONGEST_SILENCE)
            titles = outer.title if inner is outer else f"{outer.title}, {inner.title}"
            self._line(f"{titles}: {inner.so_far(now)}")

    def _line(self, text: str) -> None:
        self._write(f"[{minutes(self._clock() - self._began):>5}] {text}")


def minutes(seconds: float) -> str:
    """ "0:09", "12:30", "1:02:30"."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    clock = f"{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
    return f"{hours}:{clock}" if hours else clock
