"""Exact effects of late neurons in every family of the table, against one full, hooked forward pass per neuron."""

from typing import Any

import pytest
import torch
from torch import nn

from calibration.effects.exact.late_trace import record_trace
from calibration.effects.exact.suffix import method_of, neuron_effects, traced_effects
from calibration.prompts.sequences import Batch
from calibration.runs.interventions import editing
from guard.errors import UnsupportedModelError
from guard.families.architectures import architecture_of
from guard.hf import install_edits
from guard.spec.edit_spec import LayerEdit
from tests.calibration.late_models import (
    Int8Linear,
    hooked_effects,
    in_float64,
    late_model,
    random_batch,
    shared_model,
    shared_values,
)
from tests.family_table import family_property

LAST = 3
EXACT = {"closed form": 3e-7, "packed": 1e-12, "replicas": 1e-12}  # the first is the log-normaliser's tolerance
VARIANTS: dict[str, dict[str, Any]] = {
    "falcon, alibi": {"model_type": "falcon", "alibi": True},
    "falcon, alibi, eager": {"model_type": "falcon", "alibi": True, "attn_implementation": "eager"},
    "falcon, two norms": {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon, in sequence": {"model_type": "falcon", "parallel_attn": False},
    "gpt_neox, in sequence": {"model_type": "gpt_neox", "use_parallel_residual": False},
    "stablelm, in parallel": {"model_type": "stablelm", "use_parallel_residual": True, "qk_layernorm": True},
    "phi3, sliding window": {"model_type": "phi3", "sliding_window": 4},
    "starcoder2, sliding window": {"model_type": "starcoder2", "sliding_window": 4},
    "gemma2, no soft cap": {"model_type": "gemma2", "final_logit_softcapping": None},
    "granite, biases": {"model_type": "granite", "attention_bias": True, "mlp_bias": True},
    "gpt2, eager": {"model_type": "gpt2", "attn_implementation": "eager"},
}
EDITS = [
    LayerEdit(layer=1, neurons=(0, 4), scale=(1.0, 0.5), lower=(0.2, -0.1), upper=(0.2, 0.1)),
    LayerEdit(layer=3, neurons=(2, 5), scale=(1.0, 1.0), lower=(0.0, -1.0), upper=(0.0, 0.5)),
]


def assert_exact(model: nn.Module, batch: Batch, layer: int, every: int = 9, edits: bool = False) -> None:
    """The effects of some neurons of `layer` are those of hooked runs; with `edits`, given edits at some tokens."""
    architecture = architecture_of(model)
    d_ff = architecture.neurons_of(architecture.decoder_layers(model)[layer])
    some = list(range(0, d_ff, every))
    values = shared_values(batch, len(some))
    made, active = (EDITS, some_tokens(batch)) if edits else ([], None)
    exact = neuron_effects(model, batch, layer, some, values, edits=made, active=active)
    with editing(model, batch, made, active):
        hooked = hooked_effects(model, batch, layer, some, values)
    torch.testing.assert_close(exact, hooked, rtol=0, atol=EXACT[method_of(model, layer)])
    assert hooked.abs().amax() > 1e-3


def some_tokens(batch: Batch) -> torch.Tensor:
    """A trigger's mask, bool [2B, P + C], the same in both rows of a request on their prompt."""
    active = torch.rand(batch.input_ids.shape, generator=torch.Generator().manual_seed(2)) < 0.6
    active[batch.size :, : batch.prompt_width] = active[: batch.size, : batch.prompt_width]
    return active


@family_property("effects")
@pytest.mark.parametrize("layer", [1, LAST])
def test_effects_are_exact_in_every_family(model_type: str, layer: int) -> None:
    assert_exact(shared_model(model_type), random_batch(), layer)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layer", [2, LAST])
def test_effects_are_exact_in_the_variants_of_a_family(variant: str, layer: int) -> None:
    assert_exact(shared_model(**VARIANTS[variant]), random_batch(), layer)


@family_property("effects")
def test_effects_are_exact_where_nothing_is_padded_and_so_no_mask_is_made(model_type: str) -> None:
    batch = random_batch(prompts=(6, 6), lengths=((3, 3), (3, 3)))
    assert bool(batch.attention_mask.all())
    assert_exact(shared_model(model_type), batch, 2, every=18)


@pytest.mark.parametrize("model_type", ["llama", "bloom", "gpt2", "opt", "gemma2"])
@pytest.mark.parametrize("layer", [2, LAST])
def test_effects_are_exact_where_all_of_the_prompt_is_edited(model_type: str, layer: int) -> None:
    batch = random_batch(prompts=(0, 0), lengths=((3, 2), (1, 4)))
    assert batch.edited.start == 0
    assert_exact(shared_model(model_type), batch, layer)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", ["mistral", "phi3"])
def test_effects_are_exact_where_padding_sees_nothing_in_its_window(model_type: str, implementation: str) -> None:
    model = shared_model(model_type, sliding_window=2, attn_implementation=implementation)
    assert_exact(model, random_batch(lengths=((1, 6), (5, 2), (1, 1))), 2)


@pytest.mark.parametrize("model_type", ["bloom", "falcon", "gemma2", "gpt2", "mistral", "olmo2", "opt", "qwen2_moe"])
@pytest.mark.parametrize("layer", [1, 2, LAST])
def test_effects_are_exact_given_an_edit_at_some_tokens(model_type: str, layer: int) -> None:
    assert_exact(shared_model(model_type), random_batch(), layer, edits=True)


@pytest.mark.parametrize("model_type", ["gpt_neox", "gemma2", "olmo2"])
@pytest.mark.parametrize("layer", [1, LAST])
def test_a_small_memory_limit_gives_the_same_effects(model_type: str, layer: int) -> None:
    batch, some = random_batch(), [4, 0, 9, 31, 7]
    trace, values = record_trace(shared_model(model_type), batch, 1), shared_values(batch, 5)
    small = traced_effects(trace, layer, some, values, memory_limit=1 << 15)
    torch.testing.assert_close(small, traced_effects(trace, layer, some, values), rtol=0, atol=1e-12)


@pytest.mark.parametrize("model_type", ["gpt2", "gemma2", "opt", "granite"])
@pytest.mark.parametrize("layer", [1, LAST])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.15)])
def test_narrow_models_give_the_effects_of_the_wide_one(
    model_type: str, layer: int, dtype: torch.dtype, tolerance: float
) -> None:
    batch, values = random_batch(), shared_values(random_batch(), 5)
    narrow = late_model(model_type, dtype=dtype)
    wide = in_float64(late_model(model_type, dtype=dtype))
    found = neuron_effects(narrow, batch, layer, list(range(5)), values)
    assert found.dtype == torch.float32
    assert {parameter.dtype for parameter in narrow.parameters()} == {dtype}
    exact = hooked_effects(wide, batch, layer, list(range(5)), values)
    torch.testing.assert_close(found.double(), exact, rtol=0.05, atol=tolerance)


@pytest.mark.parametrize("layer", [1, LAST])
def test_small_effects_of_narrow_models_do_not_drown_in_rounding(layer: int) -> None:
    """A tenth of a change makes a tenth of an effect, though bfloat16 cannot tell the residual streams apart."""
    model, batch = late_model("gpt2", dtype=torch.bfloat16), random_batch()
    trace = record_trace(model, batch, 1)
    h = trace.neurons[layer].double()  # [B, S, d_ff]
    full = torch.zeros(*batch.input_ids.shape, h.shape[-1], dtype=torch.float64)
    full[trace.packing.rows, trace.packing.columns] = h
    full[batch.size :, : batch.prompt_width] = full[: batch.size, : batch.prompt_width]
    values = full[:, batch.edited, :5]
    small, smaller = (traced_effects(trace, layer, range(5), values + each).double() for each in (1e-2, 1e-3))
    torch.testing.assert_close(10 * smaller, small, rtol=0.05, atol=1e-5)
    assert small.abs().amax() > 1e-4


def test_which_way_effects_are_computed_is_told() -> None:
    ways = {
        model_type: [method_of(shared_model(model_type), layer) for layer in (2, LAST)]
        for model_type in ("llama", "mistral", "qwen2", "gemma2", "gpt_neox", "qwen2_moe")
    }
    packed, general = ["packed", "closed form"], ["replicas", "closed form"]
    assert ways == {
        "llama": packed,
        "mistral": packed,
        "qwen2": packed,
        "gemma2": general,
        "gpt_neox": general,
        "qwen2_moe": ["replicas", "replicas"],
    }


def quantised_llama() -> nn.Module:
    model = late_model()
    for layer in architecture_of(model).decoder_layers(model)[1:]:
        for name in ("gate_proj", "up_proj", "down_proj"):
            linear = layer.get_submodule(f"mlp.{name}")
            assert isinstance(linear, nn.Linear)
            setattr(layer.get_submodule("mlp"), name, Int8Linear(linear))
    return model


@pytest.mark.parametrize("layer", [1, LAST])
def test_effects_of_a_quantised_model_are_exact_by_running_its_own_layers(layer: int) -> None:
    model = quantised_llama()
    assert method_of(model, 1) == "replicas"
    assert_exact(model, random_batch(), layer)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("layer", [2, LAST])
def test_a_guarded_model_is_refused(model_type: str, layer: int) -> None:
    model, batch = late_model(model_type), random_batch()
    with install_edits(model, EDITS), pytest.raises(UnsupportedModelError, match="guard"):
        neuron_effects(model, batch, layer, None, torch.zeros(37))
