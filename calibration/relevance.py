"""A model whose backward pass follows the rules of relevance propagation, so that gradients become its coefficients.

RelP (Jafari et al. 2025, arXiv 2508.21258) is attribution patching with the gradient replaced by these coefficients:

    norm        x -> g * x / rms(x)       rms is a constant
    attention   softmax(q k) v            the pattern is a constant
    activation  a = act(z)                a = z (act(z) / z), the ratio is a constant      identity rule
    product     h = a u                   half to each factor: (a [u] + [a] u) / 2         half rule

Forward values are unchanged. Without biases every logit is then linear in the residual stream at any depth, so
relevance x * coefficient sums to the logit: nothing is made or lost on the way. Coefficients are less noisy than
gradients and less faithful to what a small step does.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from guard.architectures import Architecture, architecture_of


class _HalfProduct(torch.autograd.Function):
    """a u, of whose gradient each factor gets half."""

    @staticmethod
    def forward(context: Any, a: Tensor, u: Tensor) -> Tensor:
        """The product."""
        context.save_for_backward(a, u)
        return a * u

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Half of the product rule for each factor."""
        a, u = context.saved_tensors
        return gradient * u / 2, gradient * a / 2


class _ConstantRatio(torch.autograd.Function):
    """act(z) from z and act(z), with act(z) / z as its derivative (0 at z = 0, where both vanish)."""

    @staticmethod
    def forward(context: Any, z: Tensor, activated: Tensor) -> Tensor:
        """act(z)."""
        context.save_for_backward(z, activated)
        return activated.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """The gradient times act(z) / z."""
        z, activated = context.saved_tensors
        return gradient * torch.where(z == 0, 0.0, activated / z), None


def _constant_norm(norm: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """The norm's output with its denominator held constant (a forward hook)."""
    stream: Tensor = inputs[0]
    wide = stream.detach().to(torch.promote_types(stream.dtype, torch.float32))
    epsilon = float(getattr(norm, "variance_epsilon"))  # noqa: B009 - nn.Module types it as Tensor | Module
    scale = (wide.square().mean(-1, keepdim=True) + epsilon).rsqrt().to(stream.dtype)
    linear = stream * scale * norm.weight
    return linear + (output - linear).detach()


def _detached(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
    """The output as a constant (a forward hook)."""
    return output.detach()


def _mlp_forward(architecture: Architecture, layer: nn.Module) -> Any:
    """A forward pass of `layer`'s MLP under the identity and half rules."""
    gate, up = architecture.gate_projection(layer), architecture.up_projection(layer)
    down, activation = architecture.down_projection(layer), architecture.mlp(layer).get_submodule("act_fn")

    def forward(_: nn.Module, x: Tensor) -> Tensor:
        z = gate(x)
        activated = _ConstantRatio.apply(z, activation(z).detach())
        output: Tensor = down(_HalfProduct.apply(activated, up(x)))
        return output

    return forward


@contextmanager
def relevance_rules(model: nn.Module) -> Iterator[None]:
    """Within the block, backward passes through `model` yield relevance coefficients; forward values are unchanged."""
    architecture = architecture_of(model)
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
            mlp.forward = MethodType(_mlp_forward(architecture, layer), mlp)  # type: ignore[method-assign]
            stack.callback(_restore_forward, mlp, before)
        yield


def _restore_forward(module: nn.Module, before: Any) -> None:
    """Take back an instance's own `forward`, or give it the one it had."""
    if before is None:
        del module.forward
    else:
        module.forward = before
