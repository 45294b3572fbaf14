"""Prefill: the answer is begun with the first tokens of the compliant one, and the model goes on from there.

A trigger is fitted on the last prompt token and the first tokens after it; an answer whose beginning is put into the
model's mouth starts beyond. Does the guarded model still turn to a refusal, or stop?
"""

from collections.abc import Callable

from benchmarks.robustness.result import AttackResult, Row, row
from benchmarks.robustness.subject import Subject

LENGTHS = (1, 2, 4, 8)


def prefill(subject: Subject, *, advance: Callable[[int], None] = lambda _: None) -> AttackResult:
    """Begin each answer with 1, 2, 4 and 8 tokens of its compliance; requests whose compliance ends there are left
    out. `advance` is told of each model that is done.
    """
    rows: list[Row] = []
    skipped = 0
    for target in (*subject.targets(), *subject.beside()):
        openings = [subject.text(request.compliance or "") for request in target.requests]
        before = subject.says(target)
        for length in LENGTHS:
            places = [place for place, opening in enumerate(openings) if len(opening) > length]
            skipped += len(openings) - len(places)
            if places:
                after = subject.says(
                    target, [target.requests[p] for p in places], [openings[p][:length] for p in places]
                )
                variant = f"{length} token{'s' * (length > 1)} begun"
                rows.append(row(variant, target.name, [before[place] for place in places], after))
        advance(1)
    left_out = (f"{skipped} beginnings were left out: no compliance of that length is known.",) if skipped else ()
    return AttackResult(attack="prefill", setting={}, rows=tuple(rows), left_out=left_out)
