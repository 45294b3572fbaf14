"""The model families: one entry each, which is all that there is to a family.

An entry says where a family keeps its modules in transformers and in vLLM, when its MLP's output has a bias, and what
its norms and logits do. It is read off the code of transformers 5.19 and vLLM 0.32. To add a family, add an entry to
`ENTRIES`: nothing else compares model types.

Paths are dotted, from the causal language model or, for what is inside a layer, from the decoder layer; where a family
has variants, alternatives are separated by `|` and the first that exists is taken.
"""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class BiasSwitch:
    """The configuration entry that gives a family's linear maps biases: those at `modules` of every layer."""

    entry: str
    modules: tuple[str, ...]


@dataclass(frozen=True)
class VllmLayout:
    """Paths of modules in one of vLLM's classes: `layers` from the model, the rest from a decoder layer.

    `model_class` is the module below vllm.model_executor.models and the name of the class. `into` makes what the
    neurons are made of: gate and up halves side by side where there is an `activation` to replace, else the neurons
    before their activation. `down` is the row-parallel linear map whose input is the neurons. `transposed` says that
    checkpoints keep the weights of both as [in, out].
    """

    model_class: str
    layers: str = "model.layers"
    entry: str = "input_layernorm"
    into: str = "mlp.gate_up_proj"
    activation: str | None = "mlp.act_fn"
    down: str = "mlp.down_proj"
    transposed: bool = False


@dataclass(frozen=True)
class Family:
    """All that is known of one model type; the defaults are Llama's.

    In transformers: `attention` and `mlp` name the modules whose output is added to the residual stream,
    `attention_output` the last linear map of attention, which is to it what `down_projection` is to the MLP.
    `routes_to_experts` says that beside the neurons at `down_projection` there are those of routed experts, which are
    left alone. `refused` lists configuration entries with a value that the guard does not support, and why.

    In vLLM: `vllm` is None where vLLM is not supported.

    Folding: `down_bias` says whether the down projection has a bias, or what switches one on. Scales and ablations to
    0 fold into every family; an ablation to another value needs the bias.

    Closed form: the norms divide by the root mean square, after subtracting the mean where `norm_subtracts_mean`, and
    multiply by their weight plus `norm_weight_offset`. `logit_multiplier`, `logit_divisor`, `soft_cap` and
    `residual_multiplier` name configuration entries. `is_llama_like` says that a decoder layer is exactly Llama's
    (RMSNorm, rotary attention, RMSNorm, gated MLP, two sums), so that the faster late layer and the rules of relevance
    propagation fit.
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
    routes_to_experts: bool = False
    refused: tuple[tuple[str, object, str], ...] = ()
    vllm: VllmLayout | None = None
    down_bias: Literal["always", "never"] | BiasSwitch = "never"
    logit_multiplier: str | None = None
    logit_divisor: str | None = None
    soft_cap: str | None = None
    residual_multiplier: str | None = None
    norm_subtracts_mean: bool = False
    norm_weight_offset: float = 0.0
    is_llama_like: bool = False


# What several entries share.
_QUERY_KEY_VALUE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATED_BIAS = BiasSwitch("mlp_bias", ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"))
_GPT2 = Family(
    "gpt2",
    embedding="transformer.wte",
    layers="transformer.h",
    final_norm="transformer.ln_f",
    entry="ln_1",
    attention="attn",
    attention_output="attn.c_proj",
    input_projections=("mlp.c_fc",),
    down_projection="mlp.c_proj",
    vllm=VllmLayout(
        "gpt2.GPT2LMHeadModel",
        layers="transformer.h",
        entry="ln_1",
        into="mlp.c_fc",
        activation=None,
        down="mlp.c_proj",
        transposed=True,
    ),
    down_bias="always",
    norm_subtracts_mean=True,
)
_DENSE = replace(
    _GPT2,
    embedding="transformer.word_embeddings",
    attention="self_attention",
    attention_output="self_attention.dense",
    input_projections=("mlp.dense_h_to_4h",),
    down_projection="mlp.dense_4h_to_h",
    vllm=None,
)
_GEMMA2 = Family(
    "gemma2",
    post_mlp_norm="post_feedforward_layernorm",
    soft_cap="final_logit_softcapping",
    norm_weight_offset=1.0,
)
_PHI3 = Family("phi3", input_projections=("mlp.gate_up_proj",), vllm=VllmLayout("phi3.Phi3ForCausalLM"))


def _mixture(model_type: str, shared: str) -> Family:
    """A mixture whose layers send every token through shared experts; its first layers, or some, are dense."""
    gate, up, down = (f"mlp.{part}|mlp.{shared}.{part}" for part in ("gate_proj", "up_proj", "down_proj"))
    return Family(model_type, input_projections=(gate, up), down_projection=down, routes_to_experts=True)


ENTRIES = (
    # Separate gate and up projections: h = act(gate_proj(x)) * up_proj(x).
    Family("llama", vllm=VllmLayout("llama.LlamaForCausalLM"), down_bias=_GATED_BIAS, is_llama_like=True),
    Family("mistral", vllm=VllmLayout("mistral.MistralForCausalLM"), is_llama_like=True),
    Family("qwen2", vllm=VllmLayout("qwen2.Qwen2ForCausalLM"), is_llama_like=True),
    Family("qwen3", vllm=VllmLayout("qwen3.Qwen3ForCausalLM")),
    Family("smollm3", down_bias=_GATED_BIAS),
    Family("gemma", vllm=VllmLayout("gemma.GemmaForCausalLM"), norm_weight_offset=1.0),
    Family("stablelm", vllm=VllmLayout("stablelm.StablelmForCausalLM"), norm_subtracts_mean=True),
    # It could have a bias after attention, which is added in the same sum; but vLLM 0.32 drops that one silently.
    Family("cohere", logit_multiplier="logit_scale", norm_subtracts_mean=True),
    Family(
        "granite",
        vllm=VllmLayout("granite.GraniteForCausalLM"),
        down_bias=_GATED_BIAS,
        logit_divisor="logits_scaling",
        residual_multiplier="residual_multiplier",
    ),
    # No input norm: attention reads the residual stream itself.
    Family("olmo2", entry="self_attn", post_mlp_norm="post_feedforward_layernorm"),
    _GEMMA2,
    replace(_GEMMA2, model_type="gemma3_text", vllm=VllmLayout("gemma3.Gemma3ForCausalLM")),
    # With eyes, transformers leaves the logits as they are, whatever the configuration says of a soft cap.
    replace(
        _GEMMA2,
        model_type="gemma3",
        soft_cap=None,
        embedding="model.language_model.embed_tokens",
        layers="model.language_model.layers",
        final_norm="model.language_model.norm",
    ),
    # Gate and up projections in one matrix.
    _PHI3,
    replace(_PHI3, model_type="glm4", post_mlp_norm="post_mlp_layernorm", vllm=None),
    # No gate: h = act(W x + b).
    _GPT2,
    replace(
        _GPT2,
        model_type="gptj",
        attention_output="attn.out_proj",
        input_projections=("mlp.fc_in",),
        down_projection="mlp.fc_out",
        vllm=None,
    ),
    replace(
        _DENSE,
        model_type="falcon",
        entry="input_layernorm|ln_attn",
        down_bias=BiasSwitch(
            "bias", ("self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
        ),
    ),
    # Attention and MLP add the residual stream themselves; their last linear maps do not.
    replace(
        _DENSE,
        model_type="bloom",
        entry="input_layernorm",
        attention="self_attention.dense",
        mlp="mlp.dense_4h_to_h",
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
        down_bias="always",
        norm_subtracts_mean=True,
    ),
    Family(
        "phi",
        final_norm="model.final_layernorm",
        attention_output="self_attn.dense",
        input_projections=("mlp.fc1",),
        down_projection="mlp.fc2",
        down_bias="always",
        norm_subtracts_mean=True,
    ),
    Family(
        "starcoder2",
        input_projections=("mlp.c_fc",),
        down_projection="mlp.c_proj",
        down_bias=BiasSwitch("use_bias", (*_QUERY_KEY_VALUE, "self_attn.o_proj", "mlp.c_fc", "mlp.c_proj")),
        norm_subtracts_mean=True,
    ),
    Family(
        "nemotron",
        input_projections=("mlp.up_proj",),
        vllm=VllmLayout("nemotron.NemotronForCausalLM", into="mlp.up_proj", activation=None),
        down_bias=BiasSwitch("mlp_bias", ("mlp.up_proj", "mlp.down_proj")),
        norm_subtracts_mean=True,
        norm_weight_offset=1.0,
    ),
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
        refused=(("do_layer_norm_before", False, "its residual stream passes a norm in every layer"),),
        vllm=VllmLayout(
            "opt.OPTForCausalLM",
            layers="model.decoder.layers",
            entry="self_attn_layer_norm",
            into="fc1",
            activation=None,
            down="fc2",
        ),
        down_bias=BiasSwitch("enable_bias", (*_QUERY_KEY_VALUE, "self_attn.out_proj", "fc1", "fc2")),
        norm_subtracts_mean=True,
    ),
    # Mixtures with shared experts.
    _mixture("qwen2_moe", "shared_expert"),
    _mixture("deepseek_v2", "shared_experts"),
    _mixture("deepseek_v3", "shared_experts"),
    _mixture("glm4_moe", "shared_experts"),
)
FAMILIES = {family.model_type: family for family in ENTRIES}
# What configurations call the number of routed experts, where there are any.
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
