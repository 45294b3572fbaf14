"""Single tokens as text and bytes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from serve.hf.tokens import TokenTexts
from serve.http.prompts import Prompts
from tests.serve.served import ORGANISM

TOKENIZER = AutoTokenizer.from_pretrained(ORGANISM)
TEXTS = TokenTexts(Prompts(TOKENIZER, 256, 627))


@given(text=st.text(max_size=20))
def test_the_bytes_of_a_texts_tokens_are_its_bytes(text: str) -> None:
    normal = str(TOKENIZER.decode(TOKENIZER.encode(text)))
    parts = [TEXTS.of(token)[1] for token in TOKENIZER.encode(text)]
    assert bytes(byte for part in parts for byte in part or []) == normal.encode()


def test_a_special_token_reads_as_it_is_written() -> None:
    assert TEXTS.of(3)[0] == "<|end|>"


@pytest.mark.parametrize(("token", "expected"), [(0, None), (1, [0xE2]), (2, [0x61])])
def test_byte_tokens_of_sentencepiece_are_bytes(token: int, expected: list[int] | None) -> None:
    vocabulary = {"\N{REPLACEMENT CHARACTER}x": 0, "<0xE2>": 1, "a": 2}
    core = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=core)  # type: ignore[no-untyped-call]
    assert TokenTexts(Prompts(tokenizer, 8, 3)).of(token)[1] == expected
