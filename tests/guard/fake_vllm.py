"""Modules that are called what vLLM's are and do what they do, for tests where vLLM is not installed."""

from typing import Any

import torch
from torch import Tensor, nn

from guard.vllm.families import ACTIVATIONS, MODELS

LAYERS, D_MODEL, D_FF = 4, 6, 10
TOKENS = 16


def named(module: str, name: str, base: type, **members: Any) -> Any:
    """A class that passes for vLLM's `name` in `module`."""
    return type(name, (base,), {"__module__": module, **members})


class _AndMul(nn.Module):
    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate


def _silu_and_mul(_: Any, packed: Tensor) -> Tensor:
    gate, up = packed.chunk(2, dim=-1)
    return nn.functional.silu(gate) * up


def _gelu_and_mul(self: Any, packed: Tensor) -> Tensor:
    gate, up = packed.chunk(2, dim=-1)
    return nn.functional.gelu(gate, approximate=self.approximate) * up


SiluAndMul = named(ACTIVATIONS, "SiluAndMul", _AndMul, forward=_silu_and_mul)
GeluAndMul = named(ACTIVATIONS, "GeluAndMul", _AndMul, forward=_gelu_and_mul)
OtherAndMul = named(ACTIVATIONS, "OtherAndMul", _AndMul, forward=_silu_and_mul)
PPMissingLayer = named("vllm.model_executor.models.utils", "PPMissingLayer", nn.Module)


class RowParallel(nn.Module):
    """[tokens, width] -> ([tokens, d_model], None)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.input_size_per_partition = weight.shape[1]

    def forward(self, h: Tensor) -> tuple[Tensor, None]:
        return h @ self.weight.T, None


class Norm(nn.Module):
    """vLLM's norm: adds a residual first, and returns both."""

    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> Any:
        if residual is None:
            return nn.functional.normalize(hidden)
        residual.add_(hidden)  # in place, as vLLM's kernel
        return nn.functional.normalize(residual), residual


class Layer(nn.Module):
    """A decoder layer without attention."""

    def __init__(self, activation: nn.Module, seed: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.into = torch.randn(2 * width, D_MODEL, generator=generator)
        self.input_layernorm = Norm()
        self.mlp = nn.Module()
        self.mlp.act_fn = activation
        self.mlp.down_proj = RowParallel(torch.randn(D_MODEL, width, generator=generator))

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            residual, hidden = hidden.clone(), self.input_layernorm(hidden)
        else:
            hidden, residual = self.input_layernorm(hidden, residual)
        mlp: Any = self.mlp
        output: Tensor = mlp.down_proj(mlp.act_fn(hidden @ self.into.T))[0]
        return output, residual


class _Model(nn.Module):
    def __init__(self, activation: nn.Module | None = None, width: int = D_FF) -> None:
        super().__init__()
        shared = SiluAndMul() if activation is None else activation  # one object in all layers, as vLLM has it
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(Layer(shared, seed, width) for seed in range(LAYERS))

    def forward(self, stream: Tensor) -> Tensor:
        """[tokens, d_model] -> [tokens, d_model]: what leaves the last layer."""
        hidden: Any = stream
        residual: Any = None
        model: Any = self.model
        for layer in model.layers:
            hidden, residual = layer(hidden, residual)
        left: Tensor = torch.add(hidden, residual)
        return left.clone()


LlamaForCausalLM = named(f"{MODELS}.llama", "LlamaForCausalLM", _Model)
UnknownForCausalLM = named(f"{MODELS}.unknown", "UnknownForCausalLM", _Model)
