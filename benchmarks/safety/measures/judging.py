"""Who classes the answers: the judges that are always there, and those that a user brings.

The headline's judge comes first: known refusals where every refusal is known, else the wording judge, or the one that
was asked for. Judges of harm class answers to harmful requests alone.
"""

from benchmarks.judges.brought import judges_brought
from benchmarks.judges.judge import Judge, can_judge
from benchmarks.judges.keywords import KEYWORD_JUDGES
from benchmarks.judges.known import KnownRefusals
from benchmarks.judges.wording import wording_judge
from benchmarks.safety.options import Options
from benchmarks.safety.subject import Subject
from guard.errors import NeuronGuardError


class UnknownJudgeError(NeuronGuardError):
    """A judge that cannot head the tables: none has the name, or it judges harm alone."""


def judges_of(options: Options, subject: Subject) -> tuple[Judge, ...]:
    """Every judge, the headline's first. Raises UnknownJudgeError where the one asked for cannot be it."""
    known: tuple[Judge, ...] = (KnownRefusals(subject.refusals),) if subject.refusals else ()
    brought = judges_brought(
        url=options.judge_url,
        model=options.judge_model,
        key=options.judge_key,
        classifier=options.judge_classifier,
        prompt=options.judge_prompt,
        refused_labels=options.judge_refused_label,
        device=options.device,
    )
    every: tuple[Judge, ...] = (*known, wording_judge(), *KEYWORD_JUDGES, *brought)
    wanted = options.judge
    able = [judge.name for judge in every if can_judge(judge, "harmless")]
    if wanted is not None and wanted not in able:
        names = ", ".join(map(repr, able))
        raise UnknownJudgeError(f"there is no judge {wanted!r} of refusal: choose among {names}.")
    return tuple(sorted(every, key=lambda judge: judge.name != wanted))
