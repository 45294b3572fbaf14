"""Edits of some tokens alone: what they touch, in a forward pass and while a model generates."""

from contextlib import AbstractContextManager
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from calibration.effects.outcome import readout_logits
from calibration.prompts.sequences import Batch, Example, collate
from calibration.runs.interventions import editing
from calibration.runs.layer_calls import cache_name, calls, leaving, tokens_before
from calibration.runs.token_window import Window, windowed_edits, windowed_stream
from guard.errors import EditNotAppliedError, UnsupportedModelError
from guard.families.architectures import architecture_of
from guard.hf import install_edits
from guard.spec.edit_spec import LayerEdit, Trigger
from tests.conftest import TinyModel

EDITS = (
    LayerEdit(layer=1, neurons=(0, 3, 7), scale=(0.0,) * 3, lower=(2.0,) * 3, upper=(2.0,) * 3),
    LayerEdit(layer=2, neurons=(1, 2), scale=(-1.0,) * 2, lower=(-9.0,) * 2, upper=(9.0,) * 2),
)
PROMPTS = ((5, 6, 7, 8, 9), (11, 12, 13))
WIDTH = max(map(len, PROMPTS))
LONG = (tuple(range(5, 18)), (11, 12, 13, 14))  # one longer than the sliding window, one padded beyond it
NEW = 6
# Other than with ids and a growing cache.
WAYS: dict[str, dict[str, Any]] = {
    "ids": {},
    "without a cache": {"use_cache": False},
    "a static cache": {"cache_implementation": "static"},
    "a prompt in chunks": {"prefill_chunk_size": 3},
    "a prompt in chunks, a static cache": {"prefill_chunk_size": 3, "cache_implementation": "static"},
}
# Growing caches by each of the names that layers have for them, and caches of sliding windows.
FAMILIES = ("llama", "gpt2", "opt", "gpt_neox", "gptj", "gemma3_text")


def example_batch() -> Batch:
    return collate([Example(prompt, (20, 21, 22, 23), (30, 31)) for prompt in PROMPTS], pad_id=0)


def trigger(model: PreTrainedModel, threshold: float = 0.0) -> Trigger:
    direction = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(3))
    return Trigger(
        layer=1,
        threshold=threshold,
        direction=tuple(direction.tolist()),
        false_trigger_rate=0.01,
        calibration_size=100,
    )


def padded(prompts: tuple[tuple[int, ...], ...] = PROMPTS) -> dict[str, Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def generated(model: PreTrainedModel, inputs: dict[str, Tensor] | None = None) -> Tensor:
    given = inputs or padded()
    said = model.generate(**given, max_new_tokens=NEW, do_sample=False, pad_token_id=0)  # type: ignore[operator]
    new: Tensor = said[:, given["input_ids"].shape[1] :]
    return new


def step_by_step(model: PreTrainedModel, inputs: dict[str, Tensor], **way: Any) -> tuple[Tensor, Tensor]:
    """Greedy tokens int64 [rows, NEW], and the logits [rows, NEW, V] that each was chosen from."""
    made = cast(Any, model).generate(
        **inputs,
        **way,
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return made.sequences[:, -NEW:], torch.stack(made.logits, dim=1)  # float32, whatever the model's


@torch.inference_mode()
def in_one_pass(model: PreTrainedModel, inputs: dict[str, Tensor], said: Tensor) -> Tensor:
    """The logits [rows, NEW, V], float32, that predict `said` after the prompts."""
    ids = torch.cat([inputs["input_ids"], said], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(said)], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits: Tensor = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return logits[:, -NEW - 1 : -1].float()


def edited(model: PreTrainedModel, prompt_width: int) -> AbstractContextManager[None]:
    return windowed_edits(model, EDITS, trigger(model, -1e9), Window(-1, 2), prompt_width=prompt_width)


def flipped(model: PreTrainedModel, prompt_width: int) -> AbstractContextManager[None]:
    return windowed_stream(model, 0, lambda stream: stream.flip(-1), Window(-1, 2), prompt_width=prompt_width)


def test_a_window_without_bounds_holds_every_token_and_one_with_bounds_both_ends() -> None:
    offsets = torch.arange(-3, 4)
    assert Window().holds(offsets).all()
    assert offsets[Window(-1, 2).holds(offsets)].tolist() == [-1, 0, 1, 2]


@pytest.mark.parametrize("window", [Window(0, 0), Window(0, 2), Window(-1, None)])
def test_a_windowed_pass_is_the_edit_at_the_columns_of_the_window(tiny_model: TinyModel, window: Window) -> None:
    model, batch = tiny_model(), example_batch()
    active = window.columns(batch.prompt_width, batch.input_ids.shape[1], torch.device("cpu"))
    with torch.inference_mode():
        with editing(model, batch, EDITS, active.expand(2 * batch.size, -1)):
            expected = readout_logits(model, batch)
        with windowed_edits(model, EDITS, None, window, prompt_width=batch.prompt_width):
            found = readout_logits(model, batch)
        plain = readout_logits(model, batch)
    assert torch.equal(found, expected)
    assert not torch.equal(found, plain)


def test_a_window_without_bounds_generates_what_the_installed_guard_does(tiny_model: TinyModel) -> None:
    model = tiny_model()
    for condition in (None, trigger(model)):
        with install_edits(model, EDITS, condition):
            expected = generated(model)
        with windowed_edits(model, EDITS, condition, Window(), prompt_width=WIDTH):
            assert torch.equal(generated(model), expected)


@pytest.mark.parametrize("install", [edited, flipped], ids=["edits", "stream"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_generating_in_a_window_reads_what_one_pass_over_the_same_tokens_reads(
    tiny_model: TinyModel, family: str, way: dict[str, Any], install: Any
) -> None:
    # as many heads for keys and values, since a static cache believes the configuration, whatever the family
    model, inputs = tiny_model(family, dtype=torch.float64, num_key_value_heads=4), padded(LONG)
    width = inputs["input_ids"].shape[1]
    with install(model, width):
        said, logits = step_by_step(model, inputs, **way)
        again, _ = step_by_step(model, inputs, **way)  # the next prompts begin the count anew
        expected = in_one_pass(model, inputs, said)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
    assert torch.equal(said, again)
    assert not torch.allclose(in_one_pass(model, inputs, said), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_generating_from_embeddings_in_a_window_is_generating_from_their_ids(
    tiny_model: TinyModel, family: str
) -> None:
    model, inputs = tiny_model(family, dtype=torch.float64), padded(LONG)
    with torch.no_grad():
        embeddings = architecture_of(model).embedding(model)(inputs["input_ids"])
    with edited(model, inputs["input_ids"].shape[1]):
        said, logits = step_by_step(model, inputs)
        also, close = step_by_step(model, {**inputs, "inputs_embeds": embeddings})
        alone, alone_close = step_by_step(
            model, {"inputs_embeds": embeddings, "attention_mask": inputs["attention_mask"]}
        )
    assert torch.equal(said, also) and torch.equal(said, alone)
    torch.testing.assert_close((close, alone_close), (logits, logits), rtol=0, atol=1e-6)


def test_prompts_without_padding_are_edited_in_the_window_too(tiny_model: TinyModel) -> None:
    model = tiny_model()  # transformers drops a mask of ones
    ids = torch.tensor([PROMPTS[0]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with install_edits(model, EDITS):
        expected = generated(model, inputs)
    with windowed_edits(model, EDITS, None, Window(), prompt_width=ids.shape[1]):
        assert torch.equal(generated(model, inputs), expected)


def test_what_a_window_leaves_out_cannot_be_told_from_the_first_token_on(tiny_model: TinyModel) -> None:
    model = tiny_model()
    said = []
    for last in (0, 3, None):
        with windowed_stream(model, 1, lambda stream: stream.flip(-1), Window(0, last), prompt_width=WIDTH):
            said.append(generated(model))
    assert torch.equal(said[0][:, 0], said[2][:, 0])  # decided at the last prompt token, which every window holds
    assert torch.equal(said[1][:, :4], said[2][:, :4])
    assert not torch.equal(said[0], said[2])


def test_outside_the_window_the_stream_stays_bit_for_bit(tiny_model: TinyModel) -> None:
    model, batch = tiny_model(), example_batch()
    with torch.inference_mode():
        plain = readout_logits(model, batch)
        with windowed_stream(
            model, 2, lambda stream: stream + 1.0, Window(1, 1), prompt_width=batch.prompt_width
        ):  # the last layer: nothing after it mixes tokens
            changed = readout_logits(model, batch)
    touched = (plain != changed).any(-1)  # [2B, C]
    assert touched[:, 1].all()
    assert not touched[:, [0, 2, 3]].any()


def test_a_layer_that_runs_outside_a_pass_of_the_whole_model_is_refused(tiny_model: TinyModel) -> None:
    model = tiny_model()
    layer, seen = architecture_of(model).decoder_layers(model)[1], list[tuple[Tensor, dict[str, Any]]]()
    with torch.inference_mode(), calls(layer, lambda *call: seen.append(call)):
        model(**padded(), use_cache=False)
    with torch.inference_mode(), windowed_edits(model, EDITS, None, Window(), prompt_width=WIDTH):
        with pytest.raises(EditNotAppliedError, match="outside a forward pass"):
            leaving(layer, *seen[0])
        model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)
        with pytest.raises(EditNotAppliedError, match="outside a forward pass"):
            leaving(layer, *seen[0])  # of another width than the pass before


def test_tokens_before_a_pass_are_those_in_the_cache_by_whatever_name(tiny_model: TinyModel) -> None:
    model = tiny_model()
    layer, cache = architecture_of(model).decoder_layers(model)[0], DynamicCache()
    for name in ("cache", "past_key_values", "layer_past"):
        assert tokens_before(layer, {name: cache}) == cache.get_seq_length()
        cache.update(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), 0)
    assert tokens_before(layer, {"attention_mask": None, "cache": None}) == 0


@pytest.mark.parametrize(
    "given", [{"cache": object()}, {"cache": DynamicCache(), "past_key_values": DynamicCache()}], ids=["foreign", "two"]
)
def test_a_cache_that_does_not_say_how_many_tokens_came_before_is_refused(
    tiny_model: TinyModel, given: dict[str, Any]
) -> None:
    model = tiny_model()
    with pytest.raises(EditNotAppliedError, match="how many tokens came before"):
        tokens_before(architecture_of(model).decoder_layers(model)[0], given)


def test_a_layer_whose_cache_has_no_known_name_is_refused_rather_than_read_as_without_one() -> None:
    class Renamed(nn.Module):
        def forward(self, hidden_states: Tensor, earlier: object = None) -> tuple[Tensor, object]:
            return hidden_states, earlier

    with pytest.raises(UnsupportedModelError, match="earlier tokens"):
        tokens_before(Renamed(), {})


def test_a_model_and_its_layers_take_the_cache_by_the_name_that_is_found(tiny_model: TinyModel) -> None:
    model = tiny_model("gpt_neox")
    cache, seen = DynamicCache(config=model.config), list[dict[str, Any]]()
    layer = architecture_of(model).decoder_layers(model)[0]
    with torch.inference_mode(), calls(layer, lambda _, arguments: seen.append(arguments)):
        model(**padded(), **{cache_name(model): cache}, use_cache=True)
    assert seen[0][cache_name(layer)] is cache
    assert cache.get_seq_length() == WIDTH
