"""Put a spec's edit on a model as vLLM built it: packed projections, cut over ranks, compiled and captured afterwards.

Each guarded layer gets an activation module of its own, or, where the MLP has no gate, a wrapper around the outermost
row-parallel linear map; vLLM shares one activation object among layers, so that object is neither hooked nor changed.
Unlike in transformers, a trigger's mask waits in a buffer: compiled pieces and captured graphs read and write the same
memory in every pass. It costs a byte a token. Nothing here imports vLLM: its modules are known by name.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from guard.errors import EditNotAppliedError, ModelMismatchError, UnsupportedModelError
from guard.families.table import VllmLayout
from guard.ops import ActivationName
from guard.ops.activations import activation_of
from guard.runtime.buffers import EditBuffers
from guard.runtime.trigger import TriggerReadout
from guard.runtime.wrappers import Wrapper
from guard.spec.edit_spec import EditSpec, LayerEdit, Trigger
from guard.vllm.counts import PassCounts, PassLength
from guard.vllm.families import MISSING_LAYER, activation_name, layout_of, owner


@dataclass(frozen=True)
class Share:
    """Which part of each layer a worker holds: number `rank` of `size` under tensor parallelism, on `device`.

    `tokens` is the most that one pass has.
    """

    rank: int
    size: int
    device: torch.device
    tokens: int


class ActiveTokens(nn.Module):
    """The active mask of the pass under way, bool [tokens]: the one place where it is known to all layers."""

    active: Tensor

    def __init__(self, tokens: int, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("active", torch.zeros(tokens, dtype=torch.bool, device=device), persistent=False)

    def write(self, active: Tensor) -> None:
        """Keep `active` bool [n] for the layers that follow."""
        self.active[: active.shape[0]].copy_(active)

    def read(self, tokens: int) -> Tensor:
        """The mask of the pass's `tokens` tokens."""
        return self.active[:tokens]


class GuardedActivation(nn.Module):
    """Stands for a gated MLP's activation: [tokens, 2 * d_ff] -> [tokens, d_ff], edited."""

    def __init__(
        self,
        plain: nn.Module,
        activation: ActivationName,
        edit: EditBuffers,
        mask: ActiveTokens | None,
        length: PassLength,
    ) -> None:
        super().__init__()
        self.plain = plain
        self.activation = activation
        self.edit = edit
        self.mask = mask
        self.counts = PassCounts(length)

    def forward(self, packed: Tensor) -> Tensor:
        """activation(gate) * up, then the edit; `packed` [tokens, 2 * d_ff] is gate and up side by side."""
        gate, up = packed.chunk(2, dim=-1)  # views
        active = None if self.mask is None else self.mask.read(packed.shape[0])
        neurons = self.edit.neurons
        made = activation_of(self.activation).value(gate.index_select(-1, neurons)) * up.index_select(-1, neurons)
        self.counts.add(made, self.edit, active)
        return self.edit.activate(self.activation, gate, up, active)


class GuardedRowParallel(Wrapper):
    """Stands for the output map of an MLP without a gate: original(edit(h)), for `h` [tokens, d_ff]."""

    def __init__(self, original: nn.Module, edit: EditBuffers, mask: ActiveTokens | None, length: PassLength) -> None:
        super().__init__(original)
        self.edit = edit
        self.mask = mask
        self.counts = PassCounts(length)

    def forward(self, h: Tensor) -> object:
        """What vLLM's linear map returns, usually the output and a bias."""
        active = None if self.mask is None else self.mask.read(h.shape[0])
        self.counts.add(h.index_select(-1, self.edit.neurons), self.edit, active)
        return self.original(self.edit(h, active))


class TriggeredNorm(Wrapper):
    """A layer's input norm that also reads the trigger off the residual stream entering the layer."""

    def __init__(self, original: nn.Module, trigger: Trigger, mask: ActiveTokens) -> None:
        super().__init__(original)
        self.trigger = trigger
        self.readout = TriggerReadout(trigger, mask.active.device)
        self.mask = mask

    def forward(self, hidden: Tensor, *residual: Tensor) -> object:
        """What the norm returns; where it is given a `residual`, it adds it first, and the sum is the stream."""
        # before the norm, which may write into both
        self.mask.write(self.readout(hidden + residual[0] if residual else hidden))
        return self.original(hidden, *residual)


@dataclass(frozen=True)
class GuardedLayer:
    """One guarded layer on this rank: `module` stands at attribute `name` of `parent`.

    `own` is the edit that it holds; `d_ff` counts the layer's neurons on all ranks, and `ranks` are those that own an
    edited one: this one need not.
    """

    edit: LayerEdit
    parent: nn.Module
    name: str
    module: GuardedActivation | GuardedRowParallel
    own: EditBuffers
    share: Share
    d_ff: int
    ranks: tuple[int, ...]

    def made_anew(self) -> EditBuffers:
        """What `own` has to hold: this rank's part of the edit, from the spec."""
        return EditBuffers.from_edit(self.edit, self.share.device, self.d_ff).shard(self.share.rank, self.share.size)


@dataclass(frozen=True)
class EngineGuard:
    """What was put on the part of a model that one worker holds: nothing where no guarded layer is on its rank."""

    layers: tuple[GuardedLayer, ...]
    trigger: TriggeredNorm | None
    trigger_at: tuple[nn.Module, str] | None
    length: PassLength

    def counts(self) -> dict[int, list[int]]:
        """By guarded layer the tokens, those with an active trigger, and the clips so far; waits for the device."""
        return {layer.edit.layer: layer.module.counts.sums.tolist() for layer in self.layers}

    def count_from_here(self) -> None:
        """Forget what was counted."""
        for layer in self.layers:
            layer.module.counts.sums.zero_()


def install(model: nn.Module, spec: EditSpec, share: Share) -> EngineGuard:
    """Put `spec` on `model`, a language model of vLLM whose weights are loaded and which has not run yet.

    Raises UnsupportedModelError (a class that is not in the table, an activation that is not known, layers of one spec
    on different pipeline ranks), ModelMismatchError (sizes), EditNotAppliedError (guarded already).
    """
    layout = layout_of(type(model))
    layers = list(model.get_submodule(layout.layers).children())
    needed = [edit.layer for edit in spec.layers] + ([spec.trigger.layer] if spec.trigger else [])
    if max(needed) >= len(layers):
        raise ModelMismatchError(f"the spec names layers {needed}, but the model has layers 0 to {len(layers) - 1}.")
    elsewhere = [index for index in needed if type(layers[index]).__name__ == MISSING_LAYER]
    if len(elsewhere) == len(needed):
        return EngineGuard((), None, None, PassLength(share.device))
    if elsewhere:
        raise UnsupportedModelError(
            f"layers {sorted(set(needed))} must be on one pipeline rank, but {sorted(set(elsewhere))} are on another: "
            "use fewer ranks, or set VLLM_PP_LAYER_PARTITION."
        )
    mask = None if spec.trigger is None else ActiveTokens(share.tokens, share.device)
    length = PassLength(share.device)
    guarded = tuple(
        _guard(layers[edit.layer], layout, edit, share, mask, length, spec.model.d_ff) for edit in spec.layers
    )
    trigger, trigger_at = None, None
    if spec.trigger is not None and mask is not None:
        trigger_at = _free(layers[spec.trigger.layer], layout.entry)
        trigger = TriggeredNorm(trigger_at[0].get_submodule(trigger_at[1]), spec.trigger, mask)
        setattr(*trigger_at, trigger)
    for layer in guarded:
        setattr(layer.parent, layer.name, layer.module)
    return EngineGuard(guarded, trigger, trigger_at, length)


def _guard(
    layer: nn.Module,
    layout: VllmLayout,
    edit: LayerEdit,
    share: Share,
    mask: ActiveTokens | None,
    length: PassLength,
    d_ff: int,
) -> GuardedLayer:
    whole = EditBuffers.from_edit(edit, share.device, d_ff)
    shards = [whole.shard(rank, share.size) for rank in range(share.size)]
    own = shards[share.rank]
    width = base(layer.get_submodule(layout.down)).input_size_per_partition
    if width != own.d_ff:
        raise ModelMismatchError(
            f"rank {share.rank} of {share.size} holds {width} neurons of layer {edit.layer}, not {own.d_ff}."
        )
    parent, name = _free(layer, layout.activation or layout.down)
    replaced = parent.get_submodule(name)
    module: GuardedActivation | GuardedRowParallel
    if layout.activation is None:
        module = GuardedRowParallel(replaced, own, mask, length)
    else:
        module = GuardedActivation(replaced, activation_name(replaced), own, mask, length)
    ranks = tuple(rank for rank, shard in enumerate(shards) if shard.neurons.numel())
    return GuardedLayer(edit, parent, name, module, own, share, d_ff, ranks)


def base(linear: nn.Module) -> nn.Module:
    """The linear map itself where vLLM's LoRA has wrapped it."""
    return getattr(linear, "base_layer", linear)


def _free(layer: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Parent and name of a module that carries no guard yet."""
    parent, name = owner(layer, path)
    if isinstance(parent.get_submodule(name), GuardedActivation | Wrapper):
        raise EditNotAppliedError(f"{path} is guarded already: start vLLM anew.")
    return parent, name
