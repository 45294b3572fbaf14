"""`neuron-guard bench safety`: should I turn this guard on? Every stage in turn, and a report of what they found.

In this process all conditions are compared; behind an endpoint there is one, that which it serves.
"""

import sys
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.common.machine import describe
from benchmarks.safety import stages, tables
from benchmarks.safety.curve import document as curve
from benchmarks.safety.measures.answers import Interview
from benchmarks.safety.measures.judging import judges_of
from benchmarks.safety.measures.measuring import Figures, scored
from benchmarks.safety.measures.outcomes import counted
from benchmarks.safety.measures.rates import differences, rates, same_class
from benchmarks.safety.options import Options
from benchmarks.safety.organism import calibrated_organism
from benchmarks.safety.page import write_safety_page
from benchmarks.safety.prompt_sets import in_several
from benchmarks.safety.record import Record
from benchmarks.safety.report import Clock, Report, Run, command_line, setting_of, versions
from benchmarks.safety.subject import read_subject
from calibration.runs.progress import shown_progress
from calibration.runs.store import Store, alone_in
from guard.spec import atomic_files as files

ANSWERS, FIGURES, CARD, PAGE, STAGES = "answers.jsonl", "safety.json", "safety.md", "safety.html", "stages"


def run(options: Options) -> Report:
    """Run the benchmark as `options` say; write record, figures, tables and a page to `options.output`."""
    with alone_in(options.output):
        report = measure(options)
        write(report, options.output)
    Console().print(*tables.terminal(report), sep="\n")
    return report


def measure(options: Options) -> Report:
    """Every stage, and the report of them."""
    clock = Clock()
    with clock("calibration"):
        subject = calibrated_organism(options) if options.organism else read_subject(options)
    judges = judges_of(options, subject)
    judge = judges[0].name
    with shown_progress() as bars:
        with clock("model"), bars("model", None):
            loaded = None if options.endpoint else stages.load(options, subject)
            subject = stages.readable(options, subject, loaded) if loaded else subject
        asked = stages.respondents(options, subject, loaded)
        names = [one.condition for one in asked]
        setting = setting_of(options, subject, loaded.identity if loaded else {}, names, judges)
        record = Record(options.output / ANSWERS, setting)
        taken_up = record.count
        with clock("answers"):
            interview = Interview(record, judges, options.batch_size, options.show_text)
            outcomes = stages.answers(interview, asked, subject, bars)
        with clock("quality"):
            kept = Store(options.output / STAGES, {name: str(value) for name, value in setting.items()})
            figures = Figures(options, subject, loaded, kept, bars) if loaded else None
            texts, answers = (figures.text_quality(), figures.answer_quality()) if figures else ((), ())
        with clock("scores"):
            scores, without_score = scored(options, subject, loaded, bars)
    sets = counted(subject.prompts)
    compared = outcomes.under([one.name for one in loaded.conditions] if loaded else names)
    return Report(
        setting=setting,
        versions=versions(),
        judge=judge,
        conditions={one.name: one.words for one in loaded.conditions} if loaded else {},
        rates=rates(compared, sets),
        differences=differences(compared, sets, judge, seed=options.seed),
        same_class=same_class(compared, judge),
        quality=texts,
        answer_quality=answers,
        scores=scores,
        curve=figures.curve(outcomes, answers, judge) if figures else (),
        overlapping={prompts.name: prompts.overlapping for prompts in subject.prompts},
        in_several=in_several(subject.prompts),
        left_out=(*subject.left_out, *stages.not_compared(subject, loaded), *without_score),
        verdict=subject.spec.evidence.verdict.outcome if subject.spec else None,
        run=Run(
            command=command_line(["neuron-guard", *sys.argv[1:]]),
            machine=describe(next(loaded.model.parameters()).device if loaded else torch.device("cpu")),
            started=clock.started,
            seconds=clock.seconds,
            taken_up=taken_up,
        ),
    )


def write(report: Report, folder: Path) -> None:
    """Write the figures, the tables and the page, each whole or not at all."""
    files.write(folder / FIGURES, (report.model_dump_json(indent=1) + "\n").encode())
    files.write(folder / CARD, tables.markdown(report).encode())
    if report.curve:
        curve.write(report.curve, folder)
    write_safety_page(report, folder / PAGE)
