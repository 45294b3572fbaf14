"""Exact effects of late neurons against one full, hooked forward pass per neuron."""

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from calibration.effects.exact.late_trace import record_trace
from calibration.effects.exact.suffix import neuron_effects, traced_effects
from calibration.runs.interventions import Mediator, editing, recorded
from guard.errors import NeuronGuardError
from guard.spec.edit_spec import LayerEdit
from tests.calibration.late_models import edited_width, hooked_effects, late_model, random_batch, shared_values

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama, tied embeddings": {"model_type": "llama", "tie_word_embeddings": True},
    "llama, biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "qwen2": {"model_type": "qwen2"},
    "qwen2, tied embeddings": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2, sliding window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 2,
    },
    "llama, other activation": {"model_type": "llama", "hidden_act": "gelu", "attn_implementation": "eager"},
    "mistral": {"model_type": "mistral"},
    "mistral, sliding window": {"model_type": "mistral", "sliding_window": 4},
    "one head per key": {"model_type": "llama", "heads": 2, "num_key_value_heads": 2, "d_model": 12, "d_ff": 7},
}
EXACT = 3e-7  # what the log-normaliser's tolerance allows
models = pytest.mark.parametrize("kind", MODELS)
LAST = 3


@models
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_effects_of_late_neurons_are_those_of_hooked_forward_passes(kind: str, layer: int) -> None:
    model, batch = late_model(**MODELS[kind]), random_batch()
    width = MODELS[kind].get("d_ff", 37)
    values, some = shared_values(batch, width), list(range(0, width, 5))
    exact = neuron_effects(model, batch, layer, None, values)[:, some]
    hooked = hooked_effects(model, batch, layer, some, values[..., some])
    torch.testing.assert_close(exact, hooked, rtol=0, atol=EXACT)
    assert hooked.abs().amax() > 0.01


@cache
def wide_vocabulary_model() -> nn.Module:
    return late_model("qwen2", vocabulary=67)


@settings(max_examples=10, deadline=None)
@given(
    layer=st.integers(0, 3),
    tail=st.integers(1, 4),
    lengths=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    strength=st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_effects_are_exact_for_any_lengths_of_prompt_and_continuation(
    layer: int, tail: int, lengths: list[tuple[int, int]], seed: int, strength: float
) -> None:
    model = wide_vocabulary_model()
    batch = random_batch(
        seed, prompts=tuple(1 + (seed + i) % 5 for i in range(len(lengths))), tail=tail, lengths=tuple(lengths)
    )
    neurons = [seed % 37, (seed * 7 + 1) % 37]
    values = strength * shared_values(batch, 2, seed)
    exact = neuron_effects(model, batch, layer, neurons, values)
    torch.testing.assert_close(exact, hooked_effects(model, batch, layer, neurons, values), rtol=0, atol=1e-6)


@pytest.mark.parametrize("layer", [1, 3])
def test_a_small_memory_limit_gives_the_same_effects(layer: int) -> None:
    model, batch = late_model(), random_batch()
    trace = record_trace(model, batch, 1)
    some, values = [4, 0, 9, 31, 7], shared_values(batch, 5)
    small = traced_effects(trace, layer, some, values, memory_limit=1 << 15)
    torch.testing.assert_close(small, traced_effects(trace, layer, some, values), rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer", [1, 3])
def test_one_number_per_neuron_stands_for_every_row_and_column(layer: int) -> None:
    model, batch = late_model(), random_batch()
    values = torch.linspace(-1, 1, 37, dtype=torch.float64)
    everywhere = values.expand(2 * batch.size, edited_width(batch), 37)
    exact = neuron_effects(model, batch, layer, None, values)
    torch.testing.assert_close(exact, neuron_effects(model, batch, layer, None, everywhere), rtol=0, atol=0)


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("some_tokens", [False, True])
def test_effects_given_an_edit_are_those_of_hooked_runs_with_that_edit(layer: int, some_tokens: bool) -> None:
    model, batch = late_model(), random_batch()
    edits = [
        LayerEdit(layer=1, neurons=(0, 4), scale=(1.0, 0.5), lower=(0.2, -0.1), upper=(0.2, 0.1)),
        LayerEdit(layer=3, neurons=(2, 5), scale=(1.0, 1.0), lower=(0.0, -1.0), upper=(0.0, 0.5)),
    ]
    generator = torch.Generator().manual_seed(2)
    active = torch.rand(batch.input_ids.shape, generator=generator) < 0.6 if some_tokens else None
    if active is not None:  # the two rows of a request have one prompt, and so one trigger on it
        active[batch.size :, : batch.prompt_width] = active[: batch.size, : batch.prompt_width]
    neurons, values = [0, 5, 9], shared_values(batch, 3)
    exact = neuron_effects(model, batch, layer, neurons, values, edits=edits, active=active)
    with editing(model, batch, edits, active):
        hooked = hooked_effects(model, batch, layer, neurons, values)
    torch.testing.assert_close(exact, hooked, rtol=0, atol=EXACT)


@pytest.mark.parametrize("layer", [2, 3])
def test_the_value_of_another_run_gives_that_neurons_noising_effect(layer: int) -> None:
    model = late_model("qwen2")
    plain, harmful = random_batch(0), random_batch(1)
    mediator = Mediator("neurons", layer)
    _, values = recorded(model, plain, [mediator])
    exact = neuron_effects(model, harmful, layer, None, values[mediator])
    hooked = hooked_effects(model, harmful, layer, [3, 11], values[mediator][..., [3, 11]])
    torch.testing.assert_close(exact[:, [3, 11]], hooked, rtol=0, atol=EXACT)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.15)])
@pytest.mark.parametrize("layer", [1, 3])
def test_narrow_models_give_the_effects_of_the_wide_one(dtype: torch.dtype, tolerance: float, layer: int) -> None:
    batch = random_batch()
    values = shared_values(batch, 37)
    wide = late_model().to(dtype).double()
    exact = neuron_effects(wide, batch, layer, None, values)
    narrow = neuron_effects(late_model(dtype=dtype), batch, layer, None, values)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), exact, rtol=0.05, atol=tolerance)


def test_values_that_differ_on_the_common_prompt_are_refused() -> None:
    model, batch = late_model(), random_batch()
    values = shared_values(batch, 37)
    values[0, 0] += 1.0
    with pytest.raises(NeuronGuardError, match="same values"):
        neuron_effects(model, batch, 3, None, values)


def test_values_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(NeuronGuardError, match="do not broadcast"):
        neuron_effects(late_model(), random_batch(), 3, [1, 2], torch.zeros(3))


def test_a_layer_outside_the_trace_is_refused() -> None:
    batch = random_batch()
    with pytest.raises(NeuronGuardError, match="not in the trace"):
        traced_effects(record_trace(late_model(), batch, 2), 1, None, torch.zeros(37))
