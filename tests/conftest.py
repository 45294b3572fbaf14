"""What tests in every folder share: tiny random models."""

import logging
from collections.abc import Iterator
from typing import Any, Protocol

import pytest
import torch
from hypothesis import settings
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from guard.families.table import FAMILIES as FAMILY_TABLE

# Tiny models gain nothing from threads, and on a busy machine wait for each of them.
torch.set_num_threads(1)

# Machines that run other things at the same time miss any deadline now and then.
settings.register_profile("neuron-guard", deadline=None)
settings.load_profile("neuron-guard")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-family-table", action="store_true", help="write the table in docs/families.md from the outcomes"
    )
    parser.addoption(
        "--write-version-row", metavar="COMMAND", help="write this run, by COMMAND, into the README's table of versions"
    )


def pytest_configure(config: pytest.Config) -> None:
    from tests import family_table, version_table  # the first needs the families below

    config.pluginmanager.register(family_table.Recorder())
    config.pluginmanager.register(version_table.Recorder())


class Deprecations(logging.Handler):
    """Keeps what transformers and vLLM log of things that will go: each says it once a process, and in no warning."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "deprecat" in message.lower():
            self.messages.append(message)

    def listen(self) -> None:
        """Whoever configures logging anew, as vLLM does on its import, takes handlers off."""
        for name in ("transformers", "vllm"):
            logging.getLogger(name).addHandler(self)


DEPRECATIONS = Deprecations()
DEPRECATIONS.listen()


@pytest.fixture(autouse=True)
def no_deprecated_use() -> Iterator[None]:
    """Fails the test in which, or in whose fixtures, something deprecated of transformers or vLLM was first used."""
    DEPRECATIONS.listen()
    yield
    messages, DEPRECATIONS.messages = DEPRECATIONS.messages, []
    if messages:
        pytest.fail("; ".join(messages), pytrace=False)


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


# What a family's configuration calls the sizes, where it is not what Llama's calls them, and what else it needs.
SIZES = {
    "num_hidden_layers": "layers",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "vocab_size": "vocabulary",
    "num_attention_heads": "heads",
    "num_key_value_heads": "key_value_heads",
    "max_position_embeddings": "positions",
}
OTHER_NAMES = {
    "gpt2": {"intermediate_size": "n_inner"},
    "gptj": {"intermediate_size": "n_inner", "max_position_embeddings": "n_positions"},
    "opt": {"intermediate_size": "ffn_dim"},
    "falcon": {"intermediate_size": "ffn_hidden_size"},
}
ALSO: dict[str, dict[str, Any]] = {
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0, "sliding_window": 8},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0, "sliding_window": 8},
    "qwen3": {"head_dim": 8},
    "smollm3": {"no_rope_layer_interval": 2},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    "glm4": {"head_dim": 8},
    "phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}},
    "phi": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 2 / 3}},
    "gptj": {"rotary_dim": 4},
    "falcon": {"new_decoder_architecture": False, "multi_query": False, "parallel_attn": True, "bias": True},
}
# Mixtures: their first layer is dense, the others send each token through shared experts and two of four routed ones.
ROUTED: dict[str, Any] = {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1}
GROUPED: dict[str, Any] = {
    **ROUTED,
    "moe_intermediate_size": 41,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 6,
}
MIXTURES: dict[str, dict[str, Any]] = {
    "deepseek_v2": GROUPED | LATENT | {"topk_method": "greedy"},
    "deepseek_v3": GROUPED | LATENT,
    "glm4_moe": GROUPED | {"head_dim": 8},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 11,
        "shared_expert_intermediate_size": 41,
        "mlp_only_layers": [0],
    },
}
# A picture of one patch is enough for a text.
EYES: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 14,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 1,
    "boi_token_index": 58,
    "eoi_token_index": 59,
    "image_token_index": 60,
}
FAMILIES = tuple(sorted(FAMILY_TABLE.keys() - MIXTURES.keys() - {"gemma3"}))  # gemma3 is gemma3_text with eyes


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
    """See TinyModel. Two heads share a key and value where the family can; weights so large that every neuron shows in
    the logits, biases and norms among them. Bloom's d_ff is 4 d_model by its code; that of shared experts is 41.
    """
    sizes = {
        "layers": layers,
        "d_model": d_model,
        "d_ff": d_ff,
        "vocabulary": vocabulary,
        "heads": heads,
        "key_value_heads": heads // 2,
        "positions": 256,
    }
    other = OTHER_NAMES.get(model_type, {})
    settings: dict[str, Any] = {other.get(name, name): sizes[size] for name, size in SIZES.items()}
    settings |= {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.2}
    settings |= ALSO.get(model_type, {}) | MIXTURES.get(model_type, {}) | configuration
    if model_type == "opt":
        settings["word_embed_proj_dim"] = d_model
    if model_type == "gemma3":
        settings = {"text_config": ALSO["gemma3_text"] | settings, "pad_token_id": 0} | EYES
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            AutoConfig.for_model(model_type, **settings),
            # the only one of transformers' ways through routed experts that knows float64
            **({"experts_implementation": "eager"} if model_type in MIXTURES else {}),
        )
        if model_type not in ("llama", "qwen2"):
            _stir_constants(model)
    nn.Module.to(model, dtype)
    nn.Module.train(model, False)
    return model


@torch.no_grad()
def _stir_constants(model: nn.Module) -> None:
    """Move norms and biases off the zeros and ones that they begin as, so that forgetting one shows."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.fixture
def tiny_model() -> TinyModel:
    """The factory of tiny random models."""
    return make_tiny_model
