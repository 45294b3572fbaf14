"""The residual stream read out, token by token: is the edit active here?

A product and a sum rather than a matrix product: autocast and TF32 leave it alone, and a token's score does not depend
on the batch it came in. It costs one pass over a tensor that the norm reads anyway.
"""

import torch
from torch import Tensor

from guard.errors import EditNotAppliedError
from guard.runtime.buffers import Float32Buffers
from guard.spec.edit_spec import Trigger


class TriggerReadout(Float32Buffers):
    """`direction` float32 [d_model] and `threshold` float32 [], from a spec's trigger."""

    direction: Tensor
    threshold: Tensor

    def __init__(self, trigger: Trigger, device: torch.device | str) -> None:
        super().__init__()
        direction = torch.tensor(trigger.direction, dtype=torch.float32, device=device)
        self.register_buffer("direction", direction, persistent=False)
        # a tensor, not a number: torch.compile bakes Python floats in
        threshold = torch.tensor(trigger.threshold, dtype=torch.float32, device=device)
        self.register_buffer("threshold", threshold, persistent=False)

    def forward(self, residual: Tensor) -> Tensor:
        """active[t] = residual[t] . direction > threshold: bool [...] from `residual` [..., d_model].

        A NaN score is not active: the logits of that token are NaN too.
        """
        active: Tensor = self.score(residual) > self.threshold
        return active

    def score(self, residual: Tensor) -> Tensor:
        """residual[t] . direction, [...], in float32 (float64 for a float64 residual stream)."""
        if residual.shape[-1] != self.direction.shape[0]:
            raise EditNotAppliedError(
                f"the trigger reads a residual stream of width {self.direction.shape[0]}, "
                f"but one of width {residual.shape[-1]} arrives."
            )
        wide = residual if residual.dtype == torch.float64 else residual.float()
        return (wide * self.direction).sum(dim=-1)
