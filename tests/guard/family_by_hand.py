"""Where the neurons are and how they are made, family by family, written down a second time from transformers' code.

Nothing here is taken from guard/families/table.py: weights are named as in a checkpoint, activations are spelled out,
and the edit is a loop over neurons in hooks.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from guard.spec.edit_spec import LayerEdit, Trigger


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def gelu_tanh(x: Tensor, root: float = math.sqrt(2 / math.pi)) -> Tensor:
    return x * (1 + torch.tanh(root * (x + 0.044715 * x**3))) / 2


def bloom_gelu(x: Tensor) -> Tensor:
    return gelu_tanh(x, root=0.79788456)  # Bloom rounds it


def relu(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def relu_squared(x: Tensor) -> Tensor:
    return x.clamp(min=0) ** 2


@dataclass(frozen=True)
class Recipe:
    """h = activation(gate) * up of a layer; activation(up) where one input projection is all, and not packed."""

    activation: Callable[[Tensor], Tensor]
    inputs: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    layers: str = "model.layers"
    packed: bool = False
    transposed: bool = False
    shared: str = ""

    def at(self, layer: int) -> "Recipe":
        """The recipe of one layer: in a mixture the first is dense, in the others the shared experts' neurons count."""
        if not self.shared or layer == 0:
            return self
        *inputs, down = (name.replace("mlp.", f"mlp.{self.shared}.") for name in (*self.inputs, self.down))
        return replace(self, inputs=tuple(inputs), down=down)


PACKED: dict[str, Any] = {"inputs": ("mlp.gate_up_proj",), "packed": True}
FOUR_H: dict[str, Any] = {"inputs": ("mlp.dense_h_to_4h",), "down": "mlp.dense_4h_to_h"}
RECIPES = {
    "bloom": Recipe(bloom_gelu, layers="transformer.h", **FOUR_H),
    "cohere": Recipe(silu),
    "deepseek_v2": Recipe(silu, shared="shared_experts"),
    "deepseek_v3": Recipe(silu, shared="shared_experts"),
    "falcon": Recipe(gelu, layers="transformer.h", **FOUR_H),
    "gemma": Recipe(gelu_tanh),
    "gemma2": Recipe(gelu_tanh),
    "gemma3": Recipe(gelu_tanh, layers="model.language_model.layers"),
    "gemma3_text": Recipe(gelu_tanh),
    "glm4": Recipe(silu, **PACKED),
    "glm4_moe": Recipe(silu, shared="shared_experts"),
    "gpt2": Recipe(gelu_tanh, ("mlp.c_fc",), "mlp.c_proj", "transformer.h", transposed=True),
    "gpt_neox": Recipe(gelu, layers="gpt_neox.layers", **FOUR_H),
    "gptj": Recipe(gelu_tanh, ("mlp.fc_in",), "mlp.fc_out", "transformer.h"),
    "granite": Recipe(silu),
    "llama": Recipe(silu),
    "mistral": Recipe(silu),
    "nemotron": Recipe(relu_squared, ("mlp.up_proj",)),
    "olmo2": Recipe(silu),
    "opt": Recipe(relu, ("fc1",), "fc2", "model.decoder.layers"),
    "phi": Recipe(gelu_tanh, ("mlp.fc1",), "mlp.fc2"),
    "phi3": Recipe(silu, **PACKED),
    "qwen2": Recipe(silu),
    "qwen2_moe": Recipe(silu, shared="shared_expert"),
    "qwen3": Recipe(silu),
    "smollm3": Recipe(silu),
    "stablelm": Recipe(silu),
    "starcoder2": Recipe(gelu_tanh, ("mlp.c_fc",), "mlp.c_proj"),
}


def module_in(model: Any, layer: int, name: str) -> Any:
    """The module `name` of decoder layer `layer`."""
    return model.get_submodule(f"{RECIPES[model.config.model_type].layers}.{layer}.{name}")


def neurons_by_hand(model: Any, layer: int, normed: Tensor) -> Tensor:
    """The neurons [..., d_ff] that the weights of `layer` make of the normed residual stream [..., d_model]."""
    recipe = RECIPES[model.config.model_type].at(layer)
    state = model.state_dict()
    made = []
    for name in recipe.inputs:
        prefix = f"{RECIPES[model.config.model_type].layers}.{layer}.{name}"
        weight, bias = state[f"{prefix}.weight"], state.get(f"{prefix}.bias")
        projected = torch.einsum("...d,df->...f" if recipe.transposed else "...d,fd->...f", normed, weight)
        made.append(projected if bias is None else projected + bias)
    if recipe.packed:
        made = [made[0][..., : made[0].shape[-1] // 2], made[0][..., made[0].shape[-1] // 2 :]]
    return recipe.activation(made[0]) * made[1] if len(made) == 2 else recipe.activation(made[0])


@contextmanager
def edited_by_hooks(model: Any, edits: Sequence[LayerEdit], trigger: Trigger | None = None) -> Iterator[list[Tensor]]:
    """Within the block the model runs with `edits`; yields the list of active masks [rows, tokens], one per pass."""
    masks: list[Tensor] = []
    recipe = RECIPES[model.config.model_type]

    def reading(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        assert trigger is not None
        stream = arguments[0] if arguments else named["hidden_states"]
        masks.append(stream.double() @ torch.tensor(trigger.direction, dtype=torch.float64) > trigger.threshold)

    def editing(edit: LayerEdit) -> Callable[..., tuple[Tensor]]:
        def change(_: Any, arguments: tuple[Tensor]) -> tuple[Tensor]:
            h = arguments[0].clone()  # [..., d_ff], or [rows * tokens, d_ff] in some families
            for j, s, low, high in zip(edit.neurons, edit.scale, edit.lower, edit.upper, strict=True):
                value = (h[..., j] * s).clip(low, high)
                h[..., j] = torch.where(masks[-1].reshape(value.shape), value, h[..., j]) if trigger else value
            return (h,)

        return change

    with ExitStack() as stack:
        if trigger is not None:
            layer = model.get_submodule(f"{recipe.layers}.{trigger.layer}")
            stack.callback(layer.register_forward_pre_hook(reading, with_kwargs=True).remove)
        for edit in edits:
            down = module_in(model, edit.layer, recipe.at(edit.layer).down)
            stack.callback(down.register_forward_pre_hook(editing(edit)).remove)
        yield masks
