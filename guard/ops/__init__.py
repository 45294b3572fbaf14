"""The edit as one function; which kernel runs is the dispatcher's affair."""

import torch
from torch import Tensor

from guard.ops import register as register  # registers the operator


def edit_neurons(
    h: Tensor, neurons: Tensor, scale: Tensor, lower: Tensor, upper: Tensor, active: Tensor | None = None
) -> Tensor:
    """clip(scale * h, lower, upper) for the gate's neurons of active tokens, `h` [..., d_ff] elsewhere, bit for bit.

    `neurons` int32 [k], unique; `scale`, `lower`, `upper` float32 [k]; `active` bool [...], all tokens if None.
    Defined, with its rounding and its treatment of NaN, by `guard.ops.reference.edit_neurons`. Gradients flow to `h`
    alone. Raises EditNotAppliedError if shapes or dtypes do not fit.
    """
    edited: Tensor = torch.ops.neuron_guard.edit_neurons.default(h, neurons, scale, lower, upper, active)
    return edited


__all__ = ["edit_neurons"]
