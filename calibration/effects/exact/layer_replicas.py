"""A model's own decoder layer, run on packed contexts once per neuron: the way of families that have no faster one.

The layer is the model's module, called with the arguments that it was given in the recorded run, so norms after the
MLP, multipliers, parallel blocks, routed experts and attention of any kind need no formula here. The prefix is run once
for its keys and values; they are then copied for every neuron, which is what this way costs over `late_layer.py`.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from calibration.effects.exact.down_columns import own_weight
from calibration.effects.exact.late_trace import LateTrace
from calibration.effects.exact.packed_arguments import pack_arguments
from calibration.runs.layer_calls import Change, cache_name, changed_input, leaving
from calibration.runs.trial import edit_transforms
from guard.errors import UnsupportedModelError
from guard.families.architectures import configuration, text_configuration
from guard.runtime.wrappers import Wrapper

IMPLEMENTATIONS = ("eager", "sdpa")


class PrefixCache:
    """Stands where a layer expects its cache: keeps the prefix's keys and values, then puts them before new ones."""

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep keys and values [B, heads, P', head size] and give them back."""
        self.key, self.value = key, value
        return key, value

    def copies(self, requests: slice, copies: int) -> "PrefixCopies":
        """The cache of the requests [b], each `copies` times in a row."""
        if self.key is None or self.value is None:
            return PrefixCopies(None, None)
        key, value = (kept[requests].repeat_interleave(copies, dim=0) for kept in (self.key, self.value))
        return PrefixCopies(key, value)


class PrefixCopies:
    """A cache that puts the prefix's keys and values before those of the packed contexts, and keeps nothing."""

    def __init__(self, key: Tensor | None, value: Tensor | None) -> None:
        self.key, self.value = key, value

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """[b * copies, heads, S, head size] -> [b * copies, heads, P' + S, head size], keys and values."""
        if self.key is None or self.value is None:
            return key, value
        return torch.cat([self.key, key], dim=-2), torch.cat([self.value, value], dim=-2)


def is_plain(layer: nn.Module) -> bool:
    """Whether all linear maps of a layer are there as weights, neither quantised nor wrapped."""
    linear = [module for module in layer.modules() if isinstance(module, nn.Linear) or hasattr(module, "in_features")]
    return all(own_weight(module) is not None for module in linear)


class LayerReplicas:
    """A decoder layer bound to a trace: maps packed residual streams, one per request and neuron, to the next ones.

    A layer in a narrow dtype is copied in the trace's, so that weak neurons do not drown in rounding; a quantised one
    cannot be, and runs as it is.
    """

    def __init__(self, trace: LateTrace, index: int) -> None:
        layer, architecture = trace.layers[index], trace.architecture
        if any(isinstance(module, Wrapper) for module in layer.modules()):
            raise UnsupportedModelError(
                "a guard is installed on this model: remove it before calibrating, and pass its edits instead."
            )
        implementation = getattr(configuration(trace.model), "_attn_implementation", None)
        if implementation not in IMPLEMENTATIONS:
            raise UnsupportedModelError(
                f"exact effects cannot lay out what {implementation} attention is given: load the model with "
                f"attn_implementation='sdpa' or 'eager'."
            )
        self.trace_dtype = trace.dtype
        self.dtype = trace.dtype if is_plain(layer) else trace.final[0].dtype
        self.layer = layer if self.dtype == trace.final[0].dtype else deepcopy(layer).to(self.dtype)
        self.down = architecture.down_projection(self.layer)
        self.edits = [edit for edit in trace.edits if edit.layer == index]
        self.device = trace.entering[index].device
        self.active = None if trace.active is None else trace.packing.gather(trace.active.to(self.device))  # [B, S]
        self.arguments = pack_arguments(trace, index, self.dtype)
        self.cache_name, self.prefix = cache_name(self.layer), PrefixCache()
        batch = trace.packing.batch
        before = trace.entering[index][: batch.size, : batch.edited.start].to(self.dtype)  # [B, P', d_model]
        if before.shape[1] > 0:
            leaving(self.layer, before, self.arguments.of_prefixes() | {self.cache_name: self.prefix})
        heads = getattr(text_configuration(trace.model), "num_attention_heads", 1)
        neurons = architecture.neurons_of(self.layer)
        self.widest = 3 * max(heads * batch.input_ids.shape[1], neurons)

    def __call__(self, stream: Tensor, requests: slice, queries: slice = slice(None)) -> Tensor:
        """[b, n, S, d_model] -> [b, n, queries, d_model] for the requests [b] of the trace and n edited neurons."""
        return self._run(stream, requests, self._edited(requests, stream.shape[1]))[:, :, queries]

    def with_neurons(self, stream: Tensor, requests: slice, h: Tensor) -> Tensor:
        """The same map with the layer's neurons at `h` [b, n, S, d_ff], whatever the layer itself makes them."""
        given = h.flatten(0, 1).to(self.dtype)
        return self._run(stream, requests, lambda _: given)

    def _edited(self, requests: slice, copies: int) -> Change:
        """The trace's edits of this layer, where they are active, for the neurons [b * n, S, d_ff]."""
        active = None if self.active is None else self.active[requests].repeat_interleave(copies, dim=0)
        transforms = edit_transforms(self.edits, self.device, active).values()

        def change(h: Tensor) -> Tensor:
            for transform in transforms:
                h = transform(h)
            return h

        return change

    def _run(self, stream: Tensor, requests: slice, change: Change) -> Tensor:
        copies = stream.shape[1]
        arguments = self.arguments.of(requests, copies) | {self.cache_name: self.prefix.copies(requests, copies)}
        with changed_input(self.layer, self.down, change):
            left = leaving(self.layer, stream.flatten(0, 1).to(self.device, self.dtype), arguments)
        return left.view(-1, copies, *left.shape[1:]).to(self.trace_dtype)
