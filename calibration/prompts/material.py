"""From prompt sets to batches: contrast pairs, continuations and splits.

Two kinds of contrast come in. With jailbreaks, x is the plain request and x* the wrapped one, and benign requests are
wrapped too, or a wrapper would pass for harm. Without, x is a benign request of the same form. Continuations that a
prompt file does not give are the model's own: what it says to x* is its compliance, what it says to a benign request
is what the guard must leave alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from pydantic import BaseModel, ConfigDict
from torch import nn
from transformers import PreTrainedTokenizerBase

from calibration.evidence.benign_outcomes import ANSWER_TOKENS, Outcomes, Tokens, prepare_outcomes
from calibration.judging.behaviour import generate, pad_token
from calibration.prompts.request_sets import ContrastPair, Jailbreaks, Request, encode, wrap
from calibration.prompts.sequences import Batch, Example, common_tail
from calibration.prompts.splits import Splits, sample, split
from calibration.runs.stage import collate_all
from calibration.search.gate import SplitBatches

DEFAULT_REFUSAL = "I'm sorry, but I can't help with that."
CONTINUATION_TOKENS = ANSWER_TOKENS


class Answers(BaseModel):
    """The model's own greedy continuations (token ids), in the order of the prompts they belong to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Encoder:
    """Requests to token ids, for one model and tokenizer."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    template: bool
    batch_size: int
    max_new_tokens: int

    def prompt(self, request: Request) -> tuple[int, ...]:
        """The templated prompt."""
        return encode(self.tokenizer, request.prompt, template=self.template)

    def text(self, text: str) -> tuple[int, ...]:
        """A continuation's ids, no special tokens added."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def answers(self, requests: Sequence[Request]) -> Answers:
        """The model's own greedy continuations, each closed by the end token where the model closed it."""
        said = generate(
            self.model,
            self.tokenizer,
            [self.prompt(request) for request in requests],
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
        )
        end = self.tokenizer.eos_token_id
        closed = (
            (*row, int(end)) if len(row) < self.max_new_tokens and end is not None else row for row in said.tokens
        )
        return Answers(tokens=tuple(closed))


@dataclass(frozen=True)
class Sources:
    """The pairs and benign requests of each split, still as text. `contrast` says what x is."""

    contrast: Literal["jailbreak", "topic"]
    pairs: Splits[ContrastPair]
    benign: Splits[Request]


def pair_up(
    harmful: Sequence[Request],
    benign: Sequence[Request],
    jailbreaks: Jailbreaks | None,
    *,
    seed: int,
    max_requests: int | None,
) -> Sources:
    """Contrast pairs and benign requests, split by goal. With jailbreak templates each benign request is plain or
    wrapped in turn; with finished attacks benign requests stay plain.
    """
    harmful, benign = sample(harmful, max_requests, seed), sample(benign, max_requests, seed)
    if jailbreaks is None:
        parts, benign_parts = split(harmful, seed), split(benign, seed)
        paired = Splits(
            *(
                tuple(
                    ContrastPair(reference=easy[index % len(easy)], harmful=request)
                    for index, request in enumerate(hard)
                )
                for hard, easy in (
                    (parts.calibration, benign_parts.calibration),
                    (parts.validation, benign_parts.validation),
                    (parts.held_out, benign_parts.held_out),
                )
            )
        )
        return Sources("topic", paired, benign_parts)
    wrapped_benign = wrap(benign, jailbreaks.model_copy(update={"attacks": ()}))
    count = len(jailbreaks.templates)
    mixed = [
        request if place % (count + 1) == 0 else wrapped_benign[place * count + place % (count + 1) - 1].harmful
        for place, request in enumerate(benign)
    ]
    return Sources("jailbreak", split(_spread(wrap(harmful, jailbreaks), jailbreaks), seed), split(mixed, seed))


def _spread(pairs: tuple[ContrastPair, ...], jailbreaks: Jailbreaks) -> tuple[ContrastPair, ...]:
    """One template per request in turn, rather than all, so that the number of pairs is the number of requests."""
    count = len(jailbreaks.templates)
    if count < 2:
        return pairs
    templated = len(pairs) - len(jailbreaks.attacks)
    chosen = tuple(pair for place, pair in enumerate(pairs[:templated]) if (place // count) % count == place % count)
    return chosen + pairs[templated:]


@dataclass(frozen=True)
class Material:
    """Everything a calibration works on, as token ids: batches for finding and choosing, prompts and batches for
    judging. What specificity is measured on comes twice: to choose by, and held out.
    """

    calibration: SplitBatches
    validation: SplitBatches
    held_out: SplitBatches
    validation_outcomes: Outcomes
    held_out_outcomes: Outcomes
    held_out_harmful: tuple[tuple[int, ...], ...]
    held_out_benign: tuple[tuple[int, ...], ...]
    refusals: tuple[str, ...]


Keep = Callable[[str, Callable[[], Answers]], Answers]


def prepare_material(sources: Sources, encoder: Encoder, kept: Keep) -> Material:
    """Encode every split; `kept(name, compute)` keeps the model's own answers from one run of a calibration to the
    next.
    """
    refusals = tuple(dict.fromkeys(pair.harmful.refusal for pair in sources.pairs.calibration if pair.harmful.refusal))
    default = refusals[0] if refusals else DEFAULT_REFUSAL
    built: dict[str, SplitBatches] = {}
    outcomes: dict[str, Outcomes] = {}
    for name in ("calibration", "validation", "held_out"):
        pairs: tuple[ContrastPair, ...] = getattr(sources.pairs, name)
        benign: tuple[Request, ...] = getattr(sources.benign, name)
        keep = partial(_named, kept, name)
        answers = _answers(pairs, benign, encoder, keep)
        width = CONTINUATION_TOKENS if name == "calibration" else encoder.max_new_tokens + 1
        built[name] = _batches(pairs, benign, answers, encoder, default, benign_tokens=width)
        if name != "calibration":
            half = int(name == "held_out")
            outcomes[name] = prepare_outcomes(pairs, benign, answers, encoder, partial(_ours, encoder, keep), half)
    return Material(
        **built,
        validation_outcomes=outcomes["validation"],
        held_out_outcomes=outcomes["held_out"],
        held_out_harmful=tuple(encoder.prompt(pair.harmful) for pair in sources.pairs.held_out),
        held_out_benign=tuple(encoder.prompt(request) for request in sources.benign.held_out),
        refusals=(*refusals, default),
    )


def _named(kept: Keep, split_name: str, kind: str, compute: Callable[[], Answers]) -> Answers:
    return kept(f"{split_name}-{kind}", compute)


def _ours(encoder: Encoder, kept: Keep, requests: Sequence[Request]) -> tuple[Tokens, ...]:
    """The model's answers to our own harmless requests."""
    return kept("outcomes", lambda: encoder.answers(requests)).tokens if requests else ()


def _answers(
    pairs: Sequence[ContrastPair], benign: Sequence[Request], encoder: Encoder, kept: Keep
) -> tuple[tuple[Tokens, ...], tuple[Tokens, ...]]:
    """The compliance with each x*, as given or else as the model says it, and the model's answer to benign requests."""
    harmful = [pair.harmful for pair in pairs]
    given = [encoder.text(request.compliance) if request.compliance else () for request in harmful]
    own: Sequence[Tokens] = given if all(given) else kept("harmful", lambda: encoder.answers(harmful)).tokens
    compliances = tuple(said or mine for said, mine in zip(given, own, strict=True))
    return compliances, kept("benign", lambda: encoder.answers(benign)).tokens


def _batches(
    pairs: Sequence[ContrastPair],
    benign: Sequence[Request],
    answers: tuple[tuple[Tokens, ...], tuple[Tokens, ...]],
    encoder: Encoder,
    refusal: str,
    *,
    benign_tokens: int,
) -> SplitBatches:
    compliances, benign_answers = answers
    stars, plain = [], []
    for pair, continuation in zip(pairs, compliances, strict=True):
        refused = encoder.text(pair.harmful.refusal or refusal)
        star = Example(encoder.prompt(pair.harmful), continuation, refused).truncated(CONTINUATION_TOKENS)
        stars.append(star)
        plain.append(Example(encoder.prompt(pair.reference), star.compliance, star.refusal))
    benign_examples = [
        Example(
            encoder.prompt(request),
            answer[:benign_tokens],
            encoder.text(request.refusal or refusal)[:CONTINUATION_TOKENS],
        )
        for request, answer in zip(benign, benign_answers, strict=True)
    ]
    return laid_out(stars, plain, benign_examples, encoder)


def laid_out(
    harmful: Sequence[Example], reference: Sequence[Example], benign: Sequence[Example], encoder: Encoder
) -> SplitBatches:
    """The requests of one split as batches, all with one prompt width and one tail."""
    pad, device = pad_token(encoder.tokenizer), next(encoder.model.parameters()).device
    prompts = [example.prompt for example in (*harmful, *reference, *benign)]
    width, tail = max(map(len, prompts)), common_tail(prompts)

    def batches(examples: Sequence[Example]) -> tuple[Batch, ...]:
        return collate_all(
            examples, pad_id=pad, device=device, batch_size=encoder.batch_size, prompt_width=width, tail=tail
        )

    return SplitBatches(batches(harmful), batches(reference), batches(benign))
