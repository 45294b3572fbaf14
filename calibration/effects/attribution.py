"""Gradient screens: cheap estimates of every late neuron's controlled effect, to say which deserve an exact one.

For replacement values c of neurons h at the edited columns, an estimate of Y(base) - Y(do(h_j := c_j)) is

    AtP    sum_t dY/dh_tj (h_tj - c_tj)                              (Nanda 2023; Syed et al. 2023)
    IG     the same with dY/dh averaged on the way from h to c       (Sundararajan et al. 2017; Marks et al. 2024)
    RelP   the same with relevance coefficients for gradients        (Jafari et al. 2025; `relevance.py`)

AtP and RelP take one backward pass for all layers, IG one for each layer and step: its path moves the neurons of one
layer and leaves the other layers to follow, so that a layer's attributions add up to the effect of setting all of it.
All start from a `LateRun`, so only the late layers run.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from calibration.effects.outcome import outcome
from calibration.effects.relevance import relevance_rules
from calibration.runs.resume import LateRun
from calibration.runs.trial import Transform, transformed


def _partway(run: LateRun, values: Tensor, weights: Tensor) -> Transform:
    """h [2B, T, d_ff] -> h moved to `values` by the share `weights` [2B, 1, d_ff], at the edited columns."""
    edited = run.batch.edited

    def transform(h: Tensor) -> Tensor:
        here = h[:, edited]
        moved = here + weights.to(h) * (values.to(h) - here)
        return torch.cat([h[:, : edited.start], moved, h[:, edited.stop :]], dim=1)

    return transform


def _attributions(run: LateRun, values: Mapping[int, Tensor], shares: Mapping[int, float]) -> Tensor:
    """-dY/d(share) of each neuron, its layer moved by `shares[layer]` towards `values[layer]`: [B, layers, d_ff]."""
    rows = 2 * run.batch.size
    weights = {
        layer: torch.full(
            (rows, 1, values[layer].shape[-1]), share, dtype=_wide(run), device=run.residual.device, requires_grad=True
        )
        for layer, share in shares.items()
    }
    transforms = {layer: _partway(run, values[layer], weights[layer]) for layer in shares}
    with torch.enable_grad(), transformed(run.model, transforms):
        total = outcome(run.readout_logits(), run.batch).sum()
        gradients = torch.autograd.grad(total, list(weights.values()))
    return torch.stack([-sum_rows(gradient[:, 0]) for gradient in gradients], dim=1)


def sum_rows(by_row: Tensor) -> Tensor:
    """[2B, ...] -> [B, ...]: both rows of a request count towards its Y."""
    compliance, refusal = by_row.chunk(2)
    return compliance + refusal


def _wide(run: LateRun) -> torch.dtype:
    return torch.promote_types(run.residual.dtype, torch.float32)


def attribution_patching(run: LateRun, values: Mapping[int, Tensor]) -> Tensor:
    """AtP, [B, layers, d_ff] nats, layers in the order of `values` (each broadcasts to [2B, T_edited, d_ff])."""
    return _attributions(run, values, dict.fromkeys(values, 0.0))


def integrated_gradients(run: LateRun, values: Mapping[int, Tensor], steps: int = 8) -> Tensor:
    """IG, [B, layers, d_ff] nats, by Gauss-Legendre quadrature in `steps` points on each layer's straight path."""
    points, shares = np.polynomial.legendre.leggauss(steps)
    by_layer = [
        sum(
            (
                _attributions(run, values, {layer: (float(point) + 1) / 2}) * (float(share) / 2)
                for point, share in zip(points, shares, strict=True)
            ),
            start=torch.zeros((), device=run.residual.device),
        )
        for layer in values
    ]
    return torch.cat(by_layer, dim=1)


def relevance_patching(run: LateRun, values: Mapping[int, Tensor]) -> Tensor:
    """RelP, [B, layers, d_ff] nats, layers in the order of `values` (each broadcasts to [2B, T_edited, d_ff])."""
    with relevance_rules(run.model):
        return attribution_patching(run, values)
