"""The exact effect on Y of each neuron of the last layer, in closed form.

With r the residual stream before the final norm at a context, w_j neuron j's down-projection column, d_j the change of
its activation, g the norm's weight and u_v the unembedding row of token v, RMSNorm gives for every neuron at once

    logit_v(j) = (g * (r + d_j w_j)) . u_v / rms_j,    rms_j^2 = (|r|^2 + 2 d_j r.w_j + d_j^2 |w_j|^2) / d_model + eps

so with t_j = rms_0 / rms_j and b_vj = (g * u_v) . w_j, a logit moves by (t_j - 1) logit_v + t_j d_j b_vj / rms_0, and

    Y(base) - Y(do(h_j := c)) = - sum_slots weight (move of the target's logit) + sum_contexts weight A_j

with A_j the move of the log-normaliser (`log_normaliser.py`). Only differences are computed, never two Y's subtracted,
so small effects keep their digits. Nothing is run; nothing grows with the model's depth.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from calibration.late_trace import LateTrace, down_weight
from calibration.log_normaliser import along_directions, by_displacements
from calibration.packing import Packing
from guard.errors import UnsupportedModelError

MEMORY_LIMIT = 1 << 30


@dataclass(frozen=True)
class FinalNorm:
    """The last RMSNorm and the unembedding, in the dtype of the computation.

    `unembedding` [V, d_model] has the norm's weight g multiplied in.
    """

    unembedding: Tensor
    epsilon: float

    def mean_square(self, stream: Tensor) -> Tensor:
        """rms^2 = |r|^2 / d_model + eps of `stream` [..., d_model]: [...]."""
        return stream.square().mean(-1) + self.epsilon

    def log_probabilities(self, stream: Tensor) -> Tensor:
        """log p over the vocabulary from the residual stream [..., d_model]: [..., V]."""
        normed = stream * self.mean_square(stream).rsqrt()[..., None]
        return (normed @ self.unembedding.T).log_softmax(-1)


def final_norm_of(trace: LateTrace) -> FinalNorm:
    """The final norm and unembedding of the traced model; UnsupportedModelError if they have no known closed form."""
    norm = trace.architecture.final_norm(trace.model)
    linear = trace.architecture.unembedding(trace.model)
    epsilon, weight = getattr(norm, "variance_epsilon", None), getattr(norm, "weight", None)
    bias: Tensor | None = linear.bias
    if not isinstance(epsilon, float) or not isinstance(weight, Tensor) or bias is not None:
        raise UnsupportedModelError(
            f"no closed form is known for a final {type(norm).__name__} with this unembedding: RMSNorm and an "
            f"unembedding without bias are needed."
        )
    return FinalNorm(linear.weight.to(trace.dtype) * weight.to(trace.dtype), epsilon)


def shrink_of(norm: FinalNorm, stream: Tensor, along: Tensor, squared: Tensor) -> Tensor:
    """t - 1 when `stream` [..., d_model] is displaced by e: `along` = r.e and `squared` = |e|^2, both [..., n]."""
    base = norm.mean_square(stream)[..., None] * stream.shape[-1]
    return torch.expm1(-0.5 * torch.log1p((2 * along + squared) / base))


def last_layer_effects(trace: LateTrace, neurons: Tensor, values: Tensor, memory_limit: int = MEMORY_LIMIT) -> Tensor:
    """Y(base) - Y(do(h_j := values_j at the edited columns)) for each neuron of the last layer, [B, n] nats.

    `neurons` int64 [n]; `values` broadcasts to [2B, T_edited, n]. Temporaries stay near `memory_limit` bytes.
    """
    norm = final_norm_of(trace)
    layer = len(trace.layers) - 1
    packing = trace.packing
    width, vocabulary = packing.readout_width, norm.unembedding.shape[0]
    size_of = torch.finfo(trace.dtype).bits // 8
    change = trace.change(layer, neurons, values)[:, -width:]  # [B, N, n]
    weight = down_weight(trace, layer)[:, neurons]  # [d_model, n]
    stream = trace.final_readout()
    requests = max(1, memory_limit // (12 * width * vocabulary * size_of))
    block = max(1, memory_limit // (6 * vocabulary * size_of))
    rows = []
    for start in range(0, packing.batch.size, requests):
        some = slice(start, start + requests)
        log_p = norm.log_probabilities(stream[some])  # [b, N, V]
        blocks = [
            _effects(trace, norm, some, log_p, change[some, :, at : at + block], weight[:, at : at + block])
            for at in range(0, len(neurons), block)
        ]
        rows.append(torch.cat(blocks, dim=1))
    return torch.cat(rows)


def _effects(
    trace: LateTrace,
    norm: FinalNorm,
    requests: slice,
    log_p: Tensor,
    change: Tensor,
    weight: Tensor,
) -> Tensor:
    """Effects [b, n] of some neurons: `log_p` [b, N, V], `change` [b, N, n], `weight` [d_model, n]."""
    stream = trace.final_readout()[requests]  # [b, N, d_model]
    rms = norm.mean_square(stream).sqrt()[..., None]
    shrink = shrink_of(norm, stream, change * (stream @ weight), change.square() * weight.square().sum(0))  # [b, N, n]
    step = (1 + shrink) * change / rms
    read = Reading(trace.packing, requests)
    direct = norm.unembedding[read.target] @ weight  # [b, 2C, n]
    request, position = read.normalised
    normaliser = along_directions(
        log_p[request, position], shrink[request, position], step[request, position], norm.unembedding, weight
    )  # [M, n]
    return read.effects(log_p, shrink, step[:, read.context] * direct, normaliser)


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

    def effects(self, log_p: Tensor, shrink: Tensor, direct: Tensor, normaliser: Tensor) -> Tensor:
        """Y(base) - Y(moved), [b, n] nats.

        `log_p` [b, N, V] and `shrink` [b, N, n] (t - 1); `direct` [b, 2C, n] is e . u of the slots' targets;
        `normaliser` [M, n] the moves of the log-normalisers of `normalised`.
        """
        target_log_p = log_p[:, self.context].gather(-1, self.target[..., None])  # [b, 2C, 1]
        moved = shrink[:, self.context] * target_log_p + direct
        slot_weight = self.packing.slot_weight[self.requests].to(moved.dtype)
        request, position = self.normalised
        weight = self.packing.normaliser_weight[self.requests].to(moved.dtype)[request, position, None]
        return -torch.einsum("bs,bsn->bn", slot_weight, moved).index_add(0, request, -normaliser * weight)


def displaced_effects(packing: Packing, norm: FinalNorm, requests: slice, base: Tensor, moved: Tensor) -> Tensor:
    """Y(base) - Y(moved), [b, n] nats, from what enters the final norm: [b, N, d_model] and [b, n, N, d_model]."""
    log_p = norm.log_probabilities(base)  # [b, N, V]
    away = moved.transpose(1, 2) - base[:, :, None]  # [b, N, n, d_model]
    along = (away @ base[..., None])[..., 0]  # [b, N, n]
    shrink = shrink_of(norm, base, along, away.square().sum(-1))
    rms = norm.mean_square(base).sqrt()[..., None]
    displacement = away * ((1 + shrink) / rms)[..., None]
    read = Reading(packing, requests)
    direct = torch.einsum("bsd,bsnd->bsn", norm.unembedding[read.target], displacement[:, read.context])
    request, position = read.normalised
    normaliser = by_displacements(
        log_p[request, position], shrink[request, position], displacement[request, position], norm.unembedding
    )
    return read.effects(log_p, shrink, direct, normaliser)
