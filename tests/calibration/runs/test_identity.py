"""Whatever decides what a model says is in its identity, and where it came from is not."""

from collections.abc import Callable

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.organisms.catalogue import load_organism
from calibration.runs.identity import identity

Change = Callable[[PreTrainedModel, PreTrainedTokenizerBase], object]


def set_template(_: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{{ messages[0]['content'] }}"


def add_token(_: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.add_tokens(["<another>"])


def set_epsilon(model: PreTrainedModel, _: PreTrainedTokenizerBase) -> None:
    model.config.rms_norm_eps = 0.5


def set_end(model: PreTrainedModel, _: PreTrainedTokenizerBase) -> None:
    assert model.generation_config is not None
    model.generation_config.eos_token_id = 5


def double_norm(model: PreTrainedModel, _: PreTrainedTokenizerBase) -> None:
    model.get_parameter("model.norm.weight").data *= 2


CHANGES: dict[str, Change] = {
    "chat_template": set_template,
    "tokenizer": add_token,
    "configuration": set_epsilon,
    "generation": set_end,
    "weights": double_norm,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_any_part_changes_that_part_s_digest_alone(name: str) -> None:
    model, tokenizer, _ = load_organism("two-layer")
    before = identity(model, tokenizer)
    CHANGES[name](model, tokenizer)
    after = identity(model, tokenizer)
    assert {part for part in before if before[part] != after[part]} == {name}


def test_where_a_model_was_loaded_from_is_no_part_of_what_it_is() -> None:
    model, tokenizer, _ = load_organism("two-layer")
    before = identity(model, tokenizer)
    model.config.name_or_path = "elsewhere"
    assert identity(model, tokenizer) == before


def test_a_tokenizer_without_a_chat_template_has_an_identity() -> None:
    model, tokenizer, _ = load_organism("two-layer")
    tokenizer.chat_template = None
    assert identity(model, tokenizer)["chat_template"] == ""
