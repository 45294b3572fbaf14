"""An output filter: a check of the finished answer, which leaves or is replaced by a refusal.

It stands in for the safety classifiers that read prompt and answer, at the size that calibrated requests can teach: a
logistic read-out of the model's own residual stream near its end, averaged over the answer's first tokens, as many as
it has learnt from. It judges finished answers, so unlike a guard it cannot stream, and each answer is paid for twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.judges.judge import Exchange
from benchmarks.localisation.peers.vectors import compliance_rows, over_response
from benchmarks.safety.conditions.requests import Lesson
from calibration.prompts.material import Encoder, laid_out
from calibration.prompts.request_sets import Request
from calibration.prompts.sequences import Batch, Example
from calibration.search.bounds import Budget
from calibration.search.trigger import conformal_threshold, entering_states, logistic_direction
from guard.families.architectures import architecture_of


@dataclass(frozen=True)
class OutputFilter:
    """Puts `refusal` in the place of answers whose mean residual stream entering `layer`, along `direction` [d_model],
    passes `threshold`: of benign answers, `rate` at most.
    """

    encoder: Encoder
    layer: int
    direction: Tensor
    threshold: float
    rate: float
    refusal: str

    def __call__(self, exchanges: Sequence[Exchange]) -> list[str]:
        """The answers that leave, in order: each as it is, or a refusal."""
        answers = [exchange.answer for exchange in exchanges]
        ids = [_as_read(self.encoder, answer) for answer in answers]
        whole = [place for place, tokens in enumerate(ids) if tokens]  # of an empty answer there is nothing to read
        if not whole:
            return answers
        prompts = [self.encoder.prompt(Request(prompt=exchanges[place].prompt)) for place in whole]
        examples = [Example(prompt, ids[place], ids[place]) for prompt, place in zip(prompts, whole, strict=True)]
        scores = _points(self.encoder, examples, self.layer)[0] @ self.direction  # [whole]
        for place, flagged in zip(whole, (scores > self.threshold).tolist(), strict=True):
            if flagged:
                answers[place] = self.refusal
        return answers


def learnt_filter(requests: Lesson, budget: Budget) -> OutputFilter:
    """The filter that tells answers to harmful requests from refusals and from answers to benign ones.

    Its threshold lets pass all but the budget's share of benign answers that it has not learnt from (split-conformal).
    """
    encoder, learning = requests.encoder, requests.learning
    layer = architecture_of(encoder.model).num_layers(encoder.model) - 1
    complying, refusing = _points(encoder, _read(encoder, learning.answered), layer)
    benign, _ = _points(encoder, _read(encoder, learning.benign), layer)
    direction = logistic_direction(complying, torch.cat([refusing, benign]))
    fresh, _ = _points(encoder, _read(encoder, requests.choosing.benign), layer)
    threshold, rate = conformal_threshold(fresh @ direction, budget.refusal)
    return OutputFilter(encoder, layer, direction, threshold, rate, requests.refusal)


def _read(encoder: Encoder, examples: Sequence[Example]) -> list[Example]:
    """The examples with their answers as a finished answer is read: without an end token; empty ones are left out."""
    texts = [str(encoder.tokenizer.decode(list(one.compliance), skip_special_tokens=True)) for one in examples]
    answers = [_as_read(encoder, text) for text in texts]
    return [replace(one, compliance=ids) for one, ids in zip(examples, answers, strict=True) if ids]


def _as_read(encoder: Encoder, answer: str) -> tuple[int, ...]:
    return encoder.text(answer)[: encoder.max_new_tokens]


def _points(encoder: Encoder, examples: Sequence[Example], layer: int) -> tuple[Tensor, Tensor]:
    """Mean residual streams over the examples' answers and over their refusals, [N, d_model] float32 each."""
    batches: tuple[Batch, ...] = laid_out(examples, (), (), encoder).harmful
    found = over_response(entering_states(encoder.model, batches, [layer], compliance_only=False)[layer])
    complying = compliance_rows(batches)
    return found[complying], found[~complying]
