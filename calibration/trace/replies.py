"""Which two replies Y compares on one prompt, and what of them may be shown.

By default both are the model's own where it has them: what it answers is its compliance, or its refusal if it refuses,
and what it lacks is a standard opening. So Y is near the decision that the model takes, at the price that two prompts
are compared on different texts. An answer that does not refuse is left out of every output unless asked for: nothing
here can tell harm, so every prompt counts as harmful.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from calibration.judging.behaviour import (
    EXCESS_NATS,
    Behaviour,
    Judge,
    generate,
    median_surprise,
    pad_token,
    refusal_openings,
)
from calibration.prompts.material import CONTINUATION_TOKENS, DEFAULT_REFUSAL
from calibration.report.redaction import quotes, redacted
from calibration.trace.document import Answer, Reply
from guard.errors import NeuronGuardError

DEFAULT_COMPLIANCE = "Sure, here is"


class ReplyError(NeuronGuardError):
    """Two replies between which no lean can be measured."""


@dataclass(frozen=True)
class Said:
    """A greedy answer: token ids (closed by the end token where it ended), text, class, and the median surprise of its
    tokens, nats.
    """

    tokens: tuple[int, ...]
    text: str
    behaviour: Behaviour
    surprise: float


@dataclass(frozen=True)
class Speaker:
    """A model with its tokenizer, asked for greedy answers of at most `max_new_tokens`.

    `openings` count as refusals besides the known ones.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    openings: frozenset[str]

    def answer(
        self,
        prompt: tuple[int, ...],
        installed: Callable[[], AbstractContextManager[object]] = nullcontext,
        own_surprise: float | None = None,
    ) -> Said:
        """The greedy answer under `installed`, classed by what the model as it is now finds surprising.

        It is garbled where it is ten times less likely, token by token, than the model's own answer, whose surprise is
        `own_surprise` (None: this is the model's own).
        """
        with installed():
            said = generate(self.model, self.tokenizer, [prompt], max_new_tokens=self.max_new_tokens, batch_size=1)
        tokens, text = said.tokens[0], said.texts[0]
        surprise = median_surprise(self.model, [prompt], [tokens], pad_id=pad_token(self.tokenizer), batch_size=1)[0]
        limit = EXCESS_NATS + (surprise if own_surprise is None else own_surprise)
        end = self.tokenizer.eos_token_id
        closed = (*tokens, int(end)) if len(tokens) < self.max_new_tokens and end is not None else tokens
        return Said(closed, text, Judge(self.openings, limit)(text, tokens, surprise), surprise)


@dataclass(frozen=True)
class Continuation:
    """A forced reply: token ids, and whether its text may be shown by default."""

    tokens: tuple[int, ...]
    source: str
    shown: bool


@dataclass(frozen=True)
class Continuations:
    """The two replies that Y compares."""

    compliance: Continuation
    refusal: Continuation

    @property
    def opening(self) -> tuple[int, int]:
        """The first tokens in which they differ, compliance first."""
        pairs = zip(self.compliance.tokens, self.refusal.tokens, strict=False)
        return next((first, second) for first, second in pairs if first != second)


def openings_of(refusal: str | None) -> frozenset[str]:
    """What counts as a refusal besides the known wordings."""
    return refusal_openings([DEFAULT_REFUSAL, *([refusal] if refusal else [])])


def choose(
    tokenizer: PreTrainedTokenizerBase,
    own: Said,
    other: Said | None,
    *,
    compliance: str | None = None,
    refusal: str | None = None,
) -> Continuations:
    """The two replies to a prompt: the texts given, else the model's `own` answer for the side it takes.

    The refusal may also be the answer to the `other` prompt, if that refuses. Raises ReplyError where one is empty or
    both begin alike to the end of the shorter.
    """

    def written(text: str, source: str, *, shown: bool) -> Continuation:
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        return Continuation(ids[:CONTINUATION_TOKENS], source, shown)

    def said(answer: Said, source: str, *, shown: bool) -> Continuation:
        return Continuation(answer.tokens[:CONTINUATION_TOKENS], source, shown)

    if compliance is not None:
        complies = written(compliance, "given", shown=False)
    elif own.behaviour is Behaviour.COMPLIED:
        complies = said(own, "the model's own answer", shown=False)
    else:
        complies = written(DEFAULT_COMPLIANCE, "a standard opening", shown=True)
    if refusal is not None:
        refuses = written(refusal, "given", shown=True)
    elif own.behaviour is Behaviour.REFUSED:
        refuses = said(own, "the model's own answer", shown=True)
    elif other is not None and other.behaviour is Behaviour.REFUSED:
        refuses = said(other, "the model's answer to the other prompt", shown=True)
    else:
        refuses = written(DEFAULT_REFUSAL, "a standard refusal", shown=True)
    if not complies.tokens or not refuses.tokens:
        raise ReplyError("a reply of no tokens cannot be weighed: pass other texts as --compliance and --refusal.")
    if all(a == b for a, b in zip(complies.tokens, refuses.tokens, strict=False)):
        raise ReplyError(
            "the complying and the refusing reply begin with the same tokens, so that Y cannot tell them apart: pass "
            "other texts as --compliance and --refusal."
        )
    return Continuations(complies, refuses)


def as_reply(continuation: Continuation, tokenizer: PreTrainedTokenizerBase, *, show_text: bool) -> Reply:
    """The reply for the document; where it goes on after the tokens that are weighed, with an ellipsis."""
    tokens = continuation.tokens
    shown = redacted(str(tokenizer.decode(list(tokens))), not (show_text or continuation.shown))
    goes_on = len(tokens) == CONTINUATION_TOKENS and tokens[-1] != tokenizer.eos_token_id
    return Reply(
        source=continuation.source,
        tokens=len(tokens),
        text=shown.text if shown.text is None or not goes_on else f"{shown.text}…",
        digest=shown.digest,
        words=shown.words,
    )


def as_answer(said: Said, prompt: str, *, show_text: bool) -> Answer:
    """The answer for the document: without its text unless it refuses, and does not repeat the prompt in doing so."""
    harmless = said.behaviour is Behaviour.REFUSED and not quotes(said.text, prompt)
    shown = redacted(said.text, not (show_text or harmless))
    return Answer(behaviour=said.behaviour, text=shown.text, digest=shown.digest, words=shown.words)
