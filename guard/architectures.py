"""Where each model type keeps the modules that the guard and calibration work on.

An explicit table rather than a search by name: a model type that nobody has looked at is an error, since an edit put in
a wrong place looks exactly like one that works. Models and layers wrapped by torch.compile are looked through.
"""

from dataclasses import dataclass

from torch import nn

from guard.errors import UnsupportedModelError


@dataclass(frozen=True)
class Architecture:
    """Attribute names of one dense decoder-only model type: `model`, `layers` and the like, as dotted paths."""

    model_type: str
    embedding_path: str
    layers_path: str
    final_norm_path: str
    unembedding_path: str
    input_norm_name: str
    attention_name: str
    mlp_name: str
    gate_projection_name: str
    up_projection_name: str
    down_projection_name: str

    def decoder_layers(self, model: nn.Module) -> list[nn.Module]:
        """The decoder layers in order; each maps a residual stream [..., d_model] to the next."""
        layers = self._at(unwrap(model), self.layers_path)
        return [unwrap(layer) for layer in layers.children()]

    def embedding(self, model: nn.Module) -> nn.Module:
        """Token ids -> residual stream."""
        return self._at(unwrap(model), self.embedding_path)

    def final_norm(self, model: nn.Module) -> nn.Module:
        """The norm between the last layer and the unembedding."""
        return self._at(unwrap(model), self.final_norm_path)

    def unembedding(self, model: nn.Module) -> nn.Linear:
        """The linear map from the normed residual stream to logits."""
        unembedding = self._at(unwrap(model), self.unembedding_path)
        if not isinstance(unembedding, nn.Linear):
            raise UnsupportedModelError(
                f"{self.unembedding_path} is a {type(unembedding).__name__}; a linear unembedding is needed."
            )
        return unembedding

    def input_norm(self, layer: nn.Module) -> nn.Module:
        """The norm whose input is the residual stream entering `layer`."""
        return self._at(layer, self.input_norm_name)

    def attention(self, layer: nn.Module) -> nn.Module:
        """The attention module of `layer`."""
        return self._at(layer, self.attention_name)

    def mlp(self, layer: nn.Module) -> nn.Module:
        """The MLP block of `layer`."""
        return self._at(layer, self.mlp_name)

    def gate_projection(self, layer: nn.Module) -> nn.Module:
        """The projection whose output passes through the activation function, [..., d_model] -> [..., d_ff]."""
        return self._at(self.mlp(layer), self.gate_projection_name)

    def up_projection(self, layer: nn.Module) -> nn.Module:
        """The projection that is multiplied with the activated gate, [..., d_model] -> [..., d_ff]."""
        return self._at(self.mlp(layer), self.up_projection_name)

    def down_projection(self, layer: nn.Module) -> nn.Module:
        """The module whose input is the neurons, [..., d_ff] -> [..., d_model]."""
        return self._at(self.mlp(layer), self.down_projection_name)

    def num_layers(self, model: nn.Module) -> int:
        """Number of decoder layers."""
        return len(self.decoder_layers(model))

    def d_model(self, model: nn.Module) -> int:
        """Width of the residual stream."""
        return self._size(model, "hidden_size")

    def d_ff(self, model: nn.Module) -> int:
        """Neurons per layer."""
        return self._size(model, "intermediate_size")

    def _size(self, model: nn.Module, name: str) -> int:
        size = getattr(configuration(model), name, None)
        if not isinstance(size, int):
            raise UnsupportedModelError(f"the configuration of this {self.model_type} model does not give {name}.")
        return size

    def _at(self, module: nn.Module, path: str) -> nn.Module:
        for name in path.split("."):
            found = getattr(module, name, None)
            if not isinstance(found, nn.Module):
                raise UnsupportedModelError(
                    f"this {self.model_type} model has no module {path}: pass the causal language model itself, "
                    "as AutoModelForCausalLM loads it."
                )
            module = unwrap(found)
        return module


def _llama_like(model_type: str) -> Architecture:
    return Architecture(
        model_type=model_type,
        embedding_path="model.embed_tokens",
        layers_path="model.layers",
        final_norm_path="model.norm",
        unembedding_path="lm_head",
        input_norm_name="input_layernorm",
        attention_name="self_attn",
        mlp_name="mlp",
        gate_projection_name="gate_proj",
        up_projection_name="up_proj",
        down_projection_name="down_proj",
    )


ARCHITECTURES = {"llama": _llama_like("llama"), "qwen2": _llama_like("qwen2")}
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def unwrap(module: nn.Module) -> nn.Module:
    """The module itself where torch.compile has wrapped it (OptimizedModule), any number of times."""
    while isinstance(inner := module._modules.get("_orig_mod"), nn.Module):
        module = inner
    return module


def configuration(model: nn.Module) -> object:
    """The transformers configuration of `model`, looked for beneath torch.compile; None where there is none."""
    return getattr(unwrap(model), "config", None)


def architecture_of(model: nn.Module) -> Architecture:
    """The architecture of a transformers causal language model; UnsupportedModelError for any type not in the table."""
    config = configuration(model)
    model_type = getattr(config, "model_type", None)
    supported = ", ".join(sorted(ARCHITECTURES))
    if not isinstance(model_type, str):
        raise UnsupportedModelError(
            f"{type(unwrap(model)).__name__} is not a transformers model; supported model types: {supported}."
        )
    if any(getattr(config, name, None) for name in EXPERT_COUNTS):
        raise UnsupportedModelError(
            f"model type {model_type!r} routes tokens to experts, whose neurons no edit can reach yet; "
            f"supported model types: {supported}."
        )
    if model_type not in ARCHITECTURES:
        raise UnsupportedModelError(f"model type {model_type!r} is not supported; supported model types: {supported}.")
    return ARCHITECTURES[model_type]
