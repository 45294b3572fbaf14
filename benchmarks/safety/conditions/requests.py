"""The calibrated requests as baselines use them: a part to learn from, and a part to choose their strength on.

A baseline gets what the guard's calibration had, and nothing that the benchmark asks. Which requests the model refuses
is told by what it says to them, for a user's prompt files do not say it. At most `MOST` requests of each kind are
used: means and directions need no more, and the residual streams of all layers have to fit into memory.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.safety.conditions.condition import Calibrated
from calibration.judging.behaviour import Behaviour, Judge, refusal_openings
from calibration.prompts.material import CONTINUATION_TOKENS, DEFAULT_REFUSAL, Encoder, laid_out
from calibration.prompts.request_sets import Request
from calibration.prompts.sequences import Example
from calibration.prompts.splits import sample, split
from calibration.search.gate import SplitBatches
from guard.errors import NeuronGuardError

MOST = 256
FEWEST = 8  # requests of a kind that can stand for it


class BaselineError(NeuronGuardError):
    """Calibrated requests that a baseline cannot learn from."""


@dataclass(frozen=True, repr=False)
class Part:
    """One part of the calibrated requests: harmful ones with an answer, those that the model refuses, benign ones.

    An answer is the one that comes with the request, else the model's own; benign requests have the model's own.
    """

    answered: tuple[Example, ...]
    refused: tuple[Example, ...]
    benign: tuple[Example, ...]

    def batches(self, encoder: Encoder) -> SplitBatches:
        """The answered requests with short continuations, the refused ones as references, the benign ones whole.

        Where hardly any are refused the answered ones have to stand for them.
        """
        answered = [example.truncated(CONTINUATION_TOKENS) for example in self.answered]
        return laid_out(answered, self.refused if len(self.refused) >= FEWEST else answered, self.benign, encoder)


@dataclass(frozen=True)
class Lesson:
    """What baselines learn from (`learning`) and choose on (`choosing`), as examples and as batches; `refusal` is how
    the requests would have it said.
    """

    encoder: Encoder
    refusal: str
    learning: Part
    choosing: Part
    learning_batches: SplitBatches
    choosing_batches: SplitBatches


def lesson(encoder: Encoder, calibrated: Calibrated, *, seed: int) -> Lesson:
    """The calibrated requests in two parts that share no goal.

    Raises SplitError for too few of them, BaselineError where no harmful one has an answer.
    """
    harmful, benign = (split(sample(kind, MOST, seed), seed) for kind in (calibrated.harmful, calibrated.benign))
    refusals = [request.refusal for request in calibrated.harmful if request.refusal] + [DEFAULT_REFUSAL]
    judge = Judge(refusal_openings(refusals), math.inf)
    learning = _part(encoder, harmful.calibration + harmful.held_out, benign.calibration + benign.held_out, judge)
    choosing = _part(encoder, harmful.validation, benign.validation, judge)
    return Lesson(encoder, refusals[0], learning, choosing, learning.batches(encoder), choosing.batches(encoder))


def _part(encoder: Encoder, harmful: Sequence[Request], benign: Sequence[Request], judge: Judge) -> Part:
    said = encoder.answers([*harmful, *benign]).tokens
    refused, answered, not_refused = [], [], []
    for request, own in zip(harmful, said[: len(harmful)], strict=True):
        behaviour = judge(str(encoder.tokenizer.decode(list(own), skip_special_tokens=True)), own, 0.0)
        if behaviour is Behaviour.REFUSED:
            refused.append(_example(encoder, request, own))
        answer = encoder.text(request.compliance) if request.compliance else ()
        if not answer and behaviour is Behaviour.COMPLIED:
            answer = own
        if answer:
            answered.append(_example(encoder, request, answer))
        if answer and behaviour is not Behaviour.REFUSED:
            not_refused.append(answered[-1])
    if not answered:
        raise BaselineError(
            "none of the calibrated harmful requests has an answer, neither its own nor the model's: "
            "give them a column `compliance`, or leave the calibrated requests out."
        )
    return Part(
        answered=tuple(not_refused if len(not_refused) >= FEWEST else answered),
        refused=tuple(refused),
        benign=tuple(
            _example(encoder, request, own) for request, own in zip(benign, said[len(harmful) :], strict=True)
        ),
    )


def _example(encoder: Encoder, request: Request, answer: tuple[int, ...]) -> Example:
    refusal = encoder.text(request.refusal or DEFAULT_REFUSAL)[:CONTINUATION_TOKENS]
    return Example(encoder.prompt(request), answer, refusal)
