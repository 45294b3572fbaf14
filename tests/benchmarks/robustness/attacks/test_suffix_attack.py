"""The suffix attack on a guarded organism: what is searched can be typed, and nothing of it stays."""

import copy
from dataclasses import replace

import pytest
import torch

from benchmarks.robustness.attacks.suffix import Budget, alphabet
from benchmarks.robustness.attacks.suffix_attack import (
    ANSWER,
    EVADING,
    ONE,
    RANDOM,
    SEARCHED,
    SuffixPlaceError,
    place_of,
    says,
    searches_of,
    suffix,
)
from benchmarks.robustness.organisms import REFUSING, OwnOrganism
from benchmarks.robustness.result import AttackResult
from benchmarks.safety.conditions.catalogue import GUARDED
from tests.benchmarks.robustness.guarded import guarded_organism, is_bare
from tests.serve.served import TRIGGER

BUDGET = Budget(tokens=3, steps=2, candidates=6, best=8)
OWN = guarded_organism(2)


@pytest.fixture(scope="module")
def result() -> AttackResult:
    return suffix(OWN, BUDGET, seed=0)


def test_every_way_is_tried_on_the_guarded_model_and_on_the_one_beside_it(result: AttackResult) -> None:
    ways = [ONE, RANDOM, SEARCHED, ANSWER]
    assert [(one.condition, one.variant) for one in result.rows] == [
        (condition, way) for condition in (GUARDED, REFUSING) for way in ways
    ]
    assert [(one.condition, one.variant) for one in result.searches] == [
        (one.condition, one.variant) for one in result.rows
    ]


def test_a_search_around_the_trigger_comes_with_a_trigger() -> None:
    own = guarded_organism(2, TRIGGER)
    done: list[int] = []
    result = suffix(own, Budget(tokens=2, steps=1, candidates=2), seed=0, advance=done.append)
    assert [one.variant for one in result.rows if one.condition == GUARDED][-1] == EVADING
    assert sum(done) == searches_of(own) == sum(one.requests for one in result.searches)


def test_no_search_scores_more_than_its_budget_and_one_suffix_is_one(result: AttackResult) -> None:
    for one in result.searches:
        most = 1 if one.variant == ONE else 1 + BUDGET.steps * BUDGET.candidates
        assert one.requests <= one.tried <= one.requests * most


def test_all_ways_of_one_objective_begin_at_the_same_suffix(result: AttackResult) -> None:
    for condition in (GUARDED, REFUSING):
        starts = {one.start.value for one in result.searches if one.condition == condition and one.variant != ANSWER}
        assert len(starts) == 1


def test_the_same_seed_finds_the_same_and_another_seed_something_else(result: AttackResult) -> None:
    assert suffix(OWN, BUDGET, seed=0) == result
    other = suffix(OWN, BUDGET, seed=1)
    assert [one.digest for one in other.searches] != [one.digest for one in result.searches]


def test_nothing_is_left_on_the_model(result: AttackResult) -> None:
    assert result.rows
    assert is_bare(OWN.model)
    assert is_bare(OWN.refusing.model)


def test_neither_requests_nor_answers_nor_suffixes_are_written(result: AttackResult) -> None:
    written = result.model_dump_json()
    for request in OWN.requests:
        assert request.prompt not in written
        assert (request.compliance or "") not in written
    words = [str(OWN.tokenizer.decode([token])).strip() for token in alphabet(OWN.tokenizer).tolist()]
    told = {name for one in result.searches for name in (one.variant, one.condition)}
    for text in told | {one.digest for one in result.searches}:
        written = written.replace(text, "")
    assert not [word for word in words if len(word) > 4 and f'"{word}' in written]
    assert all(len(one.digest) == 64 for one in result.searches)


def test_a_suffix_is_typed_where_it_was_searched() -> None:
    words = alphabet(OWN.tokenizer)
    draw = torch.Generator().manual_seed(3)
    for request in OWN.requests:
        place = place_of(OWN, request, int(words[0]))
        assert OWN.prompt(request) == (*place.before, *place.after)
        tokens = words[torch.randint(len(words), (5,), generator=draw)].tolist()
        typed = request.model_copy(update={"prompt": request.prompt + str(OWN.tokenizer.decode(tokens))})
        assert OWN.prompt(typed) == (*place.before, *tokens, *place.after)


def test_a_template_in_which_a_word_is_not_one_token_is_an_error() -> None:
    class Doubling(OwnOrganism):
        def prompt(self, request: object) -> tuple[int, ...]:
            ids = super().prompt(request)  # type: ignore[arg-type]
            return ids + ids

    own = Doubling(**{name: getattr(OWN, name) for name in OWN.__dataclass_fields__})
    with pytest.raises(SuffixPlaceError):
        place_of(own, OWN.requests[0], int(alphabet(OWN.tokenizer)[0]))


def test_an_answer_is_said_where_greedy_decoding_says_it() -> None:
    end = int(OWN.tokenizer.eos_token_id)
    request = OWN.requests[0]
    closed = (*OWN.text(request.compliance or ""), end)
    refused = (*OWN.text(request.refusal or ""), end)
    assert says(OWN.model, OWN.prompt(request), closed)
    assert not says(OWN.model, OWN.prompt(request), refused)
    with OWN.guarded():
        assert not says(OWN.model, OWN.prompt(request), closed)
        assert says(OWN.model, OWN.prompt(request), refused)
    assert not says(OWN.model, OWN.prompt(request), (*closed[:-3], end))


def test_a_request_that_complies_already_is_not_searched_for() -> None:
    bare = copy.deepcopy(OWN.model)
    complying = replace(OWN, refusing=replace(OWN.refusing, model=bare))
    result = suffix(complying.first(2), Budget(tokens=1, steps=3, candidates=4), seed=0)
    found = next(one for one in result.searches if (one.condition, one.variant) == (REFUSING, ANSWER))
    assert found.tried < 2 * (1 + 3 * 4)
