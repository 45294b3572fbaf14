"""Benign outcomes: whose answers, against which other request, and what is left out and said so."""

from collections import Counter

import pytest
import torch

from calibration.evidence.benign_outcomes import ANSWER_TOKENS, FEWEST, MOST, UNNAMED, Outcomes, built_in, by_kind
from calibration.prompts.material import Answers, pair_up, prepare_material
from calibration.prompts.request_sets import Request, encode
from calibration.prompts.sequences import Batch
from tests.calibration.organisms import BENIGN, HARMFUL, every_kind, organism, requests


def outcomes() -> Outcomes:
    """Held-out outcomes of requests of all kinds."""
    return every_kind().held_out_outcomes


def rows(batches: tuple[Batch, ...], half: int) -> list[tuple[list[int], list[int]]]:
    """Prompt and continuation of each request, of one of its two rows."""
    found = []
    for batch in batches:
        for row in range(half * batch.size, (half + 1) * batch.size):
            real = batch.attention_mask[row].bool()
            prompt = batch.input_ids[row, : batch.prompt_width][real[: batch.prompt_width]]
            found.append((prompt.tolist(), batch.targets[row][batch.continuation_mask[row]].tolist()))
    return found


def test_harmful_requests_come_first_and_kinds_are_those_of_the_file() -> None:
    kinds = outcomes().kinds
    harmful = kinds.count(None)
    assert harmful > 0
    assert set(kinds[:harmful]) == {None}
    assert set(kinds[harmful:]) <= set(by_kind(requests(BENIGN)))
    assert max(Counter(kinds[harmful:]).values()) <= MOST
    assert sum(batch.size for batch in outcomes().own) == len(kinds)


def test_a_request_and_its_reference_carry_the_same_two_answers() -> None:
    for own, reference in zip(outcomes().own, outcomes().reference, strict=True):
        assert torch.equal(own.targets, reference.targets)
        assert (own.prompt_width, own.tail) == (reference.prompt_width, reference.tail)
        assert own.continuation_width <= ANSWER_TOKENS


def test_a_benign_answer_is_contrasted_with_a_request_of_another_kind_and_its_answer() -> None:
    kinds = outcomes().kinds
    own, other = rows(outcomes().own, 0), rows(outcomes().own, 1)
    reference = rows(outcomes().reference, 0)
    kind_of = {tuple(prompt): kind for (prompt, _), kind in zip(own, kinds, strict=True)}
    answer_of = {tuple(prompt): answer for prompt, answer in own}
    for (prompt, _), (_, answer), (contrast, _), kind in zip(own, other, reference, kinds, strict=True):
        if kind is not None:
            assert kind_of[tuple(contrast)] not in (kind, None)
            assert answer_of[tuple(contrast)] == answer
            assert contrast != prompt


def test_kinds_whose_words_the_model_has_not_got_are_left_out_and_said_so() -> None:
    left = dict(outcomes().left_out)
    assert {"creative continuation", "harmless refusal", "style", "language"} <= set(left)
    assert "vocabulary" in left["style"]
    few = [kind for kind, reason in left.items() if f"{FEWEST} are needed" in reason]
    assert not set(few) & set(outcomes().kinds)


def test_without_kinds_in_the_file_all_benign_requests_are_one_kind() -> None:
    plain = [request.model_copy(update={"kind": None}) for request in requests(BENIGN)[:40]]
    assert set(by_kind(plain)) == {UNNAMED}


def test_a_model_that_knows_the_words_is_asked_our_own_requests_too() -> None:
    model, tokenizer = organism("two-layer")

    class Asked:
        """An encoder whose answers are made up, and which reads every text as one token a word."""

        def __init__(self) -> None:
            self.model, self.tokenizer, self.batch_size, self.max_new_tokens = model, tokenizer, 12, 8

        def prompt(self, request: Request) -> tuple[int, ...]:
            return encode(tokenizer, request.prompt, template=True)

        def text(self, text: str) -> tuple[int, ...]:
            return tuple(range(4, 4 + len(text.split())))

        def answers(self, asked: list[Request]) -> Answers:
            return Answers(tokens=tuple((5 + place % 7, 6) for place, _ in enumerate(asked)))

    plain = [request.model_copy(update={"kind": None}) for request in requests(BENIGN)[:40]]
    sources = pair_up(requests(HARMFUL)[:40], plain, None, seed=0, max_requests=None)
    made = prepare_material(sources, Asked(), lambda _, compute: compute())  # type: ignore[arg-type]
    ours = set(built_in(0))
    assert ours == {"creative continuation", "harmless refusal", "style", "language", "arithmetic"}
    for part in (made.validation_outcomes, made.held_out_outcomes):
        assert set(part.kinds) == {None, UNNAMED} | ours
        assert part.left_out == ()


@pytest.mark.parametrize("kind", sorted(built_in(0)))
def test_our_own_requests_are_split_in_halves_that_share_none(kind: str) -> None:
    halves = [{request.prompt for request in built_in(half)[kind]} for half in (0, 1)]
    assert [len(half) for half in halves] == [12, 12]
    assert not halves[0] & halves[1]
