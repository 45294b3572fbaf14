"""An edit installed before or after torch.compile acts, and acts no longer once removed."""

from typing import Any, cast

import pytest
import torch

from guard.hf import install_edits
from guard.spec.edit_spec import Trigger
from tests.conftest import TinyModel
from tests.guard.by_hand import EDITS, PROMPTS, greedy, guarded_by_hand, make_trigger

with_and_without_trigger = pytest.mark.parametrize("trigger", [None, make_trigger(layer=0)], ids=["always", "trigger"])


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def logits_by_hand(model: Any, trigger: Trigger | None) -> torch.Tensor:
    with torch.no_grad(), guarded_by_hand(model, EDITS, trigger):
        logits: torch.Tensor = model(PROMPTS).logits
    return logits


def close(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal up to Inductor's own rounding of the model's float32 parts; an edit shows a thousand times above it."""
    return torch.allclose(left, right, rtol=1e-3, atol=1e-3)


@with_and_without_trigger
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_an_edit_installed_after_compiling_acts_until_it_is_removed(
    tiny_model: TinyModel, backend: str, trigger: Trigger | None
) -> None:
    model = tiny_model(dtype=torch.float64)
    expected = logits_by_hand(model, trigger)
    compiled: Any = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        plain = compiled(PROMPTS).logits
        assert not close(plain, expected)
        with install_edits(compiled, EDITS, trigger):
            assert close(compiled(PROMPTS).logits, expected)
        assert close(compiled(PROMPTS).logits, plain)


@with_and_without_trigger
def test_an_edit_installed_before_compiling_acts_until_it_is_removed(
    tiny_model: TinyModel, trigger: Trigger | None
) -> None:
    model = tiny_model(dtype=torch.float64)
    expected = logits_by_hand(model, trigger)
    with torch.no_grad():
        plain = model(PROMPTS).logits
        with install_edits(model, EDITS, trigger):
            compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
            assert close(compiled(PROMPTS).logits, expected)
            assert close(compiled(PROMPTS.flip(0)).logits, expected.flip(0))
        assert close(compiled(PROMPTS).logits, plain)


@with_and_without_trigger
def test_layers_that_are_compiled_one_by_one_are_guarded(tiny_model: TinyModel, trigger: Trigger | None) -> None:
    model = tiny_model(dtype=torch.float64)
    expected = logits_by_hand(model, trigger)
    layers: Any = model.get_submodule("model.layers")
    for index, layer in enumerate(layers):
        layers[index] = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        plain = model(PROMPTS).logits
        with install_edits(model, EDITS, trigger):
            assert close(model(PROMPTS).logits, expected)
            assert close(model(PROMPTS.flip(0)).logits, expected.flip(0))
        assert close(model(PROMPTS).logits, plain)


def test_a_graph_break_between_trigger_and_gate_loses_nothing(tiny_model: TinyModel) -> None:
    model, trigger = tiny_model(dtype=torch.float64), make_trigger(layer=0)
    expected = logits_by_hand(model, trigger)
    attention: Any = model.get_submodule("model.layers.0.self_attn")
    plain_forward = attention.forward

    def breaking(*arguments: Any, **named: Any) -> Any:
        torch._dynamo.graph_break()
        return plain_forward(*arguments, **named)

    attention.forward = breaking
    compiled: Any = torch.compile(model, backend="aot_eager")
    with torch.no_grad(), install_edits(model, EDITS, trigger):
        assert close(compiled(PROMPTS).logits, expected)
        assert close(compiled(PROMPTS.flip(0)).logits, expected.flip(0))


@pytest.mark.slow
def test_generation_with_a_compiled_forward_is_guarded(tiny_model: TinyModel) -> None:
    model, trigger = cast("Any", tiny_model(dtype=torch.float64)), make_trigger(layer=0)
    with guarded_by_hand(model, EDITS, trigger):
        expected = greedy(model, PROMPTS, max_new_tokens=3)
    model.forward = torch.compile(model.forward, backend="eager", dynamic=True)
    assert not torch.equal(greedy(model, PROMPTS, max_new_tokens=3), expected)
    with install_edits(model, EDITS, trigger):
        assert torch.equal(greedy(model, PROMPTS, max_new_tokens=3), expected)


def test_a_new_threshold_is_honoured_by_code_compiled_before(tiny_model: TinyModel) -> None:
    model = tiny_model(dtype=torch.float64)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        plain = model(PROMPTS).logits
        with install_edits(model, EDITS, make_trigger()) as installation:
            assert not close(compiled(PROMPTS).logits, plain)
            assert installation.readout is not None
            installation.readout.threshold.fill_(torch.inf)
            assert close(compiled(PROMPTS).logits, plain)
