"""Tokens to text as they come, against decoding them all at once."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from serve.hf.text import INCOMPLETE, LONGEST, Detokenizer, StopText
from tests.serve.served import ORGANISM

ORGANISMS = AutoTokenizer.from_pretrained(ORGANISM)
TEXTS = st.text(alphabet=st.sampled_from("ab é€𝄞👩‍👩‍👧 \n") | st.characters(codec="utf-8"), max_size=30)


def decode(tokens: Sequence[int]) -> str:
    return str(ORGANISMS.decode(list(tokens), skip_special_tokens=True))


def sentencepiece_like() -> Tokenizer:
    """Pieces that begin with a mark for the space before them, which a decoder drops at the beginning of a text."""
    vocabulary = {piece: number for number, piece in enumerate(["▁", "a", "b", "▁a", "▁b", "ab"])}
    merges = [("▁", "a"), ("▁", "b"), ("a", "b")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


@given(prompt=TEXTS, text=TEXTS)
def test_the_pieces_are_the_text(prompt: str, text: str) -> None:
    tokens = ORGANISMS.encode(text)
    detokenizer = Detokenizer(decode, ORGANISMS.encode(prompt))
    pieces = [detokenizer.add(token) for token in tokens]
    assert "".join(pieces) + detokenizer.rest() == decode(tokens)


@given(text=TEXTS)
def test_no_piece_holds_half_a_character(text: str) -> None:
    detokenizer = Detokenizer(decode, ())
    pieces = [detokenizer.add(token) for token in ORGANISMS.encode(text)]
    assert INCOMPLETE not in "".join(pieces).replace(INCOMPLETE * text.count(INCOMPLETE), "")


@given(tokens=st.lists(st.integers(0, 626), max_size=80))
def test_any_tokens_at_all_give_their_text(tokens: list[int]) -> None:
    detokenizer = Detokenizer(decode, (1,))
    said = "".join(detokenizer.add(token) for token in tokens) + detokenizer.rest()
    # bytes that are no characters may be replaced one by one or together
    assert said.replace(INCOMPLETE, "") == decode(tokens).replace(INCOMPLETE, "")


def test_a_character_of_several_tokens_comes_when_it_is_whole() -> None:
    tokens = ORGANISMS.encode("𝄞")
    assert len(tokens) > 1, "the test shows nothing"
    detokenizer = Detokenizer(decode, ())
    assert [detokenizer.add(token) for token in tokens] == [""] * (len(tokens) - 1) + ["𝄞"]


def test_half_a_character_at_the_end_is_not_lost() -> None:
    detokenizer = Detokenizer(decode, ())
    assert detokenizer.add(ORGANISMS.encode("𝄞")[0]) == ""
    assert detokenizer.rest() == INCOMPLETE


def test_endless_bytes_that_are_no_character_come_out_all_the_same() -> None:
    detokenizer = Detokenizer(decode, ())
    stray = ORGANISMS.encode("𝄞")[-1]
    assert any(detokenizer.add(stray) for _ in range(LONGEST + 1))


@pytest.mark.parametrize("text", ["a b ab", "ab a", " a", "a  b"])
def test_spaces_between_tokens_stay(text: str) -> None:
    tokenizer = sentencepiece_like()
    prompt, tokens = tokenizer.encode("b a").ids, tokenizer.encode(text).ids
    detokenizer = Detokenizer(lambda some: tokenizer.decode(list(some)), prompt)
    said = "".join(detokenizer.add(token) for token in tokens) + detokenizer.rest()
    assert said == tokenizer.decode([*prompt, *tokens])[len(tokenizer.decode(prompt)) :]


STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@given(pieces=st.lists(st.text("abc", max_size=4), max_size=12), stops=STOPS)
def test_text_ends_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    stop, shown, stopped, given_so_far = StopText(stops), "", False, ""
    for piece in pieces:
        text, stopped = stop.add(piece)
        shown += text
        given_so_far += piece
        ends = [given_so_far.find(one) for one in stops if one in given_so_far]
        if stopped:
            # of two that one piece completes, the one that begins first; never later than the first to be complete
            assert shown == given_so_far[: min(ends)]
            return
        assert not ends
        assert given_so_far.startswith(shown)
    assert shown + stop.rest() == given_so_far


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    stop = StopText(["###", "STOP"])
    assert stop.add("a#b") == ("a#b", False)
    assert stop.add("##") == ("", False)
    assert stop.add("c") == ("##c", False)
    assert stop.add("xST") == ("x", False)
    assert stop.add("OPy") == ("", True)
