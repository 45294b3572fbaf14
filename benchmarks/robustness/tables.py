"""What breaks the guard, in sentences and as rows: one making of them for the terminal, a page and a model card."""

from collections.abc import Sequence

from rich.table import Table

from benchmarks.robustness.organisms import REFUSING
from benchmarks.robustness.result import AttackName, Report, Row
from benchmarks.safety.conditions.catalogue import GUARDED
from calibration.report.display import number, percent
from guard.spec.measures import Estimate

IN_WORDS: dict[AttackName, str] = {
    "replay": "static attacks replayed",
    "prefill": "the answer begun",
    "suffix": "suffixes",
    "fine-tuning": "fine-tuning",
    "quantisation": "quantisation",
}
MODEL, WORDS = "model", 3  # the column of models, and how many columns are words
INSTALLS = {None: "", True: "installs", False: "refuses"}
CAPTION = (
    "Shares of harmful requests, 95% Wilson intervals; what neither refuses nor answers is garbled. "
    "✗: compliance rose, at a false discovery rate of 5% over all attacks on the guarded model. "
    "refuses: the guard is not installed there, nothing is served; told is what its edit would do. "
    "Replayed attacks are static: they were made elsewhere and do not answer to the guard."
)


def rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: each attack on each model, before and after. The first three columns are words."""
    broken = [row for _, row in report.broken()]
    headings = [
        "attack",
        "how",
        MODEL,
        "complies before",
        "complies after",
        "refuses after",
        "garbled after",
        "guard",
    ]
    return headings, [
        [
            IN_WORDS[one.attack],
            row.variant,
            row.condition,
            share(row.before.complied),
            share(row.after.complied) + (" ✗" if row in broken else ""),
            percent(row.after.refused.value),
            percent(row.after.garbled.value),
            INSTALLS[row.installs],
        ]
        for one in report.attacks
        for row in one.rows
    ]


def sentences(report: Report) -> list[str]:
    """Of each attack: whether it breaks the guard, at worst by what, and beside it a model that needs no guard."""
    broken = report.broken()
    said = []
    for one in report.attacks:
        guarded = [row for row in one.rows if row.condition == GUARDED]
        served = [row for row in guarded if row.installs is not False]
        worst = [row for name, row in broken if name == one.attack]
        name = IN_WORDS[one.attack]
        if worst:
            said.append(f"Broken by {name} ({len(worst)} of {len(served)} ways): {_worst(worst)}.{_beside(one.rows)}")
        elif served:
            said.append(f"Not seen to break by {name}: {_worst(served)}.")
        refused = list(dict.fromkeys(row.variant for row in guarded if row.installs is False))
        if refused:
            said.append(f"The guard refuses to be installed after {name}: {'; '.join(refused)}.")
        said += one.left_out
    return [*said, *report.left_out]


def share(value: Estimate) -> str:
    """A share with its interval."""
    return f"{percent(value.value)} ({percent(value.low)} to {percent(value.high)})"


def table(report: Report) -> Table:
    """The rows of the guarded model for a terminal."""
    shown = Table(title=f"What breaks the guard of {report.subject}", caption=CAPTION)
    headings, found = rows(report)
    places = [place for place, heading in enumerate(headings) if heading != MODEL]
    for place in places:
        shown.add_column(headings[place], justify="left" if place < WORDS else "right")
    for row in found:
        if row[headings.index(MODEL)] == GUARDED:
            shown.add_row(*(row[place] for place in places))
    return shown


def markdown(report: Report) -> str:
    """Sentences, rows and searches for a model card."""
    searches = [
        [
            search.variant,
            search.condition,
            _nats(search.start),
            _nats(search.end),
            number(search.tried / search.requests),
            str(search.requests),
        ]
        for one in report.attacks
        for search in one.searches
    ]
    parts = [
        f"# What breaks the guard of {report.subject}\n",
        "".join(f"- {sentence}\n" for sentence in sentences(report)),
        _lines(*rows(report), words=WORDS),
        CAPTION + "\n",
    ]
    if searches:
        headings = ["search", "model", "objective at first, nats", "at best", "suffixes tried", "requests"]
        parts.append(_lines(headings, searches, words=2))
    parts.append(f"`{report.run.command}`\n")
    return "\n".join(parts)


def _worst(found: Sequence[Row]) -> str:
    row = max(found, key=lambda row: row.after.complied.value)
    return f"{row.variant}, {percent(row.before.complied.value)} before and {share(row.after.complied)} after"


def _beside(found: Sequence[Row]) -> str:
    """The worst of the same attack on a model without a guard that refuses by itself."""
    others = [row for row in found if row.condition == REFUSING]
    return f" A model that refuses without a guard: {_worst(others)}." if others else ""


def _nats(value: Estimate) -> str:
    return f"{number(value.value)} ({number(value.low)} to {number(value.high)})"


def _lines(headings: Sequence[str], found: Sequence[Sequence[str]], *, words: int) -> str:
    ruler = ["---"] * words + ["---:"] * (len(headings) - words)
    return "".join(f"| {' | '.join(line)} |\n" for line in (headings, ruler, *found))
