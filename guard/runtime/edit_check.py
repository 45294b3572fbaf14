"""Is this the edit of that, and of nothing else? What both self-tests ask of every guarded layer, and its extremes.

Numbers are compared as bits where nothing may change, so that neither rounding nor NaN hides a change.
"""

import torch
from torch import Tensor

from guard.ops import reference
from guard.runtime.buffers import EditBuffers

SEED = 0
EXTREME = 1000.0  # far above any neuron, far below float16's end
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def fault_in(edit: EditBuffers, h: Tensor, edited: Tensor, active: Tensor | None) -> str | None:
    """What is wrong with `edited` as the edit of `h`, both [..., d_ff], where `active`, bool [...]; else None."""
    gate = torch.zeros(edit.d_ff, dtype=torch.bool, device=h.device).index_fill(0, edit.neurons.long(), True)
    touched = gate.expand(h.shape) if active is None else active[..., None] & gate
    integer = INTEGERS[h.element_size()]
    if not torch.equal(edited.view(integer)[~touched], h.contiguous().view(integer)[~touched]):
        return "the edit changes neurons outside the gate, or tokens that are not active"
    values = edited.index_select(-1, edit.neurons.long())
    inside = (values >= edit.lower.to(h.dtype)) & (values <= edit.upper.to(h.dtype)) | values.isnan()
    if active is not None:
        inside |= ~active[..., None]
    if not bool(inside.all()):
        return "an edited neuron is outside its bounds"
    expected = reference.edit_neurons(h, edit.neurons, edit.scale, edit.lower, edit.upper, active)
    if not torch.allclose(edited, expected, rtol=2 * torch.finfo(h.dtype).eps, atol=0.0, equal_nan=True):
        return "the edited neurons are not those of the definition"
    return None


def extreme_value(edit: EditBuffers) -> Tensor:
    """+-EXTREME for each edited neuron, float32 [k]: set to it, they must show in the logits."""
    signs = torch.randint(2, edit.scale.shape, generator=torch.Generator().manual_seed(SEED)) * 2 - 1
    return (signs * EXTREME).to(edit.scale)
