"""Which replies Y compares, and which prompts can be traced."""

from types import SimpleNamespace
from typing import Any

import pytest

from calibration.judging.behaviour import Behaviour
from calibration.prompts.material import CONTINUATION_TOKENS
from calibration.trace.replies import (
    Continuation,
    Continuations,
    ReplyError,
    Said,
    as_answer,
    as_reply,
    choose,
    openings_of,
)  # fmt: skip
from calibration.trace.subject import PromptError, encode_prompt
from tests.calibration.trace.questions import model
from tests.calibration.trace.subjects import LONGER, PROMPT, SAME_LENGTH, SHORTER, subject, tokenizer

COMPLIES = Said((5, 6, 7), "w5 w6 w7", Behaviour.COMPLIED, 0.0)
REFUSES = Said((8, 9), "w8 w9", Behaviour.REFUSED, 0.0)


def test_the_models_own_answer_is_the_side_it_takes() -> None:
    complied = choose(tokenizer(), COMPLIES, None, refusal="w1")
    assert (complied.compliance.tokens, complied.compliance.source) == ((5, 6, 7), "the model's own answer")
    refused = choose(tokenizer(), REFUSES, None, compliance="w1")
    assert (refused.refusal.tokens, refused.refusal.source) == ((8, 9), "the model's own answer")


def test_a_refusal_of_the_other_prompt_is_the_refusal() -> None:
    found = choose(tokenizer(), COMPLIES, REFUSES)
    assert (found.refusal.tokens, found.refusal.source) == ((8, 9), "the model's answer to the other prompt")


def test_only_what_no_model_said_against_its_refusal_is_shown() -> None:
    found = choose(tokenizer(), COMPLIES, REFUSES)
    assert not found.compliance.shown
    assert found.refusal.shown
    assert choose(tokenizer(), REFUSES, None).compliance.shown
    assert not choose(tokenizer(), REFUSES, None, compliance="w1").compliance.shown


def test_replies_are_cut_to_their_first_tokens() -> None:
    long = " ".join(f"w{at}" for at in range(1, 20))
    assert len(choose(tokenizer(), COMPLIES, None, refusal=long).refusal.tokens) == CONTINUATION_TOKENS


@pytest.mark.parametrize(("compliance", "refusal"), [("", "w1"), ("w1", ""), ("w1 w2", "w1"), ("w3 w4", "w3 w4")])
def test_replies_between_which_nothing_can_be_weighed_are_refused(compliance: str, refusal: str) -> None:
    with pytest.raises(ReplyError, match="pass other texts as --compliance and --refusal"):
        choose(tokenizer(), COMPLIES, None, compliance=compliance, refusal=refusal)


def test_the_opening_is_where_the_replies_first_differ() -> None:
    replies = Continuations(Continuation((1, 2, 3), "", shown=True), Continuation((1, 4), "", shown=True))
    assert replies.opening == (2, 4)


def test_a_refusal_that_repeats_the_prompt_is_left_out_and_another_is_shown() -> None:
    assert as_answer(REFUSES, "w1 w2 w3 w4", show_text=False).text == "w8 w9"
    assert as_answer(REFUSES, "w8 w9", show_text=False).text is None
    assert as_answer(COMPLIES, "w1", show_text=False).text is None
    assert as_answer(COMPLIES, "w1", show_text=True).text == "w5 w6 w7"


def test_a_reply_that_is_left_out_keeps_a_hash_and_a_count() -> None:
    shown = as_reply(Continuation((5, 6, 7), "x", shown=False), tokenizer(), show_text=False)
    assert (shown.text, shown.words, shown.tokens) == (None, "3 words", 3)
    assert len(shown.digest) == 12


def test_a_reply_that_goes_on_after_what_is_weighed_ends_in_an_ellipsis() -> None:
    ending: Any = SimpleNamespace(eos_token_id=6, decode=str)
    most = (5,) * CONTINUATION_TOKENS
    told = [
        as_reply(Continuation(tokens, "x", shown=True), ending, show_text=False).text
        for tokens in ((5, 5), most, (*most[1:], 6))
    ]
    assert told == [str([5, 5]), f"{list(most)}…", str([*most[1:], 6])]


def test_a_refusal_that_is_given_counts_as_one() -> None:
    assert "w40 w41" in openings_of("w40 w41")
    assert openings_of(None) < openings_of("w40 w41")


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_prompt_is_refused(text: str) -> None:
    with pytest.raises(PromptError, match="the prompt is empty"):
        encode_prompt(model(), tokenizer(), text, 8, template=False)


def test_a_prompt_must_leave_room_for_its_reply() -> None:
    words = " ".join(["w1"] * 248)  # the model has 256 positions
    assert len(encode_prompt(model(), tokenizer(), words, 8, template=False)) == 248
    with pytest.raises(PromptError, match="249 tokens, and a trace takes between 1 and 248"):
        encode_prompt(model(), tokenizer(), words + " w1", 8, template=False)


def test_two_prompts_line_up_from_the_end_as_far_as_they_agree_or_all_the_way_where_they_are_as_long() -> None:
    assert len(subject().aligned) == len(PROMPT) + 3
    assert len(subject(other=SAME_LENGTH).aligned) == len(PROMPT) + 3
    assert len(subject(other=SHORTER).aligned) == 3 + 3
    longer = subject(other=LONGER)
    assert len(longer.aligned) == 4 + 3
    assert longer.first == 2
    assert len(longer.columns) == len(PROMPT) + 3
