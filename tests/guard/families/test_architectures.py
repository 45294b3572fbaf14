"""Where the modules are, on the models themselves."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from guard.errors import UnsupportedModelError
from guard.families.architectures import architecture_of
from tests.conftest import TinyModel
from tests.family_table import GUARDED

families = pytest.mark.parametrize("model_type", ["llama", "qwen2"])


@families
def test_sizes_are_those_of_the_weights(tiny_model: TinyModel, model_type: str) -> None:
    model = tiny_model(model_type, layers=4, d_model=32, d_ff=45)
    architecture = architecture_of(model)
    assert architecture.model_type == model_type
    assert (architecture.num_layers(model), architecture.d_model(model), architecture.d_ff(model)) == (4, 32, 45)
    for layer in architecture.decoder_layers(model):
        down, up = architecture.down_projection(layer), architecture.input_projections(layer)["up_proj"]
        assert down.weight.shape == (32, 45)
        assert up.weight.shape == architecture.input_projections(layer)["gate_proj"].weight.shape == (45, 32)


@families
def test_the_named_modules_rebuild_the_forward_pass(tiny_model: TinyModel, model_type: str) -> None:
    model: Any = tiny_model(model_type, dtype=torch.float64)
    tokens = torch.tensor([[3, 41, 8, 8]])
    positions = torch.arange(4)[None]
    architecture = architecture_of(model)
    with torch.no_grad():
        residual = architecture.embedding(model)(tokens)
        rotary = model.model.rotary_emb(residual, position_ids=positions)
        for layer in architecture.decoder_layers(model):
            normed = architecture.input_norm(layer)(residual)
            attention = architecture.attention(layer)
            residual = residual + attention(hidden_states=normed, position_embeddings=rotary, attention_mask=None)[0]
            normed = layer.post_attention_layernorm(residual)  # type: ignore[operator]
            gate, up = (projection(normed) for projection in architecture.input_projections(layer).values())
            residual = residual + architecture.down_projection(layer)(nn.functional.silu(gate) * up)
            assert isinstance(architecture.mlp(layer), nn.Module)
        logits = architecture.unembedding(model)(architecture.final_norm(model)(residual))
        torch.testing.assert_close(logits, model(tokens).logits)


@pytest.mark.parametrize("model_type", GUARDED)
@torch.no_grad()
def test_the_logits_of_every_family_are_rebuilt_from_what_leaves_its_last_layer(
    tiny_model: TinyModel, model_type: str
) -> None:
    model: Any = tiny_model(model_type, dtype=torch.float64)
    architecture = architecture_of(model)
    leaving: list[torch.Tensor] = []
    handle = architecture.final_norm(model).register_forward_pre_hook(lambda _, given: leaving.append(given[0]))
    logits = model(torch.tensor([[3, 41, 8, 8], [5, 1, 60, 2]]), use_cache=False).logits
    handle.remove()
    torch.testing.assert_close(architecture.logits(model, leaving[0]), logits, rtol=0, atol=0)


@pytest.mark.parametrize("model_type", GUARDED)
def test_the_last_linear_map_of_attention_makes_its_output(tiny_model: TinyModel, model_type: str) -> None:
    model = tiny_model(model_type)
    architecture = architecture_of(model)
    layer, seen = architecture.decoder_layers(model)[1], list[torch.Tensor]()
    for module in (architecture.attention_output(layer), architecture.attention(layer)):
        module.register_forward_hook(
            lambda _, __, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
    with torch.no_grad():
        model(torch.tensor([[3, 41, 8, 8]]), use_cache=False)
    mapped, attended = seen
    torch.testing.assert_close(mapped.reshape(attended.shape), attended, rtol=0, atol=0)


def test_compiled_models_layers_and_modules_are_looked_through(tiny_model: TinyModel) -> None:
    model: Any = tiny_model()
    layers, down = list(model.model.layers), model.model.layers[0].mlp.down_proj
    model.model.layers[0].mlp = torch.compile(model.model.layers[0].mlp)
    model.model.layers[1] = torch.compile(model.model.layers[1])
    model.model = torch.compile(model.model)
    compiled: Any = torch.compile(model)
    architecture = architecture_of(compiled)
    found = architecture.decoder_layers(compiled)
    assert all(one is other for one, other in zip(found, layers, strict=True))
    assert architecture.down_projection(found[0]) is down


def small(model: Any, configuration: Any, **named: Any) -> Any:
    return model(configuration(vocab_size=31, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, **named))


def test_an_unknown_model_type_is_named_with_those_supported() -> None:
    model = small(BertLMHeadModel, BertConfig, is_decoder=True)
    with pytest.raises(UnsupportedModelError, match=r"'bert'.*llama, .*qwen2"):
        architecture_of(model)


@pytest.mark.parametrize(
    "model",
    [
        small(MixtralForCausalLM, MixtralConfig, intermediate_size=8, num_local_experts=2),
        small(Qwen3MoeForCausalLM, Qwen3MoeConfig, intermediate_size=8, moe_intermediate_size=8, num_experts=2),
    ],
    ids=["mixtral", "qwen3_moe"],
)
def test_a_model_whose_neurons_are_all_in_routed_experts_is_refused_as_such(model: nn.Module) -> None:
    message = r"the neurons of routed experts cannot be edited.*supported model types: .*llama, .*qwen2"
    with pytest.raises(UnsupportedModelError, match=message):
        architecture_of(model)


def test_what_is_no_transformers_model_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="Linear is not a transformers model"):
        architecture_of(nn.Linear(2, 2))


def test_a_model_without_its_language_head_is_refused(tiny_model: TinyModel) -> None:
    inner: Any = tiny_model().get_submodule("model")
    with pytest.raises(UnsupportedModelError, match=r"model\.layers.*causal language model"):
        architecture_of(inner).decoder_layers(inner)
