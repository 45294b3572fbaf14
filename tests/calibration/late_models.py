"""Tiny float64 models, batches and hook-by-hook effects for the tests of interventions and exact effects."""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from calibration.interventions import Mediator, patched_outcome
from calibration.outcome import outcome, readout_logits
from calibration.sequences import Batch, Example, collate
from tests.conftest import make_tiny_model


def _norm_in_own_dtype(norm: Any, stream: Tensor) -> Tensor:
    """RMSNorm without transformers' cast to float32, so that a float64 model is float64 throughout."""
    scaled: Tensor = norm.weight * stream * torch.rsqrt(stream.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    return scaled


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
        for module in model.modules():
            if hasattr(module, "variance_epsilon"):
                module.forward = MethodType(_norm_in_own_dtype, module)
    return model.requires_grad_(False)


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
