"""The columns through which a layer's neurons write, whatever kind of linear map the down projection is.

Read off the weight where there is one; a quantised map is asked for its columns by passing the unit vectors through it,
which costs one pass of d_ff tokens and is exact as far as the map is linear.
"""

import torch
from torch import Tensor, nn

from guard.errors import UnsupportedModelError
from guard.families.architectures import widths
from guard.runtime.wrappers import Wrapper

UNITS_AT_ONCE = 1024


def own_weight(module: nn.Module) -> Tensor | None:
    """The weight [out, in] of a plain linear map (nn.Linear, Conv1D); None for a quantised or wrapped one."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or type(weight) not in (nn.Parameter, Tensor) or not weight.is_floating_point():
        return None
    entering, leaving = widths(module)
    if isinstance(module, nn.Linear):
        return weight if weight.shape == (leaving, entering) else None
    return weight.T if hasattr(module, "nx") and weight.shape == (entering, leaving) else None


def down_weight(module: nn.Module, dtype: torch.dtype, run_in: torch.dtype) -> Tensor:
    """The weight [d_model, d_ff] of a down projection in `dtype`; a quantised one is run in `run_in` to find it."""
    if isinstance(module, Wrapper):
        raise UnsupportedModelError(
            "a guard is installed on this model: remove it before calibrating, and pass its edits instead."
        )
    weight = own_weight(module)
    return _asked(module, run_in).to(dtype) if weight is None else weight.to(dtype)


@torch.no_grad()
def _asked(module: nn.Module, dtype: torch.dtype) -> Tensor:
    """The columns [d_model, d_ff] of an affine map, by its answers to the unit vectors."""
    d_ff, _ = widths(module)
    device = next(iter([*module.parameters(), *module.buffers()])).device
    nothing = module(torch.zeros(1, d_ff, dtype=dtype, device=device))
    starts = range(0, d_ff, UNITS_AT_ONCE)
    units = (torch.arange(start, min(start + UNITS_AT_ONCE, d_ff), device=device) for start in starts)
    return torch.cat([module(nn.functional.one_hot(some, d_ff).to(dtype)) - nothing for some in units]).T
