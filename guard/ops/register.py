"""The edit as a torch operator, `neuron_guard::edit_neurons`.

An operator, because torch.compile then calls it as it stands: nothing is traced away, no graph breaks. Defined through
`torch.library.Library` rather than `custom_op` (twice the cost of a call) or `triton_op` (fails to compile where there
is no GPU). It is functional and returns a contiguous tensor. This path copies `h` once and works on the k edited
columns alone; it serves every device, and a device's own kernel takes its place by being registered for that dispatch
key.
"""

from typing import Any

import torch
from torch import Tensor

from guard.errors import EditNotAppliedError

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

library = torch.library.Library("neuron_guard", "DEF")  # type: ignore[no-untyped-call]
library.define(  # type: ignore[no-untyped-call]
    "edit_neurons(Tensor h, Tensor neurons, Tensor scale, Tensor lower, Tensor upper, Tensor? active) -> Tensor"
)


def check_arguments(
    h: Tensor, neurons: Tensor, scale: Tensor, lower: Tensor, upper: Tensor, active: Tensor | None
) -> None:
    """Raise EditNotAppliedError unless shapes and dtypes are those of the definition; values are not looked at."""
    if h.dtype not in DTYPES or h.dim() == 0:
        raise EditNotAppliedError(
            f"neurons must be a tensor [..., d_ff] of one of {DTYPES}, not {h.dtype} of shape {tuple(h.shape)}."
        )
    if neurons.dtype != torch.int32 or neurons.dim() != 1:
        raise EditNotAppliedError(f"the gate must be int32 [k], not {neurons.dtype} of shape {tuple(neurons.shape)}.")
    for name, values in (("scale", scale), ("lower", lower), ("upper", upper)):
        if values.dtype != torch.float32 or values.shape != neurons.shape:
            raise EditNotAppliedError(
                f"{name} must be float32 of shape {tuple(neurons.shape)}, "
                f"not {values.dtype} of shape {tuple(values.shape)}."
            )
    if active is not None and (active.dtype != torch.bool or active.shape != h.shape[:-1]):
        raise EditNotAppliedError(
            f"active must be bool of shape {tuple(h.shape[:-1])}, not {active.dtype} of shape {tuple(active.shape)}."
        )


def edit_columns(
    h: Tensor, neurons: Tensor, scale: Tensor, lower: Tensor, upper: Tensor, active: Tensor | None
) -> Tensor:
    """The edit on any device: copy `h`, then gather, scale, clip, select and put back its k columns."""
    check_arguments(h, neurons, scale, lower, upper, active)
    wide = torch.float64 if h.dtype == torch.float64 else torch.float32
    index = neurons.long()
    columns = h.index_select(-1, index)  # [..., k]
    edited = torch.clamp(columns.to(wide) * scale.to(wide), lower.to(wide), upper.to(wide)).to(h.dtype)
    if active is not None:
        edited = torch.where(active[..., None], edited, columns)
    return h.clone(memory_format=torch.contiguous_format).index_copy_(-1, index, edited)


def fake(h: Tensor, neurons: Tensor, scale: Tensor, lower: Tensor, upper: Tensor, active: Tensor | None) -> Tensor:
    """Shape, dtype and layout of the result, for tracing."""
    check_arguments(h, neurons, scale, lower, upper, active)
    return h.new_empty(h.shape)


def keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 (called by name)
    """Keep the k columns rather than all of `h`, so that a guarded layer holds no second copy of its neurons."""
    h, neurons, scale, lower, upper, active = inputs
    ctx.save_for_backward(h.index_select(-1, neurons.long()), neurons, scale, lower, upper, active)


def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
    """Gradient to `h`: 1 where untouched, scale[j] where edited and within the bounds, 0 where clipped."""
    columns, neurons, scale, lower, upper, active = ctx.saved_tensors
    wide = torch.float64 if columns.dtype == torch.float64 else torch.float32
    index = neurons.long()
    scaled = columns.to(wide) * scale.to(wide)  # [..., k]
    passes = (scaled >= lower.to(wide)) & (scaled <= upper.to(wide))
    arriving = gradient.index_select(-1, index)
    leaving = torch.where(passes, arriving.to(wide) * scale.to(wide), 0.0).to(gradient.dtype)
    if active is not None:
        leaving = torch.where(active[..., None], leaving, arriving)
    return gradient.index_copy(-1, index, leaving), None, None, None, None, None


library.impl("edit_neurons", edit_columns, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("neuron_guard::edit_neurons", fake, lib=library)
torch.library.register_autograd("neuron_guard::edit_neurons", backward, setup_context=keep_for_backward, lib=library)
