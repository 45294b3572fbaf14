"""The exact effect on Y of each late neuron, without a full forward pass.

An edit of a late neuron changes only what comes after it, at the edited columns and those after them. The last layer
has a closed form (`closed_form.py`). For any other late layer the neurons are put on the batch dimension: the residual
stream that leaves the edited layer is moved by d_j w_j, and only the layers after it are run, on the packed contexts,
against the prefix's kept keys and values (`late_layer.py`). Exact up to rounding; it costs work in proportion to the
layers after the edit, so it is for late layers.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from calibration.closed_form import MEMORY_LIMIT, FinalNorm, displaced_effects, final_norm_of, last_layer_effects
from calibration.late_layer import LateLayer
from calibration.late_trace import LateTrace, down_weight, record_trace
from calibration.sequences import Batch
from guard.errors import NeuronGuardError
from guard.spec import LayerEdit


@torch.no_grad()
def neuron_effects(
    model: nn.Module,
    batch: Batch,
    layer: int,
    neurons: Tensor | Sequence[int] | None,
    values: Tensor,
    *,
    edits: Sequence[LayerEdit] = (),
    active: Tensor | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> Tensor:
    """Controlled effects Y(base) - Y(do(h_j := value_j at the edited columns)) of single neurons, [B, n] nats.

    `neurons` are n neurons of `layer` (None: all); `values` broadcasts to [2B, T_edited, n] and must agree between the
    two rows of a request on its prompt. `edits` are part of the base run (`active` bool [2B, P + C]: where; None:
    everywhere), so that effects are conditional on them; setting a neuron replaces what they made of it. Computed in
    float32, or in float64 for a float64 model.
    """
    trace = record_trace(model, batch, layer, edits=edits, active=active)
    return traced_effects(trace, layer, neurons, values, memory_limit)


@torch.no_grad()
def traced_effects(
    trace: LateTrace,
    layer: int,
    neurons: Tensor | Sequence[int] | None,
    values: Tensor,
    memory_limit: int = MEMORY_LIMIT,
) -> Tensor:
    """`neuron_effects` from a trace that is there already, for any layer from the trace's first on: [B, n] nats."""
    count, device = len(trace.layers), trace.final[0].device
    if not trace.first_layer <= layer < count:
        raise NeuronGuardError(
            f"layer {layer} is not in the trace, which has layers {trace.first_layer} to {count - 1}."
        )
    if neurons is None:
        chosen = torch.arange(trace.neurons[layer].shape[-1], device=device)
    else:
        chosen = torch.as_tensor(neurons, dtype=torch.int64, device=device)
    if layer == count - 1:
        return last_layer_effects(trace, chosen, values, memory_limit)
    return _suffix_effects(trace, layer, chosen, values, memory_limit)


def _suffix_effects(trace: LateTrace, layer: int, neurons: Tensor, values: Tensor, memory_limit: int) -> Tensor:
    """Effects [B, n] of neurons of a layer before the last."""
    norm = final_norm_of(trace)
    after = [LateLayer(trace, index) for index in range(layer + 1, len(trace.layers))]
    packing = trace.packing
    change = trace.change(layer, neurons, values).transpose(1, 2)  # [B, n, S]
    weight = down_weight(trace, layer)[:, neurons].T  # [n, d_model]
    leaving = packing.gather(trace.entering[layer + 1]).to(trace.dtype)[:, None]  # [B, 1, S, d_model]
    effects = torch.empty(packing.batch.size, len(neurons), dtype=trace.dtype, device=change.device)
    for requests, some in _pieces(trace, norm, after[0], len(neurons), memory_limit):
        base = leaving[requests]
        moved = base + change[requests, some, :, None] * weight[some, None]  # [b, n, S, d_model]
        base_final = _final(after, base, requests, packing.batch.tail)[:, 0]
        moved_final = _final(after, moved, requests, packing.batch.tail)
        effects[requests, some] = displaced_effects(packing, norm, requests, base_final, moved_final)
    return effects


def _final(layers: Sequence[LateLayer], stream: Tensor, requests: slice, tail: int) -> Tensor:
    """The residual stream before the final norm at the read-out contexts, [b, n, N, d_model], from [b, n, S, d_model].

    Base and edited streams both pass through here, so that what differs from the model's own rounding cancels.
    """
    *inner, last = layers
    for layer in inner:
        stream = layer(stream, requests)
    return last(stream, requests, slice(tail - 1, None))


def _pieces(
    trace: LateTrace, norm: FinalNorm, layer: LateLayer, neurons: int, memory_limit: int
) -> Iterator[tuple[slice, slice]]:
    """Requests and neurons to take together so that temporaries stay near `memory_limit` bytes."""
    packing = trace.packing
    attention = 3 * layer.query.weight.shape[0] // layer.head_size * (layer.prefix + packing.width)
    widest = max(
        attention, 3 * layer.gate.weight.shape[0], 3 * norm.unembedding.shape[0], 6 * norm.unembedding.shape[1]
    )
    each = packing.width * widest * torch.finfo(trace.dtype).bits // 8
    together = max(1, memory_limit // each)
    some_neurons = min(neurons, together)
    some_requests = max(1, together // some_neurons)
    for start in range(0, packing.batch.size, some_requests):
        for first in range(0, neurons, some_neurons):
            stop = min(start + some_requests, packing.batch.size)
            yield slice(start, stop), slice(first, min(first + some_neurons, neurons))
