"""`neuron-guard bench robustness`: attack a guarded model and say what breaks its guard.

One attack after the other, each kept when it is done, so that a run that was killed goes on with the next. What is kept
and written is counts, losses and hashes.
"""

import sys
from collections.abc import Sequence
from functools import partial

from rich.console import Console

from benchmarks.common.machine import describe
from benchmarks.robustness import tables
from benchmarks.robustness.attacks.fine_tuning import TRAININGS, fine_tuning
from benchmarks.robustness.attacks.prefill import prefill
from benchmarks.robustness.attacks.quantisation import FORMS, quantisation
from benchmarks.robustness.attacks.replay import StaticAttack, replay
from benchmarks.robustness.attacks.suffix_attack import searches_of, suffix
from benchmarks.robustness.options import Options
from benchmarks.robustness.organisms import OwnOrganism, exact_weights_digest, require_organism
from benchmarks.robustness.result import AttackName, AttackResult, Report
from benchmarks.robustness.subject import Subject
from benchmarks.robustness.subjects import model_of, organism_of
from benchmarks.safety.prompt_sets import digest_of_all
from benchmarks.safety.report import Clock, Run, command_line, versions
from calibration.runs.identity import identity
from calibration.runs.progress import shown_progress
from calibration.runs.store import Store, alone_in
from calibration.search.findings import StageBars
from guard.errors import NeuronGuardError
from guard.spec import atomic_files as files

NO_SUFFIXES = (
    "Suffix search and fine-tuning were left out: they would make a model more compliant, and run on the project's own "
    "organisms alone."
)


class NothingToAttackError(NeuronGuardError):
    """A spec without an edit, or no harmful request to ask."""


def run(options: Options) -> Report:
    """Run the attacks as `options` say; write report and Markdown to `options.output`, print the table."""
    with alone_in(options.output):
        return _run(options)


def _run(options: Options) -> Report:
    clock = Clock()
    with clock("subject"):
        subject, attacks = organism_of(options) if options.organism else model_of(options)
    if not subject.spec.layers or not subject.requests:
        missing = "edits nothing" if not subject.spec.layers else "has no harmful request to be attacked with"
        raise NothingToAttackError(f"the guard of {subject.name} {missing}: there is nothing to attack.")
    setting = _setting(options, subject, attacks)
    checkpoint = Store(options.output / "work", setting)
    done = [one.name for one in (options.output / "work").glob("*.json")]
    results = []
    with shown_progress() as bars:
        for name in options.chosen:
            with clock(name):
                attack = partial(_attack, name, subject, attacks, options, bars)
                results.append(checkpoint.stage(name, AttackResult, attack))
    machine = describe(next(subject.model.parameters()).device)
    report = Report(
        subject=subject.name,
        setting=setting,
        attacks=tuple(results),
        left_out=() if isinstance(subject, OwnOrganism) else (NO_SUFFIXES,),
        run=Run(
            command=command_line(["neuron-guard", *sys.argv[1:]]),
            machine=machine,
            started=clock.started,
            seconds=clock.seconds,
            taken_up=len(done),
        ),
    )
    files.write(options.output / "robustness.json", (report.model_dump_json(indent=1) + "\n").encode())
    files.write(options.output / "robustness.md", tables.markdown(report).encode())
    Console().print(tables.table(report), *tables.sentences(report), sep="\n")
    checkpoint.discard()
    return report


def _attack(
    name: AttackName, subject: Subject, attacks: Sequence[StaticAttack], options: Options, bars: StageBars
) -> AttackResult:
    size = options.size
    if name == "replay":
        with bars(name, len(attacks)) as advance:
            return replay(subject, attacks, advance=advance)
    if name == "prefill":
        with bars(name, len(subject.targets()) + len(subject.beside())) as advance:
            return prefill(subject, advance=advance)
    if name == "quantisation":
        with bars(name, len(FORMS)) as advance:
            return quantisation(subject, advance=advance)
    if name == "fine-tuning":
        with bars(name, TRAININGS) as advance:
            return fine_tuning(subject, size.steps, seed=options.seed, advance=advance)
    few = require_organism(subject).first(size.searched)
    with bars(name, searches_of(few)) as advance:
        return suffix(few, size.budget, seed=options.seed, advance=advance)


def _setting(options: Options, subject: Subject, attacks: Sequence[StaticAttack]) -> dict[str, str]:
    """All that decides the figures, and nothing that does not."""
    decisive = {"quick", "seed", "template", "dtype", "batch_size", "max_new_tokens"}
    return {
        **{name: str(value) for name, value in options.model_dump(include=decisive).items()},
        **{f"replayed {one.name}": digest_of_all(one.attacked) for one in attacks},
        **versions(),
        "size": options.size.model_dump_json(),
        **identity(subject.model, subject.tokenizer),
        "model": exact_weights_digest(subject.model),
        "spec": subject.spec.digest,
        "requests": digest_of_all(subject.requests),
        "judged by": subject.classify.__name__.removeprefix("by_").replace("_", " "),
    }
