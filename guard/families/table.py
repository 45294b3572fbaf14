"""Where each model type keeps its modules: the table, one family an entry, each read off transformers' own code.

Paths are dotted, from the causal language model or, for what is inside a layer, from the decoder layer; where a family
has variants, alternatives are separated by `|` and the first that exists is taken.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Family:
    """Paths of modules and names of configuration entries of one model type; the defaults are Llama's.

    `attention` and `mlp` name the modules whose output is added to the residual stream, `attention_output` the last
    linear map of attention, which is to it what `down_projection` is to the MLP. `routes_to_experts` says that
    beside the neurons at `down_projection` there are those of routed experts, which are left alone. The norms divide by
    the root mean square, after subtracting the mean where `norm_subtracts_mean`, and multiply by their weight plus
    `norm_weight_offset`. `refused` lists configuration entries with a value that the guard does not support, and why.
    """

    model_type: str
    embedding: str = "model.embed_tokens"
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    unembedding: str = "lm_head|embed_out"
    entry: str = "input_layernorm"
    attention: str = "self_attn"
    attention_output: str = "self_attn.o_proj"
    mlp: str = "mlp"
    input_projections: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down_projection: str = "mlp.down_proj"
    post_mlp_norm: str | None = None
    logit_multiplier: str | None = None
    logit_divisor: str | None = None
    soft_cap: str | None = None
    residual_multiplier: str | None = None
    norm_subtracts_mean: bool = False
    norm_weight_offset: float = 0.0
    is_llama_like: bool = False
    routes_to_experts: bool = False
    refused: tuple[tuple[str, object, str], ...] = ()


def _gated() -> list[Family]:
    """Families with separate gate and up projections: h = act(gate_proj(x)) * up_proj(x)."""
    gemma2 = Family(
        "gemma2",
        post_mlp_norm="post_feedforward_layernorm",
        soft_cap="final_logit_softcapping",
        norm_weight_offset=1.0,
    )
    return [
        *(Family(name, is_llama_like=True) for name in ("llama", "mistral", "qwen2")),
        *(Family(name) for name in ("qwen3", "smollm3")),
        Family("gemma", norm_weight_offset=1.0),
        Family("stablelm", norm_subtracts_mean=True),
        Family("cohere", logit_multiplier="logit_scale", norm_subtracts_mean=True),
        Family("granite", logit_divisor="logits_scaling", residual_multiplier="residual_multiplier"),
        # No input norm: attention reads the residual stream itself.
        Family("olmo2", entry="self_attn", post_mlp_norm="post_feedforward_layernorm"),
        gemma2,
        replace(gemma2, model_type="gemma3_text"),
        # With eyes, transformers leaves the logits as they are, whatever the configuration says of a soft cap.
        replace(
            gemma2,
            model_type="gemma3",
            soft_cap=None,
            embedding="model.language_model.embed_tokens",
            layers="model.language_model.layers",
            final_norm="model.language_model.norm",
        ),
    ]


def _packed() -> list[Family]:
    """Families whose gate and up projections are one matrix."""
    packed = Family("phi3", input_projections=("mlp.gate_up_proj",))
    return [packed, replace(packed, model_type="glm4", post_mlp_norm="post_mlp_layernorm")]


def _plain() -> list[Family]:
    """Families without a gate: h = act(W x + b)."""
    transformer = Family(
        "gpt2",
        embedding="transformer.wte",
        layers="transformer.h",
        final_norm="transformer.ln_f",
        entry="ln_1",
        attention="attn",
        attention_output="attn.c_proj",
        input_projections=("mlp.c_fc",),
        down_projection="mlp.c_proj",
        norm_subtracts_mean=True,
    )
    dense = replace(
        transformer,
        embedding="transformer.word_embeddings",
        attention="self_attention",
        attention_output="self_attention.dense",
        input_projections=("mlp.dense_h_to_4h",),
        down_projection="mlp.dense_4h_to_h",
    )
    return [
        transformer,
        replace(
            transformer,
            model_type="gptj",
            attention_output="attn.out_proj",
            input_projections=("mlp.fc_in",),
            down_projection="mlp.fc_out",
        ),
        replace(dense, model_type="falcon", entry="input_layernorm|ln_attn"),
        # Attention and MLP add the residual stream themselves; their last linear maps do not.
        replace(
            dense,
            model_type="bloom",
            entry="input_layernorm",
            attention="self_attention.dense",
            mlp="mlp.dense_4h_to_h",
            final_norm="transformer.ln_f",
            refused=(
                ("slow_but_exact", True, "its MLP reads the weights and passes the guard by; load it without"),
                (
                    "apply_residual_connection_post_layernorm",
                    True,
                    "its residual stream passes a norm in every layer, which calibration does not know",
                ),
            ),
        ),
        Family(
            "gpt_neox",
            embedding="gpt_neox.embed_in",
            layers="gpt_neox.layers",
            final_norm="gpt_neox.final_layer_norm",
            attention="attention",
            attention_output="attention.dense",
            input_projections=("mlp.dense_h_to_4h",),
            down_projection="mlp.dense_4h_to_h",
            norm_subtracts_mean=True,
        ),
        Family(
            "phi",
            attention_output="self_attn.dense",
            final_norm="model.final_layernorm",
            input_projections=("mlp.fc1",),
            down_projection="mlp.fc2",
            norm_subtracts_mean=True,
        ),
        Family("starcoder2", input_projections=("mlp.c_fc",), down_projection="mlp.c_proj", norm_subtracts_mean=True),
        Family("nemotron", input_projections=("mlp.up_proj",), norm_subtracts_mean=True, norm_weight_offset=1.0),
        Family(
            "opt",
            embedding="model.decoder.embed_tokens",
            layers="model.decoder.layers",
            final_norm="model.decoder.final_layer_norm",
            entry="self_attn_layer_norm",
            attention_output="self_attn.out_proj",
            mlp="fc2",
            input_projections=("fc1",),
            down_projection="fc2",
            norm_subtracts_mean=True,
            refused=(("do_layer_norm_before", False, "its residual stream passes a norm in every layer"),),
        ),
    ]


def _shared_experts() -> list[Family]:
    """Mixtures whose layers send every token through shared experts; their first layers, or some, are dense."""

    def beside_routed(name: str, shared: str) -> Family:
        gate, up, down = (f"mlp.{part}|mlp.{shared}.{part}" for part in ("gate_proj", "up_proj", "down_proj"))
        return Family(name, input_projections=(gate, up), down_projection=down, routes_to_experts=True)

    return [
        beside_routed("qwen2_moe", "shared_expert"),
        *(beside_routed(name, "shared_experts") for name in ("deepseek_v2", "deepseek_v3", "glm4_moe")),
    ]


FAMILIES = {family.model_type: family for family in (*_gated(), *_packed(), *_plain(), *_shared_experts())}
# What configurations call the number of routed experts, where there are any.
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
