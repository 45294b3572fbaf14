"""What tests in every folder share: tiny random models."""

from typing import Any, Protocol

import pytest
import torch
from hypothesis import settings
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

# Machines that run other things at the same time miss any deadline now and then.
settings.register_profile("neuron-guard", deadline=None)
settings.load_profile("neuron-guard")


class TinyModel(Protocol):
    """Makes a random causal language model in evaluation mode; the same arguments give the same weights."""

    def __call__(
        self,
        model_type: str = "llama",
        *,
        layers: int = 3,
        d_model: int = 24,
        d_ff: int = 37,
        vocabulary: int = 61,
        heads: int = 4,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        **configuration: Any,
    ) -> PreTrainedModel: ...


FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}


def make_tiny_model(
    model_type: str = "llama",
    *,
    layers: int = 3,
    d_model: int = 24,
    d_ff: int = 37,
    vocabulary: int = 61,
    heads: int = 4,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **configuration: Any,
) -> PreTrainedModel:
    """See TinyModel. Two heads share a key and value; weights so large that every neuron shows in the logits."""
    configuration_class, model_class = FAMILIES[model_type]
    settings = {
        "num_hidden_layers": layers,
        "hidden_size": d_model,
        "intermediate_size": d_ff,
        "vocab_size": vocabulary,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = model_class(configuration_class(**(settings | configuration)))
    nn.Module.to(model, dtype)
    nn.Module.train(model, False)
    return model


@pytest.fixture
def tiny_model() -> TinyModel:
    """The factory of tiny random models."""
    return make_tiny_model
