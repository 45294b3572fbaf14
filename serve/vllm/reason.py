"""Why vLLM did not start, in one sentence, read off what it wrote.

A start that fails leaves hundreds of lines: the process in which it went wrong logs its error, and those that started
that process log that it failed, each with a stack trace. The error that counts is the first one that a process gave as
the end of its start and that does not point to another. Where vLLM's headlines are not those known here, it is the last
error that points to no other; where there is no stack trace, the last line.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LONGEST = 500  # characters of a reason
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# (VllmWorker-0 pid=6285) ERROR 12-01 17:23:03 [multiproc_executor.py:953] message
PREFIX = re.compile(r"(?P<process>\([^)]*\bpid=\d+\) )?(?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? \[[^]]*\] ?)?")
TRACE = "Traceback (most recent call last):"
CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
ENDS_A_START = re.compile(r"failed to start|hit an exception|WorkerProc failed|fatal error")
POINTS_ELSEWHERE = re.compile(r"root cause|stack trace above|Engine process failed|EngineDeadError")
EXCEPTION = re.compile(r"(?:\w+\.)*(?P<kind>[A-Z]\w*)(?:: (?P<message>.*))?$", re.DOTALL)
VALIDATION = re.compile(r"\d+ validation errors? for ")
USAGE = re.compile(r"^\S+: error: ")
NOTHING_SAID = "it ended before it answered, and did not say why."


@dataclass(frozen=True)
class Raised:
    """An error that ended a stack trace: the line that stood before the trace, and the error as Python prints it."""

    headline: str
    text: str

    @property
    def points_elsewhere(self) -> bool:
        """Whether it only says that another process failed."""
        return POINTS_ELSEWHERE.search(self.text) is not None


def reason_of(written: str, own: str | None) -> str:
    """One sentence that says why vLLM ended; `written` is its whole output, `own` the error of its first process, as
    Python prints it, None where it raised none.
    """
    errors = [error for error in raised(written) if not error.points_elsewhere]
    for error in errors:
        if ENDS_A_START.search(error.headline):
            return sentence(error.text)
    if own is not None and not Raised("", own).points_elsewhere:
        return sentence(own)
    if errors:
        return sentence(errors[-1].text)
    lines = [line for _, line in messages(written) if line.strip()]
    return sentence(USAGE.sub("", lines[-1])) if lines else NOTHING_SAID


def messages(written: str) -> Iterator[tuple[str, str]]:
    """For each line the process that wrote it, empty where that is not said, and the line without vLLM's prefix."""
    for line in COLOUR.sub("", written).replace("\r", "\n").splitlines():
        prefix = PREFIX.match(line)
        yield (prefix["process"] or "", line[prefix.end() :]) if prefix else ("", line)


def raised(written: str) -> list[Raised]:
    """The errors that ended stack traces, in order; of errors that led to one another the last."""
    by_process: dict[str, list[tuple[int, str]]] = {}
    for number, (process, line) in enumerate(messages(written)):
        by_process.setdefault(process, []).append((number, line))
    found = [pair for lines in by_process.values() for pair in _raised_by_one(lines)]
    return [error for _, error in sorted(found, key=lambda pair: pair[0])]


def sentence(text: str) -> str:
    """An error as Python prints it in one line: its message, and its class where the message says too little."""
    matched = EXCEPTION.match(text.strip())
    kind, message = (matched["kind"], matched["message"] or "") if matched else ("", text)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if lines and VALIDATION.match(lines[0]):
        named = [line for line in lines[1:] if " [type=" in line][:1]
        lines = [line.partition(" [type=")[0].removeprefix("Value error, ") for line in named] or lines
    first = " ".join(lines[:1])
    if first.endswith(":"):
        first = " ".join(lines[:2])
    if " " not in first:
        first = ": ".join(part for part in (kind, first) if part)
    if len(first) > LONGEST:
        first = f"{first[:LONGEST].rstrip()}…"
    return first if first.endswith((".", "!", "?", "…")) else f"{first}."


def _raised_by_one(lines: Sequence[tuple[int, str]]) -> Iterator[tuple[int, Raised]]:
    """The errors among the numbered lines of one process."""
    texts = [line for _, line in lines]
    place, headline = 0, ""
    while place < len(texts):
        if texts[place].strip() != TRACE:
            place += 1
            continue
        if not _chains(texts[max(0, place - 3) : place]):
            headline = texts[place - 1] if place else ""
        end = place + 1
        while end < len(texts) and (texts[end][:1].isspace() or not texts[end]):
            end += 1
        after = end + 1
        while after < len(texts) and texts[after][:1].isspace():  # a message of several lines
            after += 1
        if end < len(texts) and not _goes_on(texts[after : after + 3]):
            yield lines[end][0], Raised(headline, "\n".join(texts[end:after]))
        place = after


def _goes_on(following: Sequence[str]) -> bool:
    """Whether the error before these lines led to another."""
    said = [line for line in following if line.strip()]
    return bool(said) and said[0].startswith(CHAINED)


def _chains(before: Sequence[str]) -> bool:
    """Whether the lines before a stack trace say that it belongs to the one before."""
    said = [line for line in before if line.strip()]
    return bool(said) and said[-1].startswith(CHAINED)
