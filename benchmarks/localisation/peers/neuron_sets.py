"""The neurons that a ranking puts first, set to 0: as many as do most within the budget.

Contrast as CNA has it, AtP, integrated gradients, RelP and chance (`ranking.py`). Only neurons whose score is above 0
are taken: what a method says to carry refusal is not switched off.
"""

from functools import partial

from benchmarks.localisation.peers.contender import Contender
from benchmarks.localisation.ranking import Method, best, scores
from benchmarks.localisation.subject import Subject
from benchmarks.localisation.truth import ablation
from calibration.search.gate import Late
from guard.hf import install_edits

COUNTS = (1, 4, 16, 64)


def candidates(subject: Subject, late: Late, method: Method, *, seed: int) -> list[Contender]:
    """The first 1, 4, 16, 64 neurons of the method's ranking, and as many as were planted."""
    scored = scores(method, late, seed=seed)
    positive = int((scored > 0).sum())
    counts = sorted({count for count in (*COUNTS, len(subject.planted)) if 0 < count <= positive})
    return [
        Contender(f"{count} neurons", partial(install_edits, subject.model, ablation(best(scored, late.layers, count))))
        for count in counts
    ]
