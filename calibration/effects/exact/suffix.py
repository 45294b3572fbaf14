"""The exact effect on Y of each late neuron, without a full forward pass.

An edit of a late neuron changes only what comes after it, at the edited columns and those after them. So the neurons
are put on the batch dimension and only what comes after the edit is run, on the packed contexts, against the prefix's
kept keys and values; `method_of` says how:

    closed form  the last layer: nothing is run (`closed_form.py`)
    packed       layers of the Llama layout: one implementation shares the prefix among all neurons (`late_layer.py`)
    replicas     everything else: the model's own layers, from the edited one on (`layer_replicas.py`)

All are exact up to rounding. The last two cost work in proportion to the layers after the edit, so they are for late
layers; replicas also copy the prefix's keys and values for every neuron.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from calibration.effects.exact.closed_form import MEMORY_LIMIT, last_layer_effects
from calibration.effects.exact.final_norm import FinalNorm, final_norm_of
from calibration.effects.exact.late_layer import LateLayer
from calibration.effects.exact.late_trace import LateTrace, record_trace
from calibration.effects.exact.layer_replicas import LayerReplicas, is_plain
from calibration.effects.exact.readings import displaced_effects
from calibration.prompts.sequences import Batch
from guard.errors import NeuronGuardError
from guard.families.architectures import architecture_of
from guard.spec.edit_spec import LayerEdit

Method = Literal["closed form", "packed", "replicas"]
Layers = Sequence[LateLayer] | Sequence[LayerReplicas]


def method_of(model: nn.Module, layer: int) -> Method:
    """How the exact effects of neurons of `layer` are computed on `model`."""
    architecture = architecture_of(model)
    layers = architecture.decoder_layers(model)
    if layer == len(layers) - 1 and not architecture.family.routes_to_experts:
        return "closed form"
    if architecture.is_llama_like and all(is_plain(each) for each in layers[layer + 1 :]):
        return "packed"
    return "replicas"


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
    count, home = len(trace.layers), trace.packing.columns.device
    if not trace.first_layer <= layer < count:
        raise NeuronGuardError(
            f"layer {layer} is not in the trace, which has layers {trace.first_layer} to {count - 1}."
        )
    device = trace.neurons[layer].device
    if neurons is None:
        chosen = torch.arange(trace.neurons[layer].shape[-1], device=device)
    else:
        chosen = torch.as_tensor(neurons, dtype=torch.int64, device=device)
    method = method_of(trace.model, layer)
    if method == "closed form":
        return last_layer_effects(trace, chosen, values, memory_limit).to(home)
    effects_of = _packed_effects if method == "packed" else _replica_effects
    return effects_of(trace, layer, chosen, values, memory_limit).to(home)


def _packed_effects(trace: LateTrace, layer: int, neurons: Tensor, values: Tensor, memory_limit: int) -> Tensor:
    """Effects [B, n] of neurons of a layer before the last, in the Llama layout."""
    after = [LateLayer(trace, index) for index in range(layer + 1, len(trace.layers))]
    packing = trace.packing
    change = trace.change(layer, neurons, values).transpose(1, 2)  # [B, n, S]
    weight = trace.down_weight(layer)[:, neurons].T  # [n, d_model]
    leaving = packing.gather(trace.entering[layer + 1]).to(change)[:, None]  # [B, 1, S, d_model]

    def final(requests: slice, some: slice) -> tuple[Tensor, Tensor]:
        base = leaving[requests]
        moved = base + change[requests, some, :, None] * weight[some, None]  # [b, n, S, d_model]
        return _final(after, base, requests, packing.batch.tail), _final(after, moved, requests, packing.batch.tail)

    return _effects(trace, len(neurons), after[0].widest, memory_limit, final)


def _replica_effects(trace: LateTrace, layer: int, neurons: Tensor, values: Tensor, memory_limit: int) -> Tensor:
    """Effects [B, n] of neurons of any layer of any family."""
    edited, *after = [LayerReplicas(trace, index) for index in range(layer, len(trace.layers))]
    packing = trace.packing
    change = trace.change(layer, neurons, values)  # [B, S, n]
    entering = packing.gather(trace.entering[layer]).to(trace.dtype)[:, None]  # [B, 1, S, d_model]
    h = trace.neurons[layer].to(trace.dtype)[:, None]  # [B, 1, S, d_ff]

    def final(requests: slice, some: slice) -> tuple[Tensor, Tensor]:
        chosen = neurons[some]
        moved_h = h[requests].repeat(1, len(chosen), 1, 1)  # [b, n, S, d_ff]
        place = torch.arange(len(chosen), device=chosen.device)
        moved_h[:, place, :, chosen] += change[requests][..., some].permute(2, 0, 1)  # [n, b, S]
        stream = entering[requests]
        base = edited.with_neurons(stream, requests, h[requests])
        moved = edited.with_neurons(stream.expand(-1, len(chosen), -1, -1), requests, moved_h)
        return _final(after, base, requests, packing.batch.tail), _final(after, moved, requests, packing.batch.tail)

    return _effects(trace, len(neurons), edited.widest, memory_limit, final)


def _effects(
    trace: LateTrace,
    neurons: int,
    widest: int,
    memory_limit: int,
    final: Callable[[slice, slice], tuple[Tensor, Tensor]],
) -> Tensor:
    """Effects [B, n] read from what enters the final norm: `final` gives it for some requests and neurons.

    That is [b, 1, N, d_model] for the base run and [b, n, N, d_model] moved. Both pass through the same layers, so that
    what differs from the model's own rounding cancels.
    """
    norm = final_norm_of(trace.model, trace.architecture, trace.dtype)
    packing = trace.packing.to(norm.device)
    effects = torch.empty(packing.batch.size, neurons, dtype=trace.dtype, device=norm.device)
    for requests, some in _pieces(trace, norm, widest, neurons, memory_limit):
        base, moved = (each.to(norm.device) for each in final(requests, some))
        effects[requests, some] = displaced_effects(packing, norm, requests, base[:, 0], moved)
    return effects


def _final(layers: Layers, stream: Tensor, requests: slice, tail: int) -> Tensor:
    """What enters the final norm at the read-out contexts, [b, n, N, d_model], from the stream [b, n, S, d_model]."""
    if not layers:
        return stream[:, :, tail - 1 :]
    *inner, last = layers
    for layer in inner:
        stream = layer(stream, requests)
    return last(stream, requests, slice(tail - 1, None))


def _pieces(
    trace: LateTrace, norm: FinalNorm, widest: int, neurons: int, memory_limit: int
) -> Iterator[tuple[slice, slice]]:
    """Requests and neurons to take together so that temporaries stay near `memory_limit` bytes.

    A layer takes up to `widest` numbers for each neuron, request and packed context.
    """
    packing = trace.packing
    widest = max(widest, 3 * norm.unembedding.shape[0], 6 * norm.unembedding.shape[1])
    each = packing.width * widest * torch.finfo(trace.dtype).bits // 8
    together = max(1, memory_limit // each)
    some_neurons = min(neurons, together)
    some_requests = max(1, together // some_neurons)
    for start in range(0, packing.batch.size, some_requests):
        for first in range(0, neurons, some_neurons):
            stop = min(start + some_requests, packing.batch.size)
            yield slice(start, stop), slice(first, min(first + some_neurons, neurons))
