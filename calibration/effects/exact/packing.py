"""The edited columns of a batch without repetition, and what Y reads at each.

The two rows of a request differ only after the prompt. Packed, a request is one sequence of S = tail + 2(C - 1)
contexts: the template tail, the forced compliance, the forced refusal; the last two do not see each other. So each
context that exact effects have to recompute is computed once, and its log-normaliser enters Y with the sum of its
weights. At the last prompt token that sum is 1/|compliance| - 1/|refusal|, and so vanishes where the two are of equal
length.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from calibration.prompts.sequences import Batch
from guard.errors import NeuronGuardError


@dataclass(frozen=True)
class Packing:
    """Index tensors from a batch's rows and columns to packed contexts.

    `rows` int64 [B, S] and `columns` int64 [S] place each context in the batch. Of the contexts, those from `tail - 1`
    on are read out: N = 1 + 2(C - 1). A *slot* is one continuation token: `slot_context` int64 [2C] says by which
    read-out context it is predicted, `slot_target` int64 [B, 2C] which token it is, `slot_weight` float64 [B, 2C] its
    weight in Y.
    """

    batch: Batch
    rows: Tensor
    columns: Tensor
    slot_context: Tensor
    slot_target: Tensor
    slot_weight: Tensor

    @property
    def width(self) -> int:
        """S, contexts per request."""
        return self.columns.shape[0]

    @property
    def readout_width(self) -> int:
        """N, contexts per request that are read out: the last N of S."""
        return self.width - self.batch.tail + 1

    @property
    def normaliser_weight(self) -> Tensor:
        """The weight of each read-out context's log-normaliser in Y, with its sign turned: float64 [B, N]."""
        zeros = self.slot_weight.new_zeros(self.batch.size, self.readout_width)
        return zeros.index_add(1, self.slot_context, self.slot_weight)

    def gather(self, full: Tensor) -> Tensor:
        """[2B, P + C, ...] -> [B, S, ...]."""
        return full[self.rows.to(full.device), self.columns.to(full.device)]

    def to(self, device: torch.device) -> "Packing":
        """The same packing with its index tensors on `device`."""
        names = ("rows", "columns", "slot_context", "slot_target", "slot_weight")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def gather_edited(self, edited: Tensor) -> Tensor:
        """[2B, T_edited, ...] -> [B, S, ...]; NeuronGuardError if a request's rows disagree on its template tail."""
        tail = self.batch.tail
        compliance_row, refusal_row = edited[:, :tail].chunk(2)
        if not torch.allclose(compliance_row, refusal_row, rtol=0.02, atol=0.02, equal_nan=True):
            raise NeuronGuardError(
                "the values for a request's two rows differ on its prompt; give both rows the same values there."
            )
        columns = self.columns - self.batch.edited.start
        return edited[self.rows.to(edited.device), columns.to(edited.device)]

    def related(self) -> Tensor:
        """Whether a packed context is on the way to another, bool [S, S] (query, key): not across the two branches."""
        tail, response = self.batch.tail, self.batch.continuation_width - 1
        branch = torch.tensor([0] * tail + [1] * response + [2] * response, device=self.columns.device)
        return (branch[:, None] == branch) | (branch == 0)


def pack(batch: Batch) -> Packing:
    """The packing of a batch."""
    device = batch.input_ids.device
    size, tail, width = batch.size, batch.tail, batch.continuation_width
    request = torch.arange(size, device=device)[:, None]
    prompt = torch.arange(batch.edited.start, batch.prompt_width, device=device)
    response = torch.arange(batch.prompt_width, batch.edited.stop, device=device)
    first = request.expand(size, tail + width - 1)
    mask = batch.continuation_mask.double()  # [2B, C]
    per_token = mask / mask.sum(dim=1, keepdim=True)
    compliance_target, refusal_target = batch.targets.chunk(2)
    compliance_weight, refusal_weight = per_token.chunk(2)
    return Packing(
        batch=batch,
        rows=torch.cat([first, (request + size).expand(size, width - 1)], dim=1),
        columns=torch.cat([prompt, response, response]),
        slot_context=torch.tensor([0, *range(1, width), 0, *range(width, 2 * width - 1)], device=device),
        slot_target=torch.cat([compliance_target, refusal_target], dim=1),
        slot_weight=torch.cat([compliance_weight, -refusal_weight], dim=1),
    )
