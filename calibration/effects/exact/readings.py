"""How Y moves when what enters the final norm moves: the targets' logits and the log-normalisers, weighed together."""

from dataclasses import dataclass

import torch
from torch import Tensor

from calibration.effects.exact.final_norm import FinalNorm, Prediction
from calibration.effects.exact.log_normaliser import by_displacements
from calibration.effects.exact.packing import Packing


@dataclass(frozen=True)
class Reading:
    """How Y of some requests is read from moves of logits and of log-normalisers."""

    packing: Packing
    requests: slice

    @property
    def context(self) -> Tensor:
        """The read-out context that predicts each slot, int64 [2C]."""
        return self.packing.slot_context

    @property
    def target(self) -> Tensor:
        """Each slot's token, int64 [b, 2C]."""
        return self.packing.slot_target[self.requests]

    @property
    def normalised(self) -> tuple[Tensor, Tensor]:
        """Request and read-out context of the M log-normalisers whose weight in Y is not zero, int64 [M] each."""
        request, position = (self.packing.normaliser_weight[self.requests].abs() > 1e-12).nonzero(as_tuple=True)
        return request, position

    def of_targets(self, logits: Tensor) -> Tensor:
        """The entries of `logits` [b, N, V] at each slot's context and token: [b, 2C, 1]."""
        return logits[:, self.context].gather(-1, self.target[..., None])

    def effects(self, base: Prediction, shrink: Tensor, direct: Tensor, normaliser: Tensor) -> Tensor:
        """Y(base) - Y(moved), [b, n] nats.

        `base` [b, N, V] and `shrink` [b, N, n] (t - 1); `direct` [b, 2C, n] is e . u of the slots' targets;
        `normaliser` [M, n] the moves of the log-normalisers of `normalised`.
        """
        moved = shrink[:, self.context] * self.of_targets(base.rescaled) + direct
        moved = base.capped(moved, None if base.logits is None else self.of_targets(base.logits))
        slot_weight = self.packing.slot_weight[self.requests].to(moved.dtype)
        request, position = self.normalised
        weight = self.packing.normaliser_weight[self.requests].to(moved.dtype)[request, position, None]
        return -torch.einsum("bs,bsn->bn", slot_weight, moved).index_add(0, request, -normaliser * weight)


def displaced_effects(packing: Packing, norm: FinalNorm, requests: slice, base: Tensor, moved: Tensor) -> Tensor:
    """Y(base) - Y(moved), [b, n] nats, from what enters the final norm: [b, N, d_model] and [b, n, N, d_model]."""
    predicted, x = norm.predict(base), norm.norm.centred(base)  # [b, N, V], [b, N, d_model]
    away = norm.norm.centred(moved.transpose(1, 2) - base[:, :, None])  # [b, N, n, d_model]
    along = (away @ x[..., None])[..., 0]  # [b, N, n]
    shrink = norm.norm.shrink(x, along, away.square().sum(-1))
    rms = norm.norm.mean_square(x).sqrt()[..., None]
    displacement = away * ((1 + shrink) / rms)[..., None]
    read = Reading(packing, requests)
    direct = torch.einsum("bsd,bsnd->bsn", norm.unembedding[read.target], displacement[:, read.context])
    request, position = read.normalised
    normaliser = by_displacements(
        predicted.at(request, position), shrink[request, position], displacement[request, position], norm.unembedding
    )
    return read.effects(predicted, shrink, direct, normaliser)
