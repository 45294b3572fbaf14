"""What a linear map stores, as plain tensors, whatever quantisation library has made it.

A library keeps its integers and scales where it likes: in the state_dict, inside tensors of its own kind, on an object
beside the weight. Here they are found without importing any of the libraries, and without changing the model.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from guard.errors import UnsupportedModelError
from guard.families.architectures import widths


def stored_tensors(linear: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and value of each tensor that `linear` computes with, in an order that is always the same.

    A plain map has weight and bias. A quantised one has its integers and, by their names in that library, the scales,
    zero points and code books that belong to them. UnsupportedModelError where weights are packed into anything but
    tensors, as torch.ao's own modules do.
    """
    _settle(linear)
    # bitsandbytes 0.50 transposes the scales of 4-bit weights that have run on a CPU when asked for a state_dict
    state = linear.named_parameters() if _four_bit(linear) else linear.state_dict().items()
    for name, stored in sorted(state, key=lambda item: item[0]):
        if not isinstance(stored, Tensor):
            raise UnsupportedModelError(
                f"a projection keeps its {name} as {type(stored).__name__}, not as tensors: quantise the model with "
                "bitsandbytes, torchao or quanto instead."
            )
        yield from _plain_tensors(name, stored.detach())
        yield from _beside(f"{name}.quant_state", getattr(stored, "quant_state", None))


def _four_bit(linear: nn.Module) -> bool:
    return hasattr(getattr(linear, "weight", None), "quant_state")


def _settle(linear: nn.Module) -> None:
    """Let bitsandbytes bring 4-bit weights into the form in which they run.

    On a CPU with AVX-512 BF16 it lays them out anew when they are first used, and rounds their scales for good: without
    this, a model that has run would be another one than the same model freshly loaded.
    """
    weight = getattr(linear, "weight", None)
    if _four_bit(linear) and isinstance(weight, Tensor) and weight.device.type == "cpu":
        linear(torch.zeros(1, widths(linear)[0], dtype=torch.bfloat16))


def _plain_tensors(name: str, stored: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensor itself, or those that it is made of where it is of a library's own kind (torchao's)."""
    flatten = getattr(stored, "__tensor_flatten__", None)
    if flatten is None:
        yield name, stored
        return
    inner, _ = flatten()
    for part in sorted(inner):
        yield from _plain_tensors(f"{name}.{part}", getattr(stored, part))


def _beside(name: str, holder: object) -> Iterator[tuple[str, Tensor]]:
    """The tensors of what bitsandbytes keeps beside a weight, and of what is inside that where scales are nested."""
    for part, value in sorted(getattr(holder, "__dict__", {}).items()):
        if isinstance(value, Tensor):
            yield f"{name}.{part}", value
        elif part == "state2":
            yield from _beside(f"{name}.{part}", value)
