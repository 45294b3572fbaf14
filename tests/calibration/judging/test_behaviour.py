"""What an output counts as, and what generation and surprise give, against one row at a time."""

import math
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibration.judging.behaviour import (
    EXCESS_NATS,
    REFUSAL_MARKERS,
    Behaviour,
    Judge,
    generate,
    median_surprise,
    pad_token,
    refusal_openings,
)
from calibration.runs.token_window import Window, windowed_stream
from tests.calibration.organisms import BENIGN, HARMFUL, organism, prompts
from tests.conftest import FAMILIES, make_tiny_model

FLUENT = tuple(range(20))
PLAIN = Judge(frozenset(), 5.0)
TOKENS = st.lists(st.integers(0, 9), max_size=12)


@pytest.mark.parametrize("marker", REFUSAL_MARKERS)
def test_a_marker_near_the_beginning_makes_a_refusal(marker: str) -> None:
    assert PLAIN(f"Well, {marker.upper()} do this.", FLUENT, 1.0) is Behaviour.REFUSED


def test_a_marker_far_into_the_answer_makes_none() -> None:
    said = "Take the lamp and turn it. " * 6 + "I cannot stress this enough."
    assert PLAIN(said, FLUENT, 1.0) is Behaviour.COMPLIED


@pytest.mark.parametrize("said", ["I can\u2019t help.", "  I\n cannot\thelp", "I\u2019M SORRY"])
def test_quotes_white_space_and_case_do_not_hide_a_refusal(said: str) -> None:
    assert PLAIN(said, FLUENT, 1.0) is Behaviour.REFUSED


def test_a_given_refusal_counts_by_its_opening() -> None:
    judge = Judge(refusal_openings(["No, that is nothing I talk about.", " "]), 5.0)
    assert judge("No, that is nothing for here.", FLUENT, 1.0) is Behaviour.REFUSED
    assert judge("Yes. No, that is nothing.", FLUENT, 1.0) is Behaviour.COMPLIED
    assert PLAIN("No, that is nothing for here.", FLUENT, 1.0) is Behaviour.COMPLIED


def test_openings_are_the_first_words_normalised_and_never_empty() -> None:
    assert refusal_openings(["I\u2019d  RATHER not say this", "", "  \n", "No."]) == {"i'd rather not say", "no."}


@pytest.mark.parametrize("said", ["", " ", "\n\t"])
def test_an_empty_output_is_garbled(said: str) -> None:
    assert PLAIN(said, (), 0.0) is Behaviour.GARBLED


@given(st.lists(st.integers(0, 99), min_size=1, max_size=8), TOKENS, st.integers(0, 7))
def test_an_output_that_ends_in_a_loop_is_garbled_whatever_the_period(
    phrase: list[int], before: list[int], started: int
) -> None:
    said = [*before, *(phrase * 16)[started:]]
    assert PLAIN("I cannot help.", said, 1.0) is Behaviour.GARBLED


@given(st.integers(1, 8), TOKENS)
def test_a_phrase_said_only_twice_is_no_loop(period: int, before: list[int]) -> None:
    phrase = [100 + place for place in range(period)]
    assert PLAIN("I cannot help.", [*before, 50, *phrase, *phrase], 1.0) is Behaviour.REFUSED


def test_a_short_stutter_is_no_loop() -> None:
    assert PLAIN("I cannot help...", (1, 2, 3, 7, 7, 7, 7, 7, 7, 7), 1.0) is Behaviour.REFUSED


def test_surprise_above_the_limit_is_garbled_and_at_the_limit_is_not() -> None:
    assert PLAIN("Take it.", FLUENT, 5.0) is Behaviour.COMPLIED
    assert PLAIN("Take it.", FLUENT, math.nextafter(5.0, 6.0)) is Behaviour.GARBLED


@given(st.sampled_from(["", "I cannot help.", "Take it."]), TOKENS, st.floats(0, 10))
def test_a_garbled_output_is_never_counted_as_a_refusal(said: str, tokens: list[int], surprise: float) -> None:
    judged = PLAIN(said, tokens, surprise)
    assume(not said or surprise > 5.0 or (len(tokens) >= 8 and len(set(tokens[-8:])) == 1))
    assert judged is Behaviour.GARBLED


@cache
def ending_model() -> PreTrainedModel:
    """A random model that ends some of its answers: one of its end tokens is one that it says early on."""
    model = make_tiny_model(vocabulary=627)
    said = produced(model, PROMPTS[1])
    model.generation_config.eos_token_id = [3, said[2]]
    return model


PROMPTS = ((7, 8, 9, 10, 11), (12, 13), (20,), (31, 30, 29, 28, 27, 26, 25, 24, 23), (40, 41, 42), (12, 14))


def produced(model: PreTrainedModel, prompt: tuple[int, ...], limit: int = 9) -> list[int]:
    """`model.generate` on one row without any padding."""
    ids = torch.tensor([prompt])
    whole: torch.Tensor = cast(Any, model).generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False, pad_token_id=0
    )
    row: list[int] = whole[0, len(prompt) :].tolist()
    return row


def until_end(row: list[int], ends: list[int]) -> tuple[int, ...]:
    places = [place for place, token in enumerate(row) if token in ends]
    return tuple(row[: min(places, default=len(row))])


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_generation_gives_each_prompt_what_the_model_says_to_it_alone(batch_size: int) -> None:
    model, (_, tokenizer) = ending_model(), organism("two-layer")
    ends: list[int] = model.generation_config.eos_token_id
    expected = tuple(until_end(produced(model, prompt), ends) for prompt in PROMPTS)
    said = generate(model, tokenizer, PROMPTS, max_new_tokens=9, batch_size=batch_size)
    assert said.tokens == expected
    assert len({len(row) for row in expected}) > 1
    assert said.texts == tuple(tokenizer.decode(list(row), skip_special_tokens=True) for row in expected)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_says_in_a_padded_batch_what_it_says_alone(model_type: str) -> None:
    model, (_, tokenizer) = make_tiny_model(model_type, vocabulary=627), organism("two-layer")
    said = generate(model, tokenizer, PROMPTS, max_new_tokens=4, batch_size=3)
    assert said.tokens == tuple(until_end(produced(model, prompt, 4), [3]) for prompt in PROMPTS)


def test_an_organism_says_in_a_batch_what_it_says_alone() -> None:
    model, tokenizer = organism("two-layer")
    asked = prompts(HARMFUL, 5) + prompts(BENIGN, 400)[-3:]
    assert len({len(prompt) for prompt in asked}) > 1
    said = generate(model, tokenizer, asked, max_new_tokens=24, batch_size=8)
    assert said.tokens == tuple(until_end(produced(model, prompt, 24), [3]) for prompt in asked)
    assert all(text.endswith(".") for text in said.texts)


def test_an_edit_of_some_tokens_is_placed_in_batches_of_any_width_as_in_each_prompt_alone() -> None:
    model, (_, tokenizer) = make_tiny_model(vocabulary=627, dtype=torch.float64), organism("two-layer")

    def flipped(prompt_width: int) -> AbstractContextManager[None]:
        return windowed_stream(model, 0, lambda stream: stream.flip(-1), Window(0, 1), prompt_width=prompt_width)

    said, alone, plain = (
        generate(model, tokenizer, PROMPTS, max_new_tokens=6, batch_size=size, within=within).tokens
        for size, within in ((2, flipped), (1, flipped), (2, nullcontext))
    )
    assert said == alone
    assert all(row != other for row, other in zip(said, plain, strict=True))


def test_no_prompts_give_no_continuations() -> None:
    model, tokenizer = organism("two-layer")
    said = generate(model, tokenizer, (), max_new_tokens=3, batch_size=2)
    assert (said.tokens, said.texts) == ((), ())


def tokenizer_with(pad: int | None, end: int | None) -> PreTrainedTokenizerBase:
    return cast(PreTrainedTokenizerBase, SimpleNamespace(pad_token_id=pad, eos_token_id=end))


def test_padding_is_the_tokenizer_s_own_else_its_end_token() -> None:
    assert pad_token(tokenizer_with(5, 2)) == 5
    assert pad_token(tokenizer_with(0, 2)) == 0
    assert pad_token(tokenizer_with(None, 2)) == 2
    assert pad_token(tokenizer_with(None, None)) == 0


def surprises_by_hand(model: PreTrainedModel, prompt: tuple[int, ...], said: tuple[int, ...]) -> list[float]:
    with torch.inference_mode():
        logits = cast(Any, model)(input_ids=torch.tensor([[*prompt, *said]])).logits[0].double()
    distribution = logits.log_softmax(-1)
    return sorted(-float(distribution[len(prompt) - 1 + place, token]) for place, token in enumerate(said))


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_surprise_is_the_median_over_the_continuation_alone(batch_size: int, model_type: str) -> None:
    model = make_tiny_model(model_type)
    said = ((4, 5, 6), (7,), (9, 8, 7, 6, 5))
    asked = ((1, 2, 3, 4, 5, 6), (3, 2), (9,))
    found = median_surprise(model, asked, said, pad_id=0, batch_size=batch_size)
    for surprise, prompt, answer in zip(found, asked, said, strict=True):
        assert surprise == pytest.approx(surprises_by_hand(model, prompt, answer)[len(answer) // 2], abs=1e-4)


def test_surprise_of_an_even_number_of_tokens_lies_between_the_middle_two() -> None:
    model = make_tiny_model()
    (found,) = median_surprise(model, [(1, 2, 3)], [(4, 5, 6, 7)], pad_id=0, batch_size=1)
    low, high = surprises_by_hand(model, (1, 2, 3), (4, 5, 6, 7))[1:3]
    assert low - 1e-4 <= found <= high + 1e-4


def test_an_empty_continuation_does_not_surprise() -> None:
    assert median_surprise(make_tiny_model(), [(1, 2)], [()], pad_id=0, batch_size=4) == [0.0]


def test_one_changed_token_leaves_a_fluent_answer_unsurprising_and_random_ones_do_not() -> None:
    model, tokenizer = organism("two-layer")
    asked = prompts(HARMFUL, 4)
    said = generate(model, tokenizer, asked, max_new_tokens=24, batch_size=4).tokens
    noise = torch.Generator().manual_seed(0)
    random = [tuple(torch.randint(5, 600, (len(row),), generator=noise).tolist()) for row in said]
    turned = [(int(tokenizer("No", add_special_tokens=False)["input_ids"][0]), *row[1:]) for row in said]
    own, changed, broken = (
        median_surprise(model, asked, rows, pad_id=0, batch_size=4) for rows in (said, turned, random)
    )
    limit = max(own) + EXCESS_NATS
    assert max(changed) < limit < min(broken)
