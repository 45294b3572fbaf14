"""The exact effect on Y of each neuron of the last layer, in closed form.

With r the residual stream before the final norm at a context, w_j neuron j's down-projection column, d_j the change of
its activation, g the norm's weight and u_v the unembedding row of token v, RMSNorm gives for every neuron at once

    logit_v(j) = (g * (r + d_j w_j)) . u_v / rms_j,    rms_j^2 = (|r|^2 + 2 d_j r.w_j + d_j^2 |w_j|^2) / d_model + eps

so with t_j = rms_0 / rms_j and b_vj = (g * u_v) . w_j, a logit moves by (t_j - 1) logit_v + t_j d_j b_vj / rms_0, and

    Y(base) - Y(do(h_j := c)) = - sum_slots weight (move of the target's logit) + sum_contexts weight A_j

with A_j the move of the log-normaliser (`log_normaliser.py`). Only differences are computed, never two Y's subtracted,
so small effects keep their digits. Nothing is run; nothing grows with the model's depth. What other families have
between the neuron and the logit changes single terms: a LayerNorm takes r and w_j without their means, offsets are not
rescaled (`final_norm.py`), multipliers are multiplied into w_j or u_v. Attention in parallel to the MLP does not see
the neurons. A norm after the MLP, of its output m, moves the stream along two directions,

    norm(m + d_j w_j) - norm(m) = (s_j - 1) norm(m) + s_j d_j (g' * w_j) / rms'_0,    s_j = rms'_0 / rms'_j,

the first of them common to all neurons of a context.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from calibration.effects.exact.final_norm import FinalNorm, Norm, Prediction, final_norm_of, norm_of
from calibration.effects.exact.late_trace import LateTrace
from calibration.effects.exact.log_normaliser import Common, along_directions
from calibration.effects.exact.packing import Packing
from calibration.effects.exact.readings import Reading

MEMORY_LIMIT = 1 << 30


@dataclass(frozen=True)
class Displacement:
    """How neurons of the last layer displace the final norm's x: by own_j w_j + common_j q.

    `own` [b, N, n] and `weight` [d_model, n]; where a norm follows the MLP, `common` [b, N, n] and `shared` [b, N,
    d_model], which is q.
    """

    own: Tensor
    weight: Tensor
    common: Tensor | None = None
    shared: Tensor | None = None

    def along(self, x: Tensor) -> Tensor:
        """Inner products with x [b, N, d_model]: [b, N, n]."""
        plain = self.own * (x @ self.weight)
        if self.common is None or self.shared is None:
            return plain
        return plain + self.common * (x * self.shared).sum(-1, keepdim=True)

    def squared(self) -> Tensor:
        """Squared lengths, [b, N, n]."""
        plain = self.own.square() * self.weight.square().sum(0)
        if self.common is None or self.shared is None:
            return plain
        across = 2 * self.own * self.common * (self.shared @ self.weight)
        return plain + across + self.common.square() * self.shared.square().sum(-1, keepdim=True)


def displacement_of(trace: LateTrace, norm: Norm, requests: slice, change: Tensor, weight: Tensor) -> Displacement:
    """The displacement by some neurons of the last layer: `change` [b, N, n] of them, `weight` [d_model, n]."""
    layer = trace.layers[-1]
    multiplier = trace.architecture.residual_multiplier(trace.model)
    if multiplier != 1.0:
        weight = weight * multiplier
    module = trace.architecture.post_mlp_norm(layer)
    if module is None:
        return Displacement(change, norm.centred(weight.T).T)
    after = norm_of(trace.architecture, module, trace.dtype, change.device)
    given = after.centred(trace.mlp_readout()[requests].to(change.device))  # [b, N, d_model]
    columns = after.centred(weight.T).T
    rms = after.mean_square(given).sqrt()[..., None]
    shrink = after.shrink(given, change * (given @ columns), change.square() * columns.square().sum(0))
    return Displacement(
        own=(1 + shrink) * change / rms,
        weight=norm.centred((after.weight[:, None] * columns).T).T,
        common=shrink,
        shared=norm.centred(given / rms * after.weight * multiplier),
    )


def last_layer_effects(trace: LateTrace, neurons: Tensor, values: Tensor, memory_limit: int = MEMORY_LIMIT) -> Tensor:
    """Y(base) - Y(do(h_j := values_j at the edited columns)) for each neuron of the last layer, [B, n] nats.

    `neurons` int64 [n]; `values` broadcasts to [2B, T_edited, n]. Temporaries stay near `memory_limit` bytes.
    """
    norm = final_norm_of(trace.model, trace.architecture, trace.dtype)
    layer = len(trace.layers) - 1
    packing = trace.packing.to(norm.device)
    width, vocabulary = packing.readout_width, norm.unembedding.shape[0]
    size_of = torch.finfo(trace.dtype).bits // 8
    change = trace.change(layer, neurons, values)[:, -width:].to(norm.device)  # [B, N, n]
    weight = trace.down_weight(layer)[:, neurons].to(norm.device)  # [d_model, n]
    tables = 24 if trace.normed else 12  # [N, V] each for one request
    requests = max(1, memory_limit // (tables * width * vocabulary * size_of))
    block = max(1, memory_limit // (6 * vocabulary * size_of))
    rows = []
    for start in range(0, packing.batch.size, requests):
        some = slice(start, start + requests)
        base = norm.predict(trace.final_readout()[some].to(norm.device))  # [b, N, V]
        blocks = [
            _effects(trace, packing, norm, some, base, change[some, :, at : at + block], weight[:, at : at + block])
            for at in range(0, len(neurons), block)
        ]
        rows.append(torch.cat(blocks, dim=1))
    return torch.cat(rows)


def _effects(
    trace: LateTrace,
    packing: Packing,
    norm: FinalNorm,
    requests: slice,
    base: Prediction,
    change: Tensor,
    weight: Tensor,
) -> Tensor:
    """Effects [b, n] of some neurons: `base` [b, N, V], `change` [b, N, n], `weight` [d_model, n]."""
    x = norm.norm.centred(trace.final_readout()[requests].to(norm.device))  # [b, N, d_model]
    rms = norm.norm.mean_square(x).sqrt()[..., None]
    moves = displacement_of(trace, norm.norm, requests, change, weight)
    shrink = norm.norm.shrink(x, moves.along(x), moves.squared())  # [b, N, n]
    step = (1 + shrink) * moves.own / rms
    read = Reading(packing, requests)
    direct = step[:, read.context] * (norm.unembedding[read.target] @ moves.weight)  # [b, 2C, n]
    request, position = read.normalised
    common = None
    if moves.common is not None and moves.shared is not None:
        shared_logits = moves.shared @ norm.unembedding.T  # [b, N, V]
        shared_step = (1 + shrink) * moves.common / rms
        direct = direct + shared_step[:, read.context] * read.of_targets(shared_logits)
        common = Common(shared_step[request, position], shared_logits[request, position])
    normaliser = along_directions(
        base.at(request, position),
        shrink[request, position],
        step[request, position],
        norm.unembedding,
        moves.weight,
        common,
    )  # [M, n]
    return read.effects(base, shrink, direct, normaliser)
