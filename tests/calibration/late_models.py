"""Tiny float64 models, batches and hook-by-hook effects for the tests of interventions and exact effects."""

from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from calibration.effects.outcome import outcome, readout_logits
from calibration.prompts.sequences import Batch, Example, collate
from calibration.runs.interventions import Mediator, patched_outcome
from tests.conftest import make_tiny_model


class _Wide(TorchFunctionMode):
    """Turns casts to float32 into casts to float64; transformers' norms, rotary embeddings and softmaxes have them."""

    open = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if func is Tensor.float:
            return args[0].double()
        if func in (Tensor.to, Tensor.type):
            args = tuple(torch.float64 if each is torch.float32 else each for each in args)
        if named.get("dtype") is torch.float32:
            named["dtype"] = torch.float64
        return func(*args, **named)


def _without_casts(forward: Any) -> Any:
    @wraps(forward)
    def wide(*args: Any, **kwargs: Any) -> Any:
        if _Wide.open:
            return forward(*args, **kwargs)
        _Wide.open = True
        try:
            with _Wide():
                return forward(*args, **kwargs)
        finally:
            _Wide.open = False

    return wide


def in_float64(model: nn.Module) -> nn.Module:
    """`model` in float64 throughout, whichever of its modules is called."""
    model.to(torch.float64)
    for module in model.modules():
        if type(module).__module__.startswith("transformers."):
            module.forward = _without_casts(module.forward)
    return model


def late_model(model_type: str = "llama", *, dtype: torch.dtype = torch.float64, **settings: Any) -> nn.Module:
    """A tiny model whose norm weights and biases are random too (transformers starts them at one and zero)."""
    model: nn.Module = make_tiny_model(model_type, **{"layers": 4, "seed": 3} | settings)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.to(dtype)
    if dtype == torch.float64:
        in_float64(model)
    return model.requires_grad_(False)


class Int8Linear(nn.Module):
    """A linear map that keeps its weight in 8 bits, as quantised models do."""

    quantised: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.step = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("quantised", (linear.weight / self.step).round().to(torch.int8))
        self.bias = linear.bias

    def dequantised(self) -> Tensor:
        return self.quantised * self.step

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dequantised().to(x.dtype), self.bias)


@cache
def shared_model(model_type: str = "llama", **settings: Any) -> nn.Module:
    """`late_model`, made once: for tests that leave it as it is."""
    return late_model(model_type, **settings)


def _tokens(generator: torch.Generator, count: int, vocabulary: int = 61) -> tuple[int, ...]:
    return tuple(torch.randint(1, vocabulary, (count,), generator=generator).tolist())


def random_batch(
    seed: int = 0,
    *,
    prompts: tuple[int, ...] = (5, 9, 3),
    tail: int = 2,
    lengths: tuple[tuple[int, int], ...] = ((3, 2), (4, 4), (1, 3)),
    continuations: int = 17,
) -> Batch:
    """Requests of `prompts` tokens before a common tail; `lengths` of their compliance and refusal.

    The continuations depend on the seed `continuations` alone, so two seeds make the two sides of contrast pairs.
    """
    words, forced = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(continuations)
    ending = _tokens(forced, tail)
    examples = [
        Example(_tokens(words, length) + ending, _tokens(forced, compliance), _tokens(forced, refusal))
        for length, (compliance, refusal) in zip(prompts, lengths, strict=True)
    ]
    return collate(examples, pad_id=0, prompt_width=max(prompts) + tail, tail=tail)


def edited_width(batch: Batch) -> int:
    width: int = batch.edited.stop - batch.edited.start
    return width


def shared_values(batch: Batch, neurons: int, seed: int = 1) -> Tensor:
    """Random values [2B, T_edited, neurons] in float64; both rows of a request agree on the prompt."""
    values = torch.randn(
        2 * batch.size, edited_width(batch), neurons, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    values[batch.size :, : batch.tail] = values[: batch.size, : batch.tail]
    return values


def base_outcome(model: nn.Module, batch: Batch) -> Tensor:
    with torch.inference_mode():
        return outcome(readout_logits(model, batch), batch)


def hooked_effects(model: nn.Module, batch: Batch, layer: int, neurons: list[int], values: Tensor) -> Tensor:
    """Y(base) - Y(do(h_j := value_j)) by one full, hooked forward pass per neuron, [B, n]."""
    full = values.expand(2 * batch.size, edited_width(batch), len(neurons))
    base = base_outcome(model, batch)
    return torch.stack(
        [
            base - patched_outcome(model, batch, {Mediator("neurons", layer, (neuron,)): full[..., place, None]})
            for place, neuron in enumerate(neurons)
        ],
        dim=1,
    )
