"""What a decoder layer was given besides the residual stream, laid out for packed contexts.

Packing (`packing.py`) reorders columns and takes them from two rows; so masks, positions, rotary embeddings and alibi
are taken from the recorded run, entry by entry, and the two branches are kept from seeing each other. Nothing is worked
out anew, so sliding windows, layers without positions and whatever else a mask may say come along. An argument that
nobody has looked at is an error.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from calibration.effects.exact.late_trace import LateTrace
from calibration.effects.exact.packing import Packing
from calibration.runs.layer_calls import each_tensor
from guard.errors import UnsupportedModelError

MASK = "attention_mask"
ALIBI = "alibi"
BY_COLUMN = ("position_ids", "position_embeddings")


@dataclass(frozen=True)
class PackedArguments:
    """The arguments of a layer for the B prefixes, P' columns each, and for the S packed contexts after each of them.

    Tensors have B as their first dimension; alibi has its heads beside it, and is given to the layer in one with it.
    """

    prefix: dict[str, Any]
    packed: dict[str, Any]

    def of_prefixes(self) -> dict[str, Any]:
        """What the layer is given for all prefixes."""
        return _given(self.prefix)

    def of(self, requests: slice, copies: int) -> dict[str, Any]:
        """What the layer is given for the packed contexts of the requests [b], each `copies` times in a row."""
        return _given(
            {
                name: each_tensor(value, lambda tensor: tensor[requests].repeat_interleave(copies, dim=0))
                for name, value in self.packed.items()
            }
        )


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.flatten(0, 1) if name == ALIBI and value is not None else value for name, value in arguments.items()
    }


def pack_arguments(trace: LateTrace, index: int, dtype: torch.dtype) -> PackedArguments:
    """The arguments that layer `index` was given in the recorded run, for prefixes and packed contexts.

    Floating-point tensors come in `dtype`. UnsupportedModelError for an argument that has no known layout.
    """
    packing = trace.packing.to(trace.entering[index].device)
    size, before = packing.batch.size, packing.batch.edited.start
    arguments = {MASK: None} | trace.arguments[index]
    prefix, packed = {}, {}
    for name, value in arguments.items():
        if name == MASK:
            mask = _in_dtype(recorded_mask(trace, index), dtype)
            prefix[name], packed[name] = mask[:size, :, :before, :before], packed_mask(packing, mask)
        elif name in BY_COLUMN:
            rows = each_tensor(value, lambda tensor: _by_row(packing, _in_dtype(tensor, dtype)))
            prefix[name] = each_tensor(rows, lambda tensor: tensor[:size, :before])
            packed[name] = each_tensor(rows, packing.gather)
        elif name == ALIBI and value is not None:
            prefix[name], packed[name] = _alibi(packing, value.to(dtype))
        elif isinstance(value, Tensor | tuple):
            raise UnsupportedModelError(
                f"layer {index} is given {name}, which exact effects do not know how to lay out for single neurons."
            )
        else:
            prefix[name] = packed[name] = value
    return PackedArguments(prefix, packed)


def _in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _by_row(packing: Packing, tensor: Tensor) -> Tensor:
    """[2B or 1, T, ...] -> [2B, T, ...]."""
    return tensor.expand(2 * packing.batch.size, *tensor.shape[1:])


def recorded_mask(trace: LateTrace, index: int) -> Tensor:
    """The attention mask of layer `index`, [2B, 1 or heads, T, T] (query, key), True or a bias to add in `dtype`.

    Where the layer was given none, every column sees those before it and itself.
    """
    mask, stream = trace.arguments[index].get(MASK), trace.entering[index]
    columns = stream.shape[1]
    if mask is None:
        later = torch.ones(columns, columns, dtype=torch.bool, device=stream.device).triu(1)
        mask = torch.zeros(1, 1, columns, columns, dtype=trace.dtype, device=stream.device)
        mask = mask.masked_fill(later, torch.finfo(trace.dtype).min)
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[-1] != columns:
        raise UnsupportedModelError(
            "exact effects need attention masks by query and key: load the model with attn_implementation='sdpa' or "
            "'eager'."
        )
    return mask.expand(2 * trace.packing.batch.size, *mask.shape[1:])


def packed_mask(packing: Packing, mask: Tensor) -> Tensor:
    """`mask` [2B, heads, T, T] for packed contexts (queries), prefix and packed contexts (keys): [B, heads, S, P' + S].

    A context on padding, which sees nothing, is let see itself, so that it has a value; it is never read out.
    """
    packing = packing.to(mask.device)
    by_query = packing.gather(mask.transpose(1, 2))  # [B, S, heads, T]
    apart = ~packing.related()[:, None]  # [S, 1, S]
    itself = torch.eye(packing.width, dtype=torch.bool, device=mask.device)[:, None]
    among = by_query[..., packing.columns]  # [B, S, heads, S]
    if mask.dtype == torch.bool:
        among = (among & ~apart) | itself
    else:
        lowest = torch.finfo(mask.dtype).min
        among = among.masked_fill(apart, lowest)
        among = among.masked_fill(itself & (among <= lowest / 2), 0.0)
    return torch.cat([by_query[..., : packing.batch.edited.start], among], dim=-1).transpose(1, 2)


def _alibi(packing: Packing, alibi: Tensor) -> tuple[Tensor, Tensor]:
    """Biases by key, [2B * heads, 1, T] or [2B, heads, 1, T], for prefixes and packed contexts, with B in front."""
    size, before = packing.batch.size, packing.batch.edited.start
    by_key = alibi.reshape(2 * size, -1, alibi.shape[-1]).transpose(1, 2)  # [2B, T, heads]
    prefix = by_key[:size, :before].transpose(1, 2)[:, :, None]  # [B, heads, 1, P']
    packed = torch.cat([by_key[:size, :before], packing.gather(by_key)], dim=1).transpose(1, 2)[:, :, None]
    return prefix, packed
