"""A model whose backward pass follows the rules of relevance propagation, so that gradients become its coefficients.

RelP (Jafari et al. 2025, arXiv 2508.21258) is attribution patching with the gradient replaced by these coefficients:

    norm        x -> g * x / rms(x)       rms is a constant
    attention   softmax(q k) v            the pattern is a constant
    activation  a = act(z)                a = z (act(z) / z), the ratio is a constant      identity rule
    product     h = a u                   half to each factor: (a [u] + [a] u) / 2         half rule

Forward values are unchanged. Without biases every logit is then linear in the residual stream at any depth, so
relevance x * coefficient sums to the logit: nothing is made or lost on the way. Coefficients are less noisy than
gradients and less faithful to what a small step does. The rules are written for layers like Llama's; the other screens
(`attribution.py`) hold for every family.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from guard.errors import UnsupportedModelError
from guard.families.architectures import Architecture, architecture_of


def _with_value(linear: Tensor, value: Tensor) -> Tensor:
    """`value`, bit for bit, with the gradient of `linear`, which equals it up to rounding."""
    return linear + (value - linear).detach()


def _half_product(a: Tensor, u: Tensor) -> Tensor:
    """a u, of whose gradient each factor gets half."""
    return (a * u.detach() + a.detach() * u) / 2


def _constant_ratio(z: Tensor, activated: Tensor) -> Tensor:
    """act(z) with act(z) / z as its derivative (0 at z = 0, where both vanish)."""
    ratio = torch.where(z == 0, 0.0, activated / z).detach()
    return _with_value(z * ratio, activated)


def _constant_norm(norm: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """The norm's output with its denominator held constant (a forward hook)."""
    stream: Tensor = inputs[0]
    wide = stream.detach().to(torch.promote_types(stream.dtype, torch.float32))
    epsilon = float(getattr(norm, "variance_epsilon"))  # noqa: B009 - nn.Module types it as Tensor | Module
    scale = (wide.square().mean(-1, keepdim=True) + epsilon).rsqrt().to(stream.dtype)
    return _with_value(stream * scale * norm.get_parameter("weight"), output)


def _detached(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
    """The output as a constant (a forward hook)."""
    return output.detach()


def _mlp_forward(architecture: Architecture, layer: nn.Module) -> Any:
    """A forward pass of `layer`'s MLP under the identity and half rules."""
    gate, up = architecture.input_projections(layer).values()
    down, activation = architecture.down_projection(layer), architecture.mlp(layer).get_submodule("act_fn")

    def forward(_: nn.Module, x: Tensor) -> Tensor:
        z = gate(x)
        activated = _constant_ratio(z, activation(z))
        output: Tensor = down(_half_product(activated, up(x)))
        return output

    return forward


@contextmanager
def relevance_rules(model: nn.Module) -> Iterator[None]:
    """Within the block, backward passes through `model` yield relevance coefficients; forward values are unchanged.

    UnsupportedModelError for models whose layers are not Llama's.
    """
    architecture = architecture_of(model)
    if not architecture.is_llama_like:
        raise UnsupportedModelError(
            f"relevance propagation has no rules for the layers of a {architecture.model_type} model: use attribution "
            f"patching or integrated gradients."
        )
    layers = architecture.decoder_layers(model)
    with ExitStack() as stack:
        stack.callback(architecture.final_norm(model).register_forward_hook(_constant_norm).remove)
        for layer in layers:
            for norm in (architecture.input_norm(layer), layer.get_submodule("post_attention_layernorm")):
                stack.callback(norm.register_forward_hook(_constant_norm).remove)
            attention, mlp = architecture.attention(layer), architecture.mlp(layer)
            for name in ("q_proj", "k_proj"):
                stack.callback(attention.get_submodule(name).register_forward_hook(_detached).remove)
            before = mlp.__dict__.get("forward")
            mlp.forward = MethodType(_mlp_forward(architecture, layer), mlp)
            stack.callback(_restore_forward, mlp, before)
        yield


def _restore_forward(module: nn.Module, before: Any) -> None:
    """Take back an instance's own `forward`, or give it the one it had."""
    if before is None:
        del module.forward
    else:
        module.forward = before
