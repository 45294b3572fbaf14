from functools import lru_cache
from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from benchmarks.organisms.language import HOW_TO, TASKS, Lexicon, corpus, held_out
from benchmarks.organisms.tokenizer import END, prompt_text, train_tokenizer


@lru_cache(maxsize=1)
def trained() -> PreTrainedTokenizerFast:
    return train_tokenizer(corpus(Lexicon.from_seed(5)), 640)


@pytest.mark.parametrize("configuration", [LlamaConfig, Qwen2Config])
def test_auto_tokenizer_brings_the_tokenizer_back_beside_either_model_type(
    configuration: type[LlamaConfig] | type[Qwen2Config], tmp_path: Path
) -> None:
    tokenizer, lexicon = trained(), Lexicon.from_seed(5)
    tokenizer.save_pretrained(tmp_path)
    configuration().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert (loaded.eos_token, loaded.pad_token, loaded.padding_side) == (END, tokenizer.pad_token, "left")
    texts = ["  odd\nspacing ", "naïve 12345 ☂", "don't", *lexicon.wrappers]
    for kind in (*HOW_TO, *TASKS):
        texts += [prompt_text(request.prompt) + request.answer + END for request in held_out(lexicon, kind, 20)]
    assert loaded(texts).input_ids == tokenizer(texts).input_ids
    assert loaded.batch_decode(loaded(texts).input_ids) == texts


def test_a_prompt_and_its_continuation_are_tokenised_as_their_concatenation() -> None:
    tokenizer, lexicon = trained(), Lexicon.from_seed(5)
    for kind in (*HOW_TO, *TASKS):
        for request in held_out(lexicon, kind, 50):
            prompt = tokenizer(prompt_text(request.prompt)).input_ids
            for continuation in (request.answer, request.refusal):
                joined = tokenizer(prompt_text(request.prompt) + continuation).input_ids
                assert joined == prompt + tokenizer(continuation).input_ids


def test_the_chat_template_gives_the_prompt_that_models_were_trained_on() -> None:
    messages = [{"role": "user", "content": "How do I bend the vault?"}]
    text = trained().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == prompt_text("How do I bend the vault?")


def test_the_template_leaves_a_tail_of_two_tokens_after_the_request() -> None:
    assert trained().convert_ids_to_tokens(trained()(prompt_text("dog")).input_ids[-2:]) == ["<|end|>", "<|assistant|>"]


def test_every_word_of_the_lexicon_is_one_token() -> None:
    lexicon = Lexicon.from_seed(5)
    words = (*lexicon.risky_verbs, *lexicon.plain_verbs, *lexicon.sensitive_objects, *lexicon.plain_objects)
    assert all(len(trained()(" " + word).input_ids) == 1 for word in words)
