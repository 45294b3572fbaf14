"""What a family's tiny model needs beside Llama's sizes, to be a good test: the test's half of a family's entry.

A family that calls its sizes what Llama does and has no settings of its own needs nothing here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class TinyFamily:
    """`names` maps Llama's name of a size to the family's own, `settings` are what else its configuration is given.

    `around` is the configuration in which that of the language model is only the `text_config`. `for_vllm` are settings
    that vLLM's attention on a CPU needs, `even` those that make all widths even enough to be quantised. Norms and
    biases are moved off the zeros and ones that they begin as, so that forgetting one shows, where they are `stirred`.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    settings: Settings = field(default_factory=dict)
    around: Settings | None = None
    for_vllm: Settings = field(default_factory=dict)
    even: Settings = field(default_factory=dict)
    stirred: bool = True


# Mixtures: their first layer is dense, the others send each token through shared experts and two of four routed ones.
ROUTED: Settings = {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1}
GROUPED: Settings = {
    **ROUTED,
    "moe_intermediate_size": 41,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
LATENT: Settings = {
    "num_key_value_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 6,
}
# A picture of one patch is enough for a text.
EYES: Settings = {
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
HEAD: Settings = {"head_dim": 8}
EVEN_HEAD: Settings = {"head_dim": 16}
WIDE_HEAD: Settings = {"head_dim": 32}
EVEN_LATENT: Settings = {
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "moe_intermediate_size": 64,
}
WINDOWED: Settings = {**HEAD, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0, "sliding_window": 8}


def partly_rotated(share: float) -> Settings:
    """Rotary positions on a share of each head."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": share}}


TINY = {
    "llama": TinyFamily(stirred=False),
    "qwen2": TinyFamily(stirred=False),
    "qwen3": TinyFamily(settings=HEAD, for_vllm=WIDE_HEAD, even=EVEN_HEAD),
    "smollm3": TinyFamily(settings={"no_rope_layer_interval": 2}),
    "gemma": TinyFamily(settings=HEAD, for_vllm=WIDE_HEAD, even=EVEN_HEAD),
    "gemma2": TinyFamily(settings=WINDOWED, even=EVEN_HEAD),
    "gemma3_text": TinyFamily(
        settings=WINDOWED,
        for_vllm={**WIDE_HEAD, "query_pre_attn_scalar": 32, "final_logit_softcapping": None},
        even=EVEN_HEAD,
    ),
    "gemma3": TinyFamily(settings=WINDOWED, around=EYES, even=EVEN_HEAD),
    "cohere": TinyFamily(settings={"logit_scale": 0.25}),
    "granite": TinyFamily(settings={"logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0}),
    "glm4": TinyFamily(settings=HEAD, even=EVEN_HEAD),
    "phi3": TinyFamily(settings=partly_rotated(1.0)),
    "phi": TinyFamily(settings=partly_rotated(2 / 3)),
    "gpt2": TinyFamily({"intermediate_size": "n_inner"}),
    "gptj": TinyFamily(
        {"intermediate_size": "n_inner", "max_position_embeddings": "n_positions"}, settings={"rotary_dim": 4}
    ),
    "opt": TinyFamily({"intermediate_size": "ffn_dim"}, settings={"word_embed_proj_dim": None}),
    "falcon": TinyFamily(
        {"intermediate_size": "ffn_hidden_size"},
        settings={"new_decoder_architecture": False, "multi_query": False, "parallel_attn": True, "bias": True},
    ),
    "deepseek_v2": TinyFamily(settings={**GROUPED, **LATENT, "topk_method": "greedy"}, even=EVEN_LATENT),
    "deepseek_v3": TinyFamily(settings={**GROUPED, **LATENT}, even=EVEN_LATENT),
    "glm4_moe": TinyFamily(settings={**GROUPED, **HEAD}, even={**EVEN_HEAD, "moe_intermediate_size": 64}),
    "qwen2_moe": TinyFamily(
        settings={
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 11,
            "shared_expert_intermediate_size": 41,
            "mlp_only_layers": [0],
        },
        even={"shared_expert_intermediate_size": 64},
    ),
}
LIKE_LLAMA = TinyFamily()


def tiny_family(model_type: str) -> TinyFamily:
    """What the tiny model of a family needs."""
    return TINY.get(model_type, LIKE_LLAMA)
