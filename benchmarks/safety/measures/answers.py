"""Ask every set under every condition, class each answer by every judge, and keep it.

An answer's text is kept only where it cannot do harm: harmless requests, and no request in it. For all others a hash
and a word count stand in its place, whatever the judges say, since an answer that opens with a refusal may go on.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from benchmarks.judges.judge import Exchange, Judge, can_judge, classify
from benchmarks.safety.conditions.catalogue import Condition
from benchmarks.safety.conditions.respondents import InProcess, Respondent
from benchmarks.safety.prompt_sets import Prompts, digest_of
from benchmarks.safety.record import Answer, Record


@dataclass(frozen=True)
class UnderCondition:
    """A model in this process as a condition lets it answer."""

    condition: Condition
    model: InProcess

    def answer(self, prompts: Sequence[str]) -> list[str]:
        """The answers that leave, in order: plain where the condition does not act, rewritten where it filters."""
        acts, rewrite = self.condition.acts, self.condition.rewrite
        acted = [True] * len(prompts) if acts is None else acts(self.model.encoded(prompts))
        said = [""] * len(prompts)
        for wanted, installed in ((True, self.condition.installed), (False, nullcontext)):
            places = [place for place, on in enumerate(acted) if on is wanted]
            if places:
                with installed():
                    texts = self.model.answer([prompts[place] for place in places])
                for place, text in zip(places, texts, strict=True):
                    said[place] = text
        return said if rewrite is None else rewrite([Exchange(*each) for each in zip(prompts, said, strict=True)])


@dataclass(frozen=True)
class Asked:
    """Who answers under which condition."""

    condition: str
    respondent: Respondent


@dataclass(frozen=True)
class Interview:
    """How answers are asked for and kept: `judges` class them, `show_text` keeps every text."""

    record: Record
    judges: Sequence[Judge]
    batch_size: int
    show_text: bool

    def batches(self, prompts: Prompts) -> list[range]:
        """The places of each batch: the same in every run, so that rounding is, too."""
        count = len(prompts.requests)
        return [range(start, min(start + self.batch_size, count)) for start in range(0, count, self.batch_size)]

    def ask(self, asked: Asked, prompts: Prompts, done: Callable[[], None]) -> None:
        """Have every batch of a set answered that is not answered yet, call `done` after each, and keep the answers."""
        for places in self.batches(prompts):
            if not self.record.has(asked.condition, prompts.name, places):
                texts = asked.respondent.answer([prompts.requests[place].prompt for place in places])
                self.record.add(self._kept(asked, prompts, places, texts))
            done()

    def _kept(self, asked: Asked, prompts: Prompts, places: range, texts: Sequence[str]) -> list[Answer]:
        requests = [prompts.requests[place] for place in places]
        exchanges = [Exchange(request.prompt, text) for request, text in zip(requests, texts, strict=True)]
        able = [judge for judge in self.judges if can_judge(judge, prompts.kind)]
        classes = {judge.name: classify(judge, exchanges) for judge in able}
        return [
            Answer(
                condition=asked.condition,
                prompt_set=prompts.name,
                place=place,
                digest=digest_of(request),
                answer_digest=hashlib.sha256(text.encode()).hexdigest(),
                words=len(text.split()),
                classes={name: given[row] for name, given in classes.items()},
                text=text if self.show_text or (prompts.kind == "harmless" and request.prompt not in text) else None,
            )
            for row, (place, request, text) in enumerate(zip(places, requests, texts, strict=True))
        ]
