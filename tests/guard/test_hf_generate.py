"""What a guarded model generates, against the same edit written by hand."""

import threading
from typing import Any

import pytest
import torch

from guard.hf import install_edits
from guard.spec.edit_spec import Trigger
from tests.conftest import TinyModel
from tests.guard.by_hand import EDITS, PROMPTS, greedy, guarded_by_hand, make_trigger

TRIGGERS = [None, make_trigger(layer=0), make_trigger(layer=1)]
TRIGGER_NAMES = ["always", "trigger before the gate", "trigger in the gate's layer"]
with_and_without_trigger = pytest.mark.parametrize("trigger", TRIGGERS, ids=TRIGGER_NAMES)

DECODING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "without a cache": {"use_cache": False},
    "sampling": {"do_sample": True, "temperature": 1.3},
    "beams": {"num_beams": 3},
    "a static cache": {"cache_implementation": "static"},
    "several sequences": {"do_sample": True, "num_return_sequences": 2},
}


@with_and_without_trigger
@pytest.mark.parametrize("decoding", DECODING.values(), ids=DECODING.keys())
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_generation_is_that_of_the_edit_written_by_hand(
    tiny_model: TinyModel, model_type: str, decoding: dict[str, Any], trigger: Trigger | None
) -> None:
    model = tiny_model(model_type, dtype=torch.float64)

    def generate() -> torch.Tensor:
        torch.manual_seed(3)
        return greedy(model, PROMPTS, **decoding)

    plain = generate()
    with guarded_by_hand(model, EDITS, trigger):
        expected = generate()
    with install_edits(model, EDITS, trigger):
        guarded = generate()
    assert torch.equal(guarded, expected)
    assert not torch.equal(guarded, plain), "the edit changes nothing: the test shows nothing"


@with_and_without_trigger
def test_left_padding_changes_nothing(tiny_model: TinyModel, trigger: Trigger | None) -> None:
    model = tiny_model(dtype=torch.float64)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), PROMPTS], dim=1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), torch.ones_like(PROMPTS)], dim=1)
    with install_edits(model, EDITS, trigger):
        assert torch.equal(greedy(model, padded, mask=mask), greedy(model, PROMPTS))


@with_and_without_trigger
def test_a_batch_gives_what_its_rows_give_alone(tiny_model: TinyModel, trigger: Trigger | None) -> None:
    model = tiny_model(dtype=torch.float64)
    with install_edits(model, EDITS, trigger):
        together = greedy(model, PROMPTS)
        alone = torch.cat([greedy(model, row[None]) for row in PROMPTS])
    assert torch.equal(together, alone)


def test_logits_are_those_of_the_edit_written_by_hand(tiny_model: TinyModel) -> None:
    model, trigger = tiny_model(dtype=torch.float64), make_trigger()
    with torch.no_grad():
        with guarded_by_hand(model, EDITS, trigger) as masks:
            expected = model(PROMPTS).logits
        with install_edits(model, EDITS, trigger):
            guarded = model(PROMPTS).logits
    assert 0 < masks[0].sum() < masks[0].numel(), "the trigger is always or never active: the test shows nothing"
    torch.testing.assert_close(guarded, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_an_idle_trigger_leaves_the_logits_bit_for_bit(tiny_model: TinyModel, dtype: torch.dtype) -> None:
    model, idle = tiny_model(dtype=dtype), make_trigger(threshold=1e30)
    with torch.no_grad():
        plain = model(PROMPTS).logits
        with install_edits(model, EDITS, idle):
            assert torch.equal(model(PROMPTS).logits, plain)


def test_an_idle_trigger_leaves_generation_as_it_is(tiny_model: TinyModel) -> None:
    model = tiny_model()
    plain = greedy(model, PROMPTS)
    with install_edits(model, EDITS, make_trigger(threshold=1e30)):
        assert torch.equal(greedy(model, PROMPTS), plain)


def test_a_bfloat16_model_is_guarded_with_bounds_kept_in_float32(tiny_model: TinyModel) -> None:
    model: Any = tiny_model(dtype=torch.bfloat16)
    with install_edits(model, EDITS) as installation:
        before = model(PROMPTS).logits
        model.to(torch.float64).to(torch.bfloat16)
        assert all(wrapper.edit.scale.dtype == torch.float32 for wrapper in installation.guarded)
        assert torch.equal(model(PROMPTS).logits, before)
    assert not torch.equal(model(PROMPTS).logits, before)


def test_several_models_are_guarded_side_by_side(tiny_model: TinyModel) -> None:
    first, second = tiny_model(seed=1), tiny_model(seed=2)
    expected = []
    for model, trigger in ((first, None), (second, make_trigger())):
        with guarded_by_hand(model, EDITS, trigger):
            expected.append(greedy(model, PROMPTS))
    with install_edits(first, EDITS), install_edits(second, EDITS, make_trigger()):
        assert torch.equal(greedy(first, PROMPTS), expected[0])
        assert torch.equal(greedy(second, PROMPTS), expected[1])


def test_threads_that_share_a_model_keep_their_own_trigger(tiny_model: TinyModel) -> None:
    model, trigger = tiny_model(dtype=torch.float64), make_trigger(layer=0)
    other_is_done, waits = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        """Between trigger and gate, the first thread waits until the main one has run a whole pass."""
        if threading.current_thread() is not threading.main_thread():
            waits.set()
            assert other_is_done.wait(timeout=60)

    results: list[torch.Tensor] = []
    with install_edits(model, EDITS, trigger):
        alone = model(PROMPTS[:1]).logits
        handle = model.model.layers[1].register_forward_pre_hook(hold)
        thread = threading.Thread(target=lambda: results.append(model(PROMPTS[:1]).logits))
        thread.start()
        assert waits.wait(timeout=60)
        model(PROMPTS[1:])
        other_is_done.set()
        thread.join(timeout=60)
        handle.remove()
    assert torch.equal(results[0], alone)


def test_gradients_flow_through_a_guarded_model(tiny_model: TinyModel) -> None:
    model = tiny_model(dtype=torch.float64)
    embedded = model.get_input_embeddings()(PROMPTS).detach().requires_grad_()
    gradients = []
    for guard in (guarded_by_hand, install_edits):
        with guard(model, EDITS):
            logits = model(inputs_embeds=embedded).logits
            gradients.append(torch.autograd.grad(logits.square().mean(), embedded)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-12)
