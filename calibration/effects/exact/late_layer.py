"""One decoder layer of the Llama layout (Mistral's and Qwen2's too), run on packed contexts for many neurons at once.

The prefix is the same whichever neuron is edited, so its keys and values exist once per request and all neurons'
queries meet them in one matrix product; only keys and values of the packed contexts carry the neuron dimension. It
repeats what transformers' layers do (a test holds them together in float64) because those would copy the prefix for
every neuron.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calibration.effects.exact.late_trace import LateTrace
from calibration.effects.exact.packed_arguments import packed_mask, recorded_mask
from guard.errors import UnsupportedModelError
from guard.ops import edit_neurons


@dataclass(frozen=True)
class Projection:
    """A linear map in the dtype of the computation."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Norm:
    """RMSNorm in the dtype of the computation."""

    weight: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        """[..., d_model] -> [..., d_model]."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.epsilon)


def _projection(module: nn.Module, name: str, dtype: torch.dtype) -> Projection:
    found = getattr(module, name, None) if name else module
    if not isinstance(found, nn.Linear):
        raise UnsupportedModelError(
            f"{type(module).__name__} has no linear {name or 'weight'}: late-layer effects need the Llama "
            f"layout and no installed guard."
        )
    bias: Tensor | None = found.bias
    return Projection(found.weight.to(dtype), None if bias is None else bias.to(dtype))


def _norm(module: object, dtype: torch.dtype) -> Norm:
    weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not isinstance(weight, Tensor) or not isinstance(epsilon, float):
        raise UnsupportedModelError(f"{type(module).__name__} is not an RMSNorm, which late-layer effects need.")
    return Norm(weight.to(dtype), epsilon)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding of `x` [..., head size]; `cosine` and `sine` broadcast to it (Su et al. 2021)."""
    low, high = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-high, low], dim=-1) * sine


class LateLayer:
    """A decoder layer after the edited one, bound to a trace: maps packed residual streams to the next ones."""

    def __init__(self, trace: LateTrace, index: int) -> None:
        layer, architecture, dtype = trace.layers[index], trace.architecture, trace.dtype
        attention = architecture.attention(layer)
        self.device = trace.entering[index].device
        self.input_norm = _norm(architecture.input_norm(layer), dtype)
        self.mlp_norm = _norm(getattr(layer, "post_attention_layernorm", None), dtype)
        self.query, self.key, self.value, self.output = (
            _projection(attention, name, dtype) for name in ("q_proj", "k_proj", "v_proj", "o_proj")
        )
        self.gate, self.up = (
            _projection(projection, "", dtype) for projection in architecture.input_projections(layer).values()
        )
        self.down = _projection(architecture.down_projection(layer), "", dtype)
        self.activation = architecture.mlp(layer).get_submodule("act_fn")
        self.head_size = int(attention.head_dim)  # type: ignore[arg-type]
        self.scaling = float(attention.scaling)  # type: ignore[arg-type]
        self.heads = self.key.weight.shape[0] // self.head_size
        self.edits = [edit for edit in trace.edits if edit.layer == index]
        packing = trace.packing
        self.active = None if trace.active is None else packing.gather(trace.active.to(self.device))  # [B, S]
        self.cosine, self.sine = self._rotations(trace, index)  # [B, P', head size] twice
        self._keep_prefix(trace, index)
        self.mask = self._mask(trace, index)

    def _rotations(self, trace: LateTrace, index: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines for prefix and packed contexts, [B, prefix + S, head size]."""
        packing = trace.packing
        rows = 2 * packing.batch.size
        prefix = packing.batch.edited.start

        def place(full: Tensor) -> Tensor:
            wide = full.to(trace.dtype).expand(rows, -1, -1)
            return torch.cat([wide[: packing.batch.size, :prefix], packing.gather(wide)], dim=1)

        cosine, sine = trace.arguments[index]["position_embeddings"]
        return place(cosine), place(sine)

    def _keep_prefix(self, trace: LateTrace, index: int) -> None:
        """Keys and values of the columns before the edited ones, [B, heads, prefix, head size]."""
        batch = trace.packing.batch
        prefix = batch.edited.start
        normed = self.input_norm(trace.entering[index][: batch.size, :prefix].to(trace.dtype))
        by_head = (batch.size, prefix, self.heads, self.head_size)
        key = self.key(normed).view(by_head).transpose(1, 2)
        self.prefix_key = rotate(key, self.cosine[:, None, :prefix], self.sine[:, None, :prefix])
        self.prefix_value = self.value(normed).view(by_head).transpose(1, 2)
        self.prefix = prefix

    def _mask(self, trace: LateTrace, index: int) -> Tensor:
        """0 where a packed context (query) sees a prefix column or packed context (key), else -inf: [B, S, P' + S]."""
        mask = packed_mask(trace.packing, recorded_mask(trace, index))[:, 0]
        visible = mask if mask.dtype == torch.bool else mask == 0
        return torch.zeros_like(visible, dtype=trace.dtype).masked_fill(~visible, -torch.inf)

    @property
    def widest(self) -> int:
        """Numbers that one neuron and request takes at a packed context while the layer runs."""
        attention = 3 * self.query.weight.shape[0] // self.head_size * self.mask.shape[-1]
        return max(attention, 3 * self.gate.weight.shape[0])

    def __call__(self, stream: Tensor, requests: slice, queries: slice = slice(None)) -> Tensor:
        """[b, n, S, d_model] -> [b, n, queries, d_model] for the requests [b] of the trace and n edited neurons.

        `queries` are the contexts whose output is wanted; keys and values come from all.
        """
        stream = stream.to(self.device)
        normed = self.input_norm(stream)
        attended = self._attention(normed, requests, queries)
        middle = stream[:, :, queries] + attended
        return middle + self._mlp(self.mlp_norm(middle), requests, queries)

    def _attention(self, normed: Tensor, requests: slice, queries: slice) -> Tensor:
        requests_here, neurons, contexts, _ = normed.shape
        cosine = self.cosine[requests, None, self.prefix :, None]  # [b, 1, S, 1, head size]
        sine = self.sine[requests, None, self.prefix :, None]
        packed = (requests_here, neurons, contexts, self.heads, self.head_size)
        key = rotate(self.key(normed).view(packed), cosine, sine).permute(0, 3, 1, 4, 2)  # [b, heads, n, head size, S]
        value = self.value(normed).view(packed).permute(0, 3, 1, 2, 4)  # [b, heads, n, S, head size]
        asked = self.query(normed[:, :, queries])
        asked = asked.view(*asked.shape[:3], -1, self.head_size)  # [b, n, Q, heads * G, head size]
        asked = rotate(asked, cosine[:, :, queries], sine[:, :, queries]) * self.scaling
        asked = asked.view(*asked.shape[:3], self.heads, -1, self.head_size).permute(
            0, 3, 1, 4, 2, 5
        )  # [b, heads, n, G, Q, head size]
        shape = asked.shape
        flat = asked.reshape(requests_here, self.heads, -1, self.head_size)
        on_prefix = (flat @ self.prefix_key[requests].transpose(2, 3)).view(*shape[:-1], self.prefix)
        on_packed = (flat.view(*shape[:3], -1, self.head_size) @ key).view(*shape[:-1], -1)
        scores = torch.cat([on_prefix, on_packed], dim=-1)
        scores += self.mask[requests, None, None, None, queries]
        share = scores.softmax(-1)
        from_prefix = share[..., : self.prefix].reshape(*flat.shape[:3], self.prefix)
        from_packed = share[..., self.prefix :].reshape(*shape[:3], -1, contexts)
        read = (from_prefix @ self.prefix_value[requests]).view(shape) + (from_packed @ value).view(shape)
        return self.output(read.permute(0, 2, 4, 1, 3, 5).flatten(3))  # [b, n, Q, d_model]

    def _mlp(self, normed: Tensor, requests: slice, queries: slice) -> Tensor:
        h: Tensor = self.activation(self.gate(normed)) * self.up(normed)  # [b, n, Q, d_ff]
        for edit in self.edits:
            active = None if self.active is None else self.active[requests, None, queries].expand(h.shape[:-1])
            h = edit_neurons(h, *_edit_tensors(edit.neurons, edit.scale, edit.lower, edit.upper, h.device), active)
        return self.down(h)


def _edit_tensors(
    neurons: Sequence[int],
    scale: Sequence[float],
    lower: Sequence[float],
    upper: Sequence[float],
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An edit's neurons int32 [k] and its scale, lower and upper float32 [k]."""
    bounds = [torch.tensor(each, dtype=torch.float32, device=device) for each in (scale, lower, upper)]
    return torch.tensor(neurons, dtype=torch.int32, device=device), bounds[0], bounds[1], bounds[2]
