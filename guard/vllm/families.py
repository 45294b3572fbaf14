"""Where vLLM's own model classes keep what the guard replaces: the table, each entry read off vLLM 0.32's code.

By the full name of the class, so that a model that vLLM runs through another implementation (its transformers backend,
a multimodal wrapper, routed experts, an embedding adapter) is refused: nobody has looked at where its neurons pass.
"""

from dataclasses import dataclass, replace

from torch import nn

from guard.errors import UnsupportedModelError
from guard.ops import ActivationName

MODELS = "vllm.model_executor.models"
ACTIVATIONS = "vllm.model_executor.layers.activation"
MISSING_LAYER = "PPMissingLayer"


@dataclass(frozen=True)
class EngineFamily:
    """Paths of modules in one of vLLM's classes: `layers` from the model, the rest from a decoder layer.

    `into` makes what the neurons are made of: gate and up halves side by side where there is an `activation` to
    replace, else the neurons before their activation. `down` is the row-parallel linear map whose input is the neurons.
    `transposed` says that checkpoints keep the weights of both as [in, out].
    """

    layers: str = "model.layers"
    entry: str = "input_layernorm"
    into: str = "mlp.gate_up_proj"
    activation: str | None = "mlp.act_fn"
    down: str = "mlp.down_proj"
    transposed: bool = False


_gated = EngineFamily()
_plain = replace(_gated, activation=None)

ENGINE_FAMILIES = {
    f"{MODELS}.llama.LlamaForCausalLM": _gated,
    f"{MODELS}.mistral.MistralForCausalLM": _gated,
    f"{MODELS}.qwen2.Qwen2ForCausalLM": _gated,
    f"{MODELS}.qwen3.Qwen3ForCausalLM": _gated,
    f"{MODELS}.gemma.GemmaForCausalLM": _gated,
    f"{MODELS}.gemma3.Gemma3ForCausalLM": _gated,
    f"{MODELS}.phi3.Phi3ForCausalLM": _gated,
    f"{MODELS}.stablelm.StablelmForCausalLM": _gated,
    f"{MODELS}.granite.GraniteForCausalLM": _gated,
    f"{MODELS}.nemotron.NemotronForCausalLM": replace(_plain, into="mlp.up_proj"),
    f"{MODELS}.gpt2.GPT2LMHeadModel": replace(
        _plain, layers="transformer.h", entry="ln_1", into="mlp.c_fc", down="mlp.c_proj", transposed=True
    ),
    f"{MODELS}.opt.OPTForCausalLM": replace(
        _plain, layers="model.decoder.layers", entry="self_attn_layer_norm", into="fc1", down="fc2"
    ),
}


def full_name(kind: type) -> str:
    """Module and name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def engine_family_of(kind: type) -> EngineFamily:
    """The table's entry for a model class of vLLM; UnsupportedModelError, naming it, for one that is not in it."""
    family = ENGINE_FAMILIES.get(full_name(kind))
    if family is None:
        supported = ", ".join(name.rpartition(".")[2] for name in ENGINE_FAMILIES)
        raise UnsupportedModelError(
            f"vLLM runs this model as {full_name(kind)}, where no edit can be installed; supported: {supported}."
        )
    return family


def owner(layer: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Parent and attribute name of the module at the dotted `path` below `layer`; UnsupportedModelError if none is."""
    parent_path, _, name = path.rpartition(".")
    try:
        parent = layer.get_submodule(parent_path)
        layer.get_submodule(path)
    except AttributeError as error:
        raise UnsupportedModelError(f"a {type(layer).__name__} of vLLM has no module {path}: {error}.") from error
    return parent, name


def activation_name(module: nn.Module) -> ActivationName:
    """What `guard.ops` calls vLLM's activation-and-multiplication `module`; UnsupportedModelError for any other."""
    name = full_name(type(module))
    if name == f"{ACTIVATIONS}.SiluAndMul":
        return "silu"
    if name == f"{ACTIVATIONS}.GeluAndMul":
        return "gelu_tanh" if getattr(module, "approximate", "none") == "tanh" else "gelu"
    raise UnsupportedModelError(f"the MLP's activation is a {name} of vLLM, which the guard does not know.")
