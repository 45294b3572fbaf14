"""Search for suffixes that bring requests through the guard, on the project's own organisms and on no other model.

How much of a gate's strength lasts against someone who can see it: the search runs through the guarded model, once by
its lean to compliance and, where there is a trigger, once around the trigger. Beside it stand as many suffixes at
random, and the same search on a model that refuses without a guard. Suffixes are counted and hashed; none is shown or
kept.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor, nn

from benchmarks.robustness.attacks.suffix import Budget, Found, alphabet, at_random, by_gradient, search
from benchmarks.robustness.attacks.suffix_objective import Evading, Objective, Place, answer, lean, trigger_unit
from benchmarks.robustness.organisms import OwnOrganism, require_organism
from benchmarks.robustness.result import AttackResult, Row, Search, row
from benchmarks.robustness.subject import Subject, Target, Tokens
from calibration.effects.statistics import bootstrap_estimate
from calibration.judging.behaviour import pad_token
from calibration.prompts.request_sets import Request
from guard.errors import NeuronGuardError

ONE, RANDOM = "one random suffix", "best of as many random suffixes"
SEEDS = 10_000  # more than there are requests: no two searches of two seeds draw alike
SEARCHED, ANSWER = "suffixes searched by Y", "suffixes searched by the answer alone"
EVADING = "suffixes searched around the trigger"


class SuffixPlaceError(NeuronGuardError):
    """A chat template or tokenizer in which a word at the end of the request is not one token more."""


@dataclass(frozen=True, repr=False)
class Way:
    """A way to search: what it is called, by which objective, whether by its gradient, and in how many rounds."""

    variant: str
    objective: Objective
    by_gradient: bool
    steps: int


def suffix(
    subject: Subject, budget: Budget, *, seed: int, advance: Callable[[int], None] = lambda _: None
) -> AttackResult:
    """Search a suffix for each request, on the guarded organism and on the one that refuses without a guard.

    Raises NotAnOrganismError for any other model. `advance` is told of each search that is done.
    """
    own = require_organism(subject)
    rows: list[Row] = []
    searches: list[Search] = []
    bare, words = copy.deepcopy(own.model), alphabet(own.tokenizer)
    for target in (own.targets()[1], own.refusing):
        with target.installed():
            before = own.said(target.model, target.requests)
            places = [place_of(own, request, int(words[0])) for request in target.requests]
            for way in _ways(own, target, bare, places, budget.steps):
                found = []
                for number, place in enumerate(places):
                    draw = torch.Generator().manual_seed(SEEDS * seed + number)
                    found.append(_best(own, target.model, place, way, words, budget, draw))
                    advance(1)
                after = own.said(target.model, [_with(own, *each) for each in zip(target.requests, found, strict=True)])
                rows.append(row(way.variant, target.name, before, after))
                searches.append(_told(way, target, found))
    setting = {name: str(value) for name, value in budget.model_dump().items()}
    return AttackResult(attack="suffix", setting=setting, rows=tuple(rows), searches=tuple(searches))


def searches_of(own: OwnOrganism) -> int:
    """How many searches the attack makes."""
    return (9 if own.spec.trigger else 8) * len(own.requests)


def _ways(own: OwnOrganism, target: Target, bare: nn.Module, places: Sequence[Place], steps: int) -> Iterator[Way]:
    """At random and by gradient; on a guarded model with a trigger also around it. `bare` is the organism unguarded."""
    pad = pad_token(own.tokenizer)
    leaning = Objective(target.model, lean, pad)
    yield Way(ONE, leaning, False, 0)
    yield Way(RANDOM, leaning, False, steps)
    yield Way(SEARCHED, leaning, True, steps)
    yield Way(ANSWER, Objective(target.model, answer, pad), True, steps)
    trigger = own.spec.trigger
    if target is own.refusing or trigger is None:
        return
    none = torch.zeros(1, 0, dtype=torch.int64)
    units = [trigger_unit(bare, trigger, place.batch(none, pad_id=pad)) for place in places]
    yield Way(EVADING, Objective(bare, Evading(trigger, sum(units) / len(units)), pad), True, steps)


def _best(
    own: OwnOrganism, model: nn.Module, place: Place, way: Way, words: Tensor, budget: Budget, draw: torch.Generator
) -> Found:
    """The best suffix of one request; whichever way is taken, the same draws give the same first one."""
    first = words[torch.randint(len(words), (budget.tokens,), generator=draw)]
    closed = (*place.compliance, int(own.tokenizer.eos_token_id))

    def complies(suffix: Tensor) -> bool:
        return says(model, (*place.before, *suffix.tolist(), *place.after), closed)

    propose = (
        by_gradient(way.objective, place, words, budget, draw) if way.by_gradient else at_random(words, budget, draw)
    )
    return search(way.objective, place, first, propose, complies, way.steps)


def place_of(own: OwnOrganism, request: Request, word: int) -> Place:
    """Where a request's suffix stands. SuffixPlaceError where one `word` more is not one token more, at that place."""
    plain = own.prompt(request)
    longer = own.prompt(request.model_copy(update={"prompt": request.prompt + str(own.tokenizer.decode([word]))}))
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(plain, longer, strict=False)))
    before, after = plain[:same], plain[same:]
    if longer != (*before, word, *after):
        raise SuffixPlaceError(
            "a word at the end of a request is not one token more: no suffix can be searched for this tokenizer."
        )
    return Place(before, after, own.text(request.compliance or ""), own.text(request.refusal or ""))


@torch.inference_mode()
def says(model: nn.Module, prompt: Sequence[int], answer: Tokens) -> bool:
    """Whether greedy decoding after `prompt` gives exactly `answer`, its end token included: each is the likeliest."""
    ids = torch.tensor([[*prompt, *answer]])
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]  # [answer, V]
    return logits.argmax(dim=-1).tolist() == list(answer)


def _with(own: OwnOrganism, request: Request, found: Found) -> Request:
    """The request as it would be typed with its suffix."""
    return request.model_copy(update={"prompt": request.prompt + str(own.tokenizer.decode(found.suffix.tolist()))})


def _told(way: Way, target: Target, found: Sequence[Found]) -> Search:
    whole = ",".join(str(token) for one in found for token in one.suffix.tolist())
    return Search(
        variant=way.variant,
        condition=target.name,
        requests=len(found),
        start=bootstrap_estimate([one.course[0] for one in found], seed=0),
        end=bootstrap_estimate([one.course[-1] for one in found], seed=0),
        tried=sum(one.tried for one in found),
        digest=hashlib.sha256(whole.encode()).hexdigest(),
    )
