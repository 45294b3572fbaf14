"""What the guard and calibration ask of a model: where its MLPs, norms and read-out are, whatever its family.

Where things are comes from an explicit table (`families.py`) rather than from a search by name: a model type that
nobody has looked at is an error, since an edit put in a wrong place looks exactly like one that works. Sizes are read
off the modules themselves. Models and layers wrapped by torch.compile are looked through.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from guard.errors import UnsupportedModelError
from guard.families.table import EXPERT_COUNTS, FAMILIES, Family


@dataclass(frozen=True)
class Readout:
    """What a model does to its logits after the unembedding: soft_cap * tanh(scale * logits / soft_cap)."""

    scale: float = 1.0
    soft_cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """[..., V] -> [..., V]; without a soft cap, only scaled."""
        scaled = logits if self.scale == 1.0 else logits * self.scale
        return scaled if self.soft_cap is None else torch.tanh(scaled / self.soft_cap) * self.soft_cap


@dataclass(frozen=True)
class Architecture:
    """The modules of one decoder-only model type, found by the paths of its `family`."""

    family: Family

    @property
    def model_type(self) -> str:
        """The name that transformers has for the family."""
        return self.family.model_type

    @property
    def is_llama_like(self) -> bool:
        """Whether a decoder layer is exactly Llama's: RMSNorm, rotary attention, RMSNorm, gated MLP, two sums."""
        return self.family.is_llama_like

    def decoder_layers(self, model: nn.Module) -> list[nn.Module]:
        """The decoder layers in order; each maps a residual stream [..., d_model] to the next."""
        return [unwrap(layer) for layer in self._at(unwrap(model), self.family.layers).children()]

    def embedding(self, model: nn.Module) -> nn.Module:
        """Token ids -> residual stream."""
        return self._at(unwrap(model), self.family.embedding)

    def final_norm(self, model: nn.Module) -> nn.Module:
        """The norm between the last layer and the unembedding."""
        return self._at(unwrap(model), self.family.final_norm)

    def unembedding(self, model: nn.Module) -> nn.Linear:
        """The linear map from the normed residual stream to logits."""
        unembedding = self._at(unwrap(model), self.family.unembedding)
        if not isinstance(unembedding, nn.Linear):
            raise UnsupportedModelError(
                f"{self.family.unembedding} is a {type(unembedding).__name__}; a linear unembedding is needed."
            )
        return unembedding

    def readout(self, model: nn.Module) -> Readout:
        """What happens to the logits after the unembedding."""
        multiplier = self._number(model, self.family.logit_multiplier)
        divisor = self._number(model, self.family.logit_divisor)
        soft_cap = self._number(model, self.family.soft_cap)
        return Readout((1.0 if multiplier is None else multiplier) / (1.0 if divisor is None else divisor), soft_cap)

    def logits(self, model: nn.Module, stream: Tensor) -> Tensor:
        """The logits [..., V] of a residual stream [..., d_model] that has left the last layer."""
        logits: Tensor = self.readout(model)(self.unembedding(model)(self.final_norm(model)(stream)))
        return logits

    def residual_multiplier(self, model: nn.Module) -> float:
        """What a layer's MLP output is multiplied with before it is added to the residual stream."""
        multiplier = self._number(model, self.family.residual_multiplier)
        return 1.0 if multiplier is None else multiplier

    def entry(self, layer: nn.Module) -> tuple[nn.Module, str]:
        """Parent and attribute name of the module that first reads the residual stream entering `layer`.

        An input norm, given the stream as its first argument; where there is none, the attention module, which is
        given it as `hidden_states`.
        """
        return self._owner(layer, self.family.entry)

    def down(self, layer: nn.Module) -> tuple[nn.Module, str]:
        """Parent and attribute name of the module whose input is the neurons."""
        return self._owner(layer, self.family.down_projection)

    def input_norm(self, layer: nn.Module) -> nn.Module:
        """The module at `entry`."""
        return self._at(layer, self.family.entry)

    def attention(self, layer: nn.Module) -> nn.Module:
        """The module whose output, or the first of it, is what attention adds to the residual stream."""
        return self._at(layer, self.family.attention)

    def attention_output(self, layer: nn.Module) -> nn.Module:
        """The module that maps what the heads have read, [..., heads * head size], to attention's output."""
        return self._at(layer, self.family.attention_output)

    def mlp(self, layer: nn.Module) -> nn.Module:
        """The module whose output is what the MLP adds to the residual stream, `post_mlp_norm` aside."""
        return self._at(layer, self.family.mlp)

    def post_mlp_norm(self, layer: nn.Module) -> nn.Module | None:
        """The norm that the MLP's output passes before it is added; None in most families."""
        return None if self.family.post_mlp_norm is None else self._at(layer, self.family.post_mlp_norm)

    def input_projections(self, layer: nn.Module) -> dict[str, nn.Module]:
        """By name, the linear maps from the normed residual stream that the neurons are made of."""
        return {path.rpartition(".")[2]: self._at(layer, path) for path in self.family.input_projections}

    def down_projection(self, layer: nn.Module) -> nn.Module:
        """The module whose input is the neurons, [..., d_ff] -> [..., d_model]."""
        return self._at(layer, self.family.down_projection)

    def num_layers(self, model: nn.Module) -> int:
        """Number of decoder layers."""
        return len(self.decoder_layers(model))

    def d_model(self, model: nn.Module) -> int:
        """Width of the residual stream."""
        return widths(self.down_projection(self.decoder_layers(model)[0]))[1]

    def d_ff(self, model: nn.Module) -> int:
        """Neurons per layer; the largest number where layers differ."""
        return max(self.neurons_of(layer) for layer in self.decoder_layers(model))

    def neurons_of(self, layer: nn.Module) -> int:
        """Neurons of `layer`."""
        return widths(self.down_projection(layer))[0]

    def _number(self, model: nn.Module, name: str | None) -> float | None:
        """An entry of the model's text configuration; None where the family has no such entry, or it is unset."""
        if name is None:
            return None
        value = getattr(text_configuration(model), name)
        return None if value is None else float(value)

    def _owner(self, module: nn.Module, path: str) -> tuple[nn.Module, str]:
        for alternative in path.split("|"):
            parent, _, name = alternative.rpartition(".")
            owner = _find(module, parent)
            if owner is not None and isinstance(getattr(owner, name, None), nn.Module):
                return owner, name
        raise self._missing(path)

    def _at(self, module: nn.Module, path: str) -> nn.Module:
        for alternative in path.split("|"):
            found = _find(module, alternative)
            if found is not None:
                return found
        raise self._missing(path)

    def _missing(self, path: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"this {self.model_type} model has no module {path}: pass the causal language model itself, "
            "as AutoModelForCausalLM loads it."
        )


def _find(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path below `module` (itself for an empty one), looked for beneath torch.compile."""
    for name in path.split(".") if path else ():
        found = getattr(module, name, None)
        if not isinstance(found, nn.Module):
            return None
        module = unwrap(found)
    return module


def widths(linear: nn.Module) -> tuple[int, int]:
    """Input and output width of a linear map: nn.Linear and what quantisation makes of it, or GPT-2's Conv1D."""
    for entering, leaving in (("in_features", "out_features"), ("nx", "nf")):
        sizes = getattr(linear, entering, None), getattr(linear, leaving, None)
        if isinstance(sizes[0], int) and isinstance(sizes[1], int):
            return sizes[0], sizes[1]
    original = getattr(linear, "original", None)
    if isinstance(original, nn.Module):  # beneath an installed guard
        return widths(original)
    raise UnsupportedModelError(f"a {type(linear).__name__} does not tell its widths, so that no edit can be fitted.")


def unwrap(module: nn.Module) -> nn.Module:
    """The module itself where torch.compile has wrapped it (OptimizedModule), any number of times."""
    while isinstance(inner := module._modules.get("_orig_mod"), nn.Module):
        module = inner
    return module


def configuration(model: nn.Module) -> object:
    """The transformers configuration of `model`, looked for beneath torch.compile; None where there is none."""
    return getattr(unwrap(model), "config", None)


def text_configuration(model: nn.Module) -> object:
    """The part of the configuration that describes the language model, where `model` also sees."""
    config = configuration(model)
    return getattr(config, "text_config", None) or config


def architecture_of(model: nn.Module) -> Architecture:
    """The architecture of a transformers causal language model; UnsupportedModelError for any type not in the table."""
    config = configuration(model)
    model_type = getattr(config, "model_type", None)
    supported = ", ".join(sorted(FAMILIES))
    if not isinstance(model_type, str):
        raise UnsupportedModelError(
            f"{type(unwrap(model)).__name__} is not a transformers model; supported model types: {supported}."
        )
    family = FAMILIES.get(model_type)
    if any(getattr(config, name, None) for name in EXPERT_COUNTS) and not (family and family.routes_to_experts):
        raise UnsupportedModelError(
            f"model type {model_type!r} has its neurons in routed experts, and the neurons of routed experts cannot be "
            f"edited: an expert sees other tokens in every pass; supported model types: {supported}."
        )
    if family is None:
        raise UnsupportedModelError(f"model type {model_type!r} is not supported; supported model types: {supported}.")
    for name, value, reason in family.refused:
        if getattr(config, name, None) == value:
            raise UnsupportedModelError(f"this {model_type} model has {name}={value}: {reason}.")
    return Architecture(family)
