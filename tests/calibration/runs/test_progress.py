"""Progress where no terminal is: which lines are written, and when; the clock stands still unless a test moves it."""

import io
import re
import sys

import pytest
from transformers.utils import logging as transformers_logging

from calibration.runs import progress
from calibration.runs.progress import FIRST_UPDATE, LONGEST_SILENCE, StageLines, minutes, shown_progress
from calibration.search.findings import silent


class Watched:
    """Stage lines with the list of what they wrote, and a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.written: list[str] = []
        self.lines = StageLines(self.written.append, lambda: self.now)

    def after(self, seconds: float) -> list[str]:
        """The lines that are written in so many more seconds, looked for in each of them."""
        before = len(self.written)
        for _ in range(round(seconds)):
            self.now += 1
            self.lines.beat()
        return self.written[before:]


def test_a_stage_is_one_line_with_the_time_since_the_beginning() -> None:
    watched = Watched()
    with watched.lines.stage("model", None):
        watched.after(12)
    with watched.lines.stage("late layers", None):
        watched.after(3)
    assert watched.written == ["[ 0:00] model", "[ 0:12] late layers"]


def test_a_long_stage_says_how_much_is_done_and_how_long_the_rest_takes_at_its_own_rate() -> None:
    watched = Watched()
    watched.now += 100
    with watched.lines.stage("held-out test", 20) as advance:
        watched.after(FIRST_UPDATE - 1)
        advance(4)
        advance(1)
        assert watched.after(1) == ["[ 2:10] held-out test: 5 of 20, about 1:30 left"]


def test_no_time_is_expected_where_there_is_no_rate_to_expect_it_from() -> None:
    watched = Watched()
    with watched.lines.stage("neurons and bounds", None) as advance:
        advance(3)
        assert watched.after(FIRST_UPDATE) == ["[ 0:30] neurons and bounds: running for 0:30"]
    with watched.lines.stage("shards", 4) as advance:
        assert watched.after(FIRST_UPDATE) == ["[ 1:00] shards: 0 of 4, running for 0:30"]
        advance(4)
        assert watched.after(FIRST_UPDATE) == ["[ 1:30] shards: 4 of 4, running for 1:00"]


def test_the_longer_a_stage_takes_the_rarer_its_lines_but_it_never_falls_silent() -> None:
    watched = Watched()
    with watched.lines.stage("shards", None):
        watched.after(7200)
    times = [int(line[1:].split(":")[0]) * 60 + int(line.split(":")[1][:2]) for line in watched.written[:6]]
    assert times == [0, 30, 60, 120, 240, 480]
    assert len(watched.written[6:]) == (7200 - 480) // LONGEST_SILENCE


def test_a_stage_within_another_has_no_line_of_its_own_and_is_named_in_the_updates() -> None:
    watched = Watched()
    with watched.lines.stage("attack", None):
        for place in range(5):
            with watched.lines.stage(f"search {place}", 8) as advance:
                advance(2)
                watched.after(7)
        assert watched.written == ["[ 0:00] attack", "[ 0:30] attack, search 4: 2 of 8, about 0:06 left"]


def test_a_stage_that_fails_is_over() -> None:
    watched = Watched()
    with pytest.raises(ZeroDivisionError), watched.lines.stage("model", None):
        raise ZeroDivisionError
    assert watched.after(2 * FIRST_UPDATE) == []
    with watched.lines.stage("spec", None):
        pass
    assert watched.written[-1] == "[ 1:00] spec"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (9.4, "0:09"), (59.6, "1:00"), (750, "12:30"), (3750, "1:02:30")]
)
def test_a_time_is_written_as_a_clock_shows_it(seconds: float, text: str) -> None:
    assert minutes(seconds) == text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown_on(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a run of two stages writes to stderr where that is `stream`."""
    monkeypatch.setattr(sys, "stderr", stream)
    with shown_progress() as stages:
        for title in ("model", "late layers"):
            with stages(title, 2) as advance:
                advance(1)
    return stream.getvalue()


@pytest.mark.parametrize("forced", [{}, {"FORCE_COLOR": "1"}])
def test_without_a_terminal_there_are_plain_lines_and_no_bar_even_where_colour_is_forced(
    forced: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in forced.items():
        monkeypatch.setenv(name, value)
    assert re.fullmatch(r"\[ 0:0\d\] model\n\[ 0:0\d\] late layers\n", shown_on(io.StringIO(), monkeypatch))


def test_in_a_terminal_there_are_bars_and_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    shown = shown_on(Terminal(), monkeypatch)
    assert "\x1b[" in shown
    assert "late layers" in shown
    assert "[ 0:0" not in shown


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert "] late layers\n" in shown_on(Terminal(), monkeypatch)


def test_only_the_first_process_shows_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "is_first", lambda: False)
    assert shown_on(io.StringIO(), monkeypatch) == ""
    with shown_progress() as stages:
        assert stages is silent


def test_no_bar_of_transformers_gets_between_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    before = transformers_logging.is_progress_bar_enabled()
    with shown_progress():
        assert not transformers_logging.is_progress_bar_enabled()
    assert transformers_logging.is_progress_bar_enabled() == before


class Closed(io.StringIO):
    def write(self, _: str) -> int:
        raise BrokenPipeError


def test_a_run_does_not_end_because_nobody_reads_its_log_any_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown_on(Closed(), monkeypatch) == ""
