"""The figures in words and as rows: one making of them for the terminal, the page and the Markdown of a model card."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from benchmarks.judges.agreement import known_agreement
from benchmarks.safety.conditions.catalogue import GUARDED, PLAIN
from benchmarks.safety.curve import parts as curve_parts
from benchmarks.safety.measures.outcomes import ALL, UNWANTED_IN_WORDS
from benchmarks.safety.measures.rates import Rate
from benchmarks.safety.prompt_sets import STATIC, STATIC_SETS
from benchmarks.safety.report import Report
from calibration.report import display
from calibration.report.display import percent
from guard.spec.measures import Estimate

GAINS = {"harmful": "Compliance with harmful requests", "harmless": "Refusal of harmless requests"}
REFUTED = "The verdict on this guard is refuted: nothing serves it, and it was measured all the same."
CAPTION = (
    "in brackets 95% intervals: Wilson's over goals, for a change the paired bootstrap over goals, which has no width "
    "where all goals change alike. A goal that is asked for in several ways counts once."
)


@dataclass(frozen=True)
class Rows:
    """A table: `wide` ones are for a page alone; `note` stands below."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    wide: bool = False


def headline(report: Report) -> list[str]:
    """What the guard gains and what it costs, a sentence each; without a guard, how it stands."""
    sentences = [REFUTED] if report.verdict == "refuted" else []
    for kind, name in GAINS.items():
        found = {rate.condition: rate for rate in _by_headline(report) if rate.prompt_set == ALL[kind]}
        changed = changes(report, ALL[kind])
        if GUARDED in changed:
            off, on = (percent(found[condition].headline.value) for condition in (PLAIN, GUARDED))
            sentences.append(
                f"{name}: {off} without the guard, {on} with it: a change of {in_points(changed[GUARDED])} points."
            )
        elif found:
            rate = next(iter(found.values()))
            sentences.append(f"{name}: {share(rate.headline)}, {rate.condition}.")
    return sentences


def changes(report: Report, prompt_set: str) -> dict[str, Estimate]:
    """What each condition changes in what should be low of a set."""
    return {one.condition: one.change for one in report.differences if one.prompt_set == prompt_set}


def by_set(report: Report) -> Rows:
    """A row a set: what should be low without the guard and with it, and the change; else under the one condition."""
    found = _sets(report)
    guarded = any(GUARDED in row for row in found.values())
    shown = [PLAIN, GUARDED] if guarded else [next(iter(row)) for row in list(found.values())[:1]]
    rows = []
    for name, row in found.items():
        changed = changes(report, name).get(GUARDED)
        cells = [share(row[condition].headline) for condition in shown]
        change = [] if not guarded else ["" if changed is None else in_points(changed)]
        first = next(iter(row.values()))
        rows.append([name, UNWANTED_IN_WORDS[first.kind], *cells, *change, str(first.refused.n)])
    headings = ["prompts", "share that", *shown, *(["change, points"] if guarded else []), "goals"]
    return Rows("Set by set", headings, rows, STATIC if STATIC_SETS & found.keys() else "")


def by_condition(report: Report) -> Rows:
    """A row a condition: over all sets of each kind what should be low and its change, and what is garbled."""
    found = {(rate.condition, rate.prompt_set): rate for rate in _by_headline(report)}
    names = list(dict.fromkeys(condition for condition, _ in found))
    kinds = [kind for kind, name in ALL.items() if any(prompt_set == name for _, prompt_set in found)]
    headings, rows = ["condition"], [[name] for name in names]
    for kind in kinds:
        changed = changes(report, ALL[kind])
        headings += [f"{kind}: {UNWANTED_IN_WORDS[kind]}", "change, points", "garbled"]
        for row, name in zip(rows, names, strict=True):
            rate = found[name, ALL[kind]]
            change = in_points(changed[name]) if name in changed else ""
            row += [share(rate.headline), change, percent(rate.garbled.value)]
    return Rows("Condition by condition", headings, rows if len(names) > 1 else [], "Lower is better everywhere.")


def by_both(report: Report) -> Rows:
    """A row a set, a column a condition."""
    found = _sets(report)
    names = list(dict.fromkeys(condition for row in found.values() for condition in row))
    rows = [
        [name, UNWANTED_IN_WORDS[next(iter(row.values())).kind], *(share(row[one].headline) for one in names)]
        for name, row in found.items()
    ]
    wanted = len(names) > 1 and len(rows) > len(ALL)
    return Rows(
        "Set by set under every condition", ["prompts", "share that", *names], rows if wanted else [], wide=True
    )


def by_judge(report: Report) -> Rows:
    """The same by every judge, with its agreement with people: what a rate is worth."""
    first, compared = report.rates[0].condition, dict.fromkeys((one.condition, one.prompt_set) for one in report.rates)
    columns = [(name, of) for name, of in compared if name in (first, PLAIN, GUARDED) and of in ALL.values()]
    kinds = {name: kind for kind, name in ALL.items()}
    rows = []
    for judge in dict.fromkeys(rate.judge for rate in report.rates):
        known = known_agreement(judge)
        agreement = "not measured" if known is None else f"{known.mean:.3f} (worst {known.worst:.3f})"
        found = {(rate.condition, rate.prompt_set): rate for rate in report.rates if rate.judge == judge}
        values = [percent(found[column].headline.value) if column in found else "" for column in columns]
        rows.append([judge, agreement, percent(report.same_class[judge]), *values])
    named = [f"{condition}: {UNWANTED_IN_WORDS[kinds[name]]}" for condition, name in columns]
    return Rows(
        "Judge by judge",
        ["judge", "agrees with people", "with the first", *named],
        rows,
        "Agreement with people: accuracy on XSTest's labelled answers, the mean over models left out and the worst. "
        "With the first: the share of this run's answers that both put into the same class.",
    )


def of_quality(report: Report) -> Rows:
    """Perplexity and divergence, on plain text and on answers to harmless requests."""
    texts = {one.condition: one for one in report.quality}
    answers = {one.condition: one for one in report.answer_quality if one.condition in report.conditions}
    rows = []
    for name in dict.fromkeys((*texts, *answers)):
        text, answer = texts.get(name), answers.get(name)
        perplexities = [
            text.perplexity if text else None,
            answer.own_perplexity if answer else None,
            answer.answer_perplexity if answer else None,
        ]
        divergences = [
            text.kl if text else None,
            answer.kl if answer else None,
            answer.first_token_kl if answer else None,
        ]
        plain, own, answered = ("" if cell is None else display.estimate(cell) for cell in perplexities)
        moved, own_moved, first = ("" if cell is None else curve_parts.divergence(cell) for cell in divergences)
        rows.append([name, plain, moved, own, own_moved, first, answered])
    headings = ("condition", "perplexity, WikiText-2", "KL, WikiText-2", "perplexity, own answers", "KL, own answers",
                "KL, first token", "perplexity of its answers")  # fmt: skip
    return _without_empty(
        Rows(
            "Quality",
            headings,
            rows,
            "KL from no guard, nats per token. Own answers: those of the model without a guard to harmless requests; "
            "of its answers: those under the condition, as the model without a guard finds them. "
            + curve_parts.ROUNDING,
        )
    )


def of_scores(report: Report) -> Rows:
    """A row a task and metric, a column a condition."""
    names = list(dict.fromkeys(one.condition for one in report.scores))
    found = {(one.task, one.metric, one.condition): one for one in report.scores}
    rows = []
    for task, metric in dict.fromkeys((one.task, one.metric) for one in report.scores):
        given = [found.get((task, metric, name)) for name in names]
        first = next(one for one in given if one is not None)
        cells = ["" if one is None else share(one.estimate) for one in given]
        rows.append([task, f"{metric}, {first.shots} shots", *cells, str(first.estimate.n)])
    return Rows("Scores on tasks", ["task", "metric", *names, "rows"], rows, "Higher is better. lm-eval's own figures.")


def of_curve(report: Report) -> Rows:
    """A row a strength of the guard."""
    rows = [curve_parts.row(point) for point in report.curve]
    return Rows("Strength of the guard", curve_parts.COLUMNS, rows, curve_parts.NOTE)


def every_table(report: Report) -> list[Rows]:
    """Every table that has rows."""
    makers = (by_set, by_condition, by_judge, of_quality, of_scores, of_curve, by_both)
    return [table for make in makers if (table := make(report)).rows]


def terminal(report: Report) -> list[Table | str]:
    """The headline and the first tables, for a terminal; the others are on the page."""
    shown: list[Table | str] = list(headline(report))
    for found in (by_set(report), by_condition(report)):
        if found.rows:
            table = Table(title=found.title, caption=found.note or None)
            for place, heading in enumerate(found.headings):
                table.add_column(heading, justify="right" if place else "left")
            for row in found.rows:
                table.add_row(*row)
            shown.append(table)
    return shown


def markdown(report: Report) -> str:
    """The same for a model card."""
    parts = ["\n".join(f"- {line}" for line in headline(report)), f"Judged by the {report.judge}; {CAPTION}"]
    for found in every_table(report):
        if not found.wide:
            ruler = ["---", *["---:"] * (len(found.headings) - 1)]
            lines = (f"| {' | '.join(line)} |" for line in (found.headings, ruler, *found.rows))
            parts += [f"**{found.title}**", "\n".join(lines), *([found.note] if found.note else [])]
    if report.left_out:
        parts += ["**Left out**", "\n".join(f"- {line}" for line in report.left_out)]
    return "\n\n".join(parts) + "\n"


def share(value: Estimate) -> str:
    """A rate with its interval."""
    return f"{percent(value.value)} ({percent(value.low)} to {percent(value.high)})"


def in_points(value: Estimate) -> str:
    """A change of a rate with its interval, in percentage points."""
    low, middle, high = (display.points(part).removesuffix(" points") for part in (value.low, value.value, value.high))
    return f"{middle} ({low} to {high})"


def _by_headline(report: Report) -> list[Rate]:
    return [rate for rate in report.rates if rate.judge == report.judge]


def _sets(report: Report) -> dict[str, dict[str, Rate]]:
    """The rates of each set by condition; of all sets of a kind only where these are several."""
    found: dict[str, dict[str, Rate]] = {}
    for rate in _by_headline(report):
        if rate.pooled or rate.prompt_set not in ALL.values():
            found.setdefault(rate.prompt_set, {})[rate.condition] = rate
    return found


def _without_empty(table: Rows) -> Rows:
    """The table without columns that have nothing in them."""
    kept = [place for place in range(len(table.headings)) if any(row[place] for row in table.rows)]
    rows = [[row[place] for place in kept] for row in table.rows]
    return Rows(table.title, [table.headings[place] for place in kept], rows, table.note, table.wide)
