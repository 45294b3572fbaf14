"""The figures in words and as rows: one making of them for the terminal, the page and the Markdown of a model card."""

from collections.abc import Sequence
from itertools import chain

from rich.table import Table

from benchmarks.judges.agreement import known_agreement
from benchmarks.safety.conditions import GUARDED, PLAIN
from benchmarks.safety.outcomes import ALL, UNWANTED_IN_WORDS
from benchmarks.safety.rates import Difference, Rate
from benchmarks.safety.report import Report
from calibration import display
from calibration.display import percent
from guard.measures import Estimate

Rows = list[list[str]]
GAINS = {"harmful": "Compliance with harmful requests", "harmless": "Refusal of harmless requests"}


def headline(report: Report) -> list[str]:
    """What the guard gains and what it costs, a sentence each; without a guard, how it stands."""
    sentences = []
    for kind, name in GAINS.items():
        found = {rate.condition: rate for rate in report.rates if _is(rate, ALL[kind], report.judge)}
        changes = {one.condition: one for one in report.differences if one.prompt_set == ALL[kind]}
        if GUARDED in changes and PLAIN in found:
            off, on = (percent(found[name].headline.value) for name in (PLAIN, GUARDED))
            sentences.append(f"{name}: {off} without the guard, {on} with it, {change(changes[GUARDED].change)}.")
        elif found:
            rate = next(iter(found.values()))
            sentences.append(f"{name}: {share(rate.headline)} under {rate.condition}.")
    return sentences


def rates_rows(report: Report) -> tuple[list[str], Rows]:
    """Headings and rows of what should be low, by the judge of the headline: a row a set, a column a condition."""
    chosen = [rate for rate in report.rates if rate.judge == report.judge and rate.prompt_set not in _alone(report)]
    conditions = list(dict.fromkeys(rate.condition for rate in chosen))
    rows = []
    for name in dict.fromkeys(rate.prompt_set for rate in chosen):
        row = {rate.condition: rate for rate in chosen if rate.prompt_set == name}
        first = next(iter(row.values()))
        cells = [share(row[one].headline) for one in conditions]
        rows.append([name, UNWANTED_IN_WORDS[first.kind], *cells, str(first.refused.n)])
    return ["prompts", "share that", *conditions, "goals"], rows


def judges_rows(report: Report) -> tuple[list[str], Rows]:
    """The rates over all sets by every judge, with its agreement with people beside them: what a rate is worth."""
    columns = [(rate.condition, rate.prompt_set) for rate in report.rates if rate.prompt_set in ALL.values()]
    columns = list(dict.fromkeys(columns))
    kinds = {name: kind for kind, name in ALL.items()}
    headings = [f"{condition}, {UNWANTED_IN_WORDS[kinds[name]]}" for condition, name in columns]
    rows = []
    for judge in dict.fromkeys(rate.judge for rate in report.rates):
        known = known_agreement(judge)
        found = {(rate.condition, rate.prompt_set): rate for rate in report.rates if rate.judge == judge}
        agreement = "not measured" if known is None else f"{known.mean:.3f} (worst {known.worst:.3f})"
        rows.append([judge, agreement, *(percent(found[column].headline.value) for column in columns)])
    return ["judge", "agreement with people", *headings], rows


def garbled_rows(report: Report) -> tuple[list[str], Rows]:
    """Sets of which any answer is garbled under any condition."""
    chosen = [rate for rate in report.rates if rate.judge == report.judge and rate.garbled.value > 0]
    return ["prompts", "condition", "garbled"], [[r.prompt_set, r.condition, share(r.garbled)] for r in chosen]


def quality_rows(report: Report) -> tuple[list[str], Rows]:
    """Perplexity and divergence on plain text by condition."""
    rows = [[one.condition, display.estimate(one.perplexity), display.estimate(one.kl)] for one in report.quality]
    return ["condition", "perplexity", "KL from no guard, nats per token"], rows


def sections(report: Report) -> list[tuple[str, list[str], Rows]]:
    """Every table that has rows: title, headings, rows."""
    named = (
        ("Lower is better", rates_rows(report)),
        ("By every judge", judges_rows(report)),
        ("Garbled answers", garbled_rows(report)),
        ("Quality on plain text", quality_rows(report)),
    )
    return [(title, headings, rows) for title, (headings, rows) in named if rows]


def terminal(report: Report) -> list[Table | str]:
    """The headline and the tables for a terminal."""
    shown: list[Table | str] = list(headline(report))
    for title, headings, rows in sections(report):
        table = Table(title=title)
        for heading in headings:
            table.add_column(heading, justify="left" if heading in ("prompts", "share that", "judge") else "right")
        for row in rows:
            table.add_row(*row)
        shown.append(table)
    return shown


def markdown(report: Report) -> str:
    """The same for a model card."""
    parts = ["\n".join(f"- {line}" for line in headline(report)), f"Judged by the {report.judge}; {CAPTION}"]
    for title, headings, rows in sections(report):
        ruler = ["---"] * len(headings)
        parts.append(f"**{title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in (headings, ruler, *rows)))
    if report.left_out:
        parts.append("**Left out**\n\n" + "\n".join(f"- {line}" for line in report.left_out))
    return "\n\n".join(parts) + "\n"


CAPTION = (
    "in brackets 95% intervals: Wilson's over goals, for a difference the paired bootstrap. A goal that is asked in "
    "several ways counts once."
)


def share(value: Estimate) -> str:
    """A rate with its interval."""
    return f"{percent(value.value)} ({percent(value.low)} to {percent(value.high)})"


def change(value: Estimate) -> str:
    """A difference of two rates with its interval, in percentage points."""
    low, middle, high = (display.points(part).removesuffix(" points") for part in (value.low, value.value, value.high))
    return f"a change of {middle} points ({low} to {high})"


def _is(rate: Rate | Difference, prompt_set: str, judge: str) -> bool:
    return (rate.prompt_set, rate.judge) == (prompt_set, judge)


def _alone(report: Report) -> set[str]:
    """The names of all sets of a kind, where that is one set and stands in the table by itself."""
    pooled: Sequence[Rate] = [rate for rate in report.rates if rate.prompt_set in ALL.values()]
    return set(chain.from_iterable([rate.prompt_set] for rate in pooled if not rate.pooled))
