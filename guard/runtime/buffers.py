"""One layer's edit as tensors on a device.

Buffers, so that `.to(device)` takes them along with the model; not persistent, so that the model's state_dict stays its
own; float32 always, whatever the model is cast to, since a bound rounded to bfloat16 is another bound.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from guard.errors import ModelMismatchError, SpecError
from guard.ops import ActivationName, EditTensors, activate_edit, apply_edit
from guard.ops.checks import check_parameters
from guard.ops.edit_tensors import TENSORS
from guard.spec.edit_spec import LayerEdit

FORMS = EditTensors._fields[:TENSORS]


class Float32Buffers(nn.Module):
    """A module whose buffers follow the model to its device and keep their own dtype."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in kept.items():
            self._buffers[name] = buffer.to(getattr(self, name).device)
        return self


class EditBuffers(Float32Buffers):
    """The edit of one layer with `d_ff` neurons: all of `EditTensors`, as buffers.

    The same numbers stand there in more than one form. To change an edit that is installed, call `assign`.
    """

    neurons: Tensor
    scale: Tensor
    lower: Tensor
    upper: Tensor
    slots: Tensor
    scale_of_all: Tensor
    lower_of_all: Tensor
    upper_of_all: Tensor
    table: Tensor

    def __init__(self, neurons: Tensor, scale: Tensor, lower: Tensor, upper: Tensor, d_ff: int) -> None:
        super().__init__()
        self.d_ff = d_ff
        check_parameters(neurons, scale, lower, upper)
        # copies, since `assign` writes to them
        neurons, scale, lower, upper = (values.clone() for values in (neurons, scale, lower, upper))
        forms = EditTensors.of(neurons, scale, lower, upper, d_ff)
        for name, values in zip(FORMS, forms.tensors, strict=True):
            self.register_buffer(name, values, persistent=False)
        self._held = forms

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._hold(self._held.rescales)
        return self

    def _hold(self, rescales: bool) -> None:
        self._held = EditTensors(*(getattr(self, name) for name in FORMS), rescales)  # type: ignore[call-arg]

    @classmethod
    def from_edit(cls, edit: LayerEdit, device: torch.device | str, d_ff: int) -> Self:
        """The tensors of `edit`; ModelMismatchError if it names a neuron beyond the `d_ff` of the layer."""
        if edit.neurons[-1] >= d_ff:
            raise ModelMismatchError(
                f"the edit of layer {edit.layer} names neuron {edit.neurons[-1]}, but the layer has {d_ff} neurons."
            )

        def parameters(values: tuple[float, ...]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        neurons = torch.tensor(edit.neurons, dtype=torch.int32, device=device)
        return cls(neurons, parameters(edit.scale), parameters(edit.lower), parameters(edit.upper), d_ff)

    def shard(self, rank: int, world_size: int) -> "EditBuffers":
        """The part of the edit that rank `rank` of `world_size` owns, counted from its own first neuron.

        Tensor parallelism gives each rank d_ff / world_size consecutive neurons; the gate is sorted, so a rank's part
        is one slice of it, empty where the rank owns none. SpecError if d_ff does not divide.
        """
        width, rest = divmod(self.d_ff, world_size)
        if rest or not 0 <= rank < world_size:
            raise SpecError(f"{self.d_ff} neurons cannot be cut into rank {rank} of {world_size} equal shards.")
        edges = torch.tensor([rank * width, (rank + 1) * width], device=self.neurons.device)
        first, end = torch.searchsorted(self.neurons, edges).tolist()
        neurons, scale, lower, upper = (
            values.narrow(0, first, end - first) for values in (self.neurons, self.scale, self.lower, self.upper)
        )
        return EditBuffers(neurons - rank * width, scale, lower, upper, width)

    def tensors(self) -> EditTensors:
        """The edit in the form that `guard.ops` takes, on the device where the buffers are now."""
        if torch.compiler.is_compiling():
            return EditTensors(*(getattr(self, name) for name in FORMS))
        return self._held  # nn.Module's look-up of nine buffers would cost more than the edit of a token

    def assign(self, scale: Tensor, lower: Tensor, upper: Tensor) -> None:
        """Change what is done to the same neurons (each float32 [k]), in place: compiled and captured graphs follow."""
        check_parameters(self.neurons, scale, lower, upper)
        with torch.no_grad():
            forms = EditTensors.of(self.neurons, scale, lower, upper, self.d_ff)
            for name, values in zip(FORMS, forms.tensors, strict=True):
                getattr(self, name).copy_(values)
        self._hold(forms.rescales)

    def forward(self, h: Tensor, active: Tensor | None = None) -> Tensor:
        """The neurons `h` [..., d_ff] with the edit applied where `active` (bool [...], all tokens if None)."""
        return apply_edit(h, self.tensors(), active)

    def activate(
        self, activation: ActivationName, gate: Tensor, up: Tensor | None, active: Tensor | None = None
    ) -> Tensor:
        """The neurons activation(gate) * up, made and edited in one: `guard.ops.activate_edit`."""
        return activate_edit(activation, gate, up, self.tensors(), active)
