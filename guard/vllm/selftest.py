"""Proof, in the engine that will serve, that the guard is live: after compilation and graph capture, and again later.

Two proofs. Known inputs through each guarded module: edited neurons within their bounds, all others bit for bit. And
whole passes through the engine, as compiled and captured as it serves: an extreme setting of each layer's edit, on each
rank that owns a part of it, must change what comes out, and with the trigger's threshold at +inf must not. The second
writes to the very buffers that the graphs read, and puts them back.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from guard.errors import SelfTestError
from guard.runtime.edit_check import SEED, extreme_value, fault_in
from guard.runtime.trigger import TriggerReadout
from guard.vllm.install import EngineGuard, GuardedActivation, GuardedLayer, Share

TOKENS = 7

Passes = Sequence[Callable[[], Tensor]]
"""Kinds of forward pass on fixed tokens, each giving logits, or what leaves the last norm, [tokens, ...]."""


def check(guard: EngineGuard, share: Share, dtype: torch.dtype, passes: Passes) -> None:
    """Raise SelfTestError unless `guard` is live. To be called on all tensor-parallel ranks at once.

    `dtype` is that of the model's activations.
    """
    check_places(guard)
    for layer in guard.layers:
        check_module(layer, dtype, share)
    for run in passes:
        check_engine(guard, share, run)
    check_places(guard)


def check_places(guard: EngineGuard) -> None:
    """Raise SelfTestError unless every module stands where it was put and holds the spec's numbers."""
    for layer in guard.layers:
        where = f"layer {layer.edit.layer}"
        if layer.parent.get_submodule(layer.name) is not layer.module or layer.module.edit is not layer.own:
            raise SelfTestError(f"{where}: the guarded module was replaced.")
        for name, values in layer.made_anew().named_buffers():
            if not torch.equal(layer.own.get_buffer(name), values):
                raise SelfTestError(f"{where}: the edit's {name} is not the spec's any more.")
    if guard.trigger is not None and guard.trigger_at is not None:
        parent, name = guard.trigger_at
        if parent.get_submodule(name) is not guard.trigger:
            raise SelfTestError("the trigger's norm was replaced.")
        live = guard.trigger.readout
        for name, values in TriggerReadout(guard.trigger.trigger, live.threshold.device).named_buffers():
            if not torch.equal(live.get_buffer(name), values):
                raise SelfTestError(f"the trigger's {name} is not the spec's any more.")


@torch.inference_mode()
def check_module(layer: GuardedLayer, dtype: torch.dtype, share: Share) -> None:
    """Raise SelfTestError unless one guarded module edits known inputs as the definition says."""
    edit, module, where = layer.own, layer.module, f"layer {layer.edit.layer}"
    active = torch.arange(TOKENS, device=share.device) % 2 == 0
    generator = torch.Generator().manual_seed(SEED)

    def known(width: int) -> Tensor:
        return (4.0 * torch.randn(TOKENS, width, generator=generator)).to(dtype).to(share.device)

    if isinstance(module, GuardedActivation):
        packed = known(2 * edit.d_ff)
        gate, up = packed.chunk(2, dim=-1)
        h = edit.activate(module.activation, gate, up, torch.zeros_like(active))
        eps = torch.finfo(dtype).eps
        if not torch.allclose(h, module.plain(packed), rtol=4 * eps, atol=4 * eps):
            raise SelfTestError(f"{where}: the activation is not the one that the model had.")
    else:
        h = known(edit.d_ff)
    for mask in (torch.ones_like(active), active) if module.mask else (torch.ones_like(active),):
        if module.mask is not None:
            module.mask.write(mask)
        # a row-parallel map sums over ranks, so there the edit alone is looked at
        edited = module(packed) if isinstance(module, GuardedActivation) else edit(h, mask)
        fault = fault_in(edit, h, edited, mask)
        if fault is not None:
            raise SelfTestError(f"{where}: {fault}.")


@torch.inference_mode()
def check_engine(guard: EngineGuard, share: Share, run: Callable[[], Tensor]) -> None:
    """Raise SelfTestError unless the engine's own passes follow the edits, and the trigger, through their buffers."""
    if guard.trigger is None:
        _check_extremes(guard, share, run, expect=True)
        return
    with _threshold(guard.trigger.readout, -torch.inf):
        _check_extremes(guard, share, run, expect=True)
    with _threshold(guard.trigger.readout, torch.inf):
        _check_extremes(guard, share, run, expect=False)


def _check_extremes(guard: EngineGuard, share: Share, run: Callable[[], Tensor], expect: bool) -> None:
    """`expect` says whether extreme edits are to change what comes out."""
    plain = run()
    noise = _distance(plain, run())  # of kernels whose sums depend on timing; 0 where there are none
    for layer in guard.layers:
        # every rank goes through every owner, since a pass on one is a pass on all
        for rank in layer.ranks:
            with _extreme(layer, rank == share.rank):
                distance = _distance(plain, run())
            if expect and not distance > 4 * noise:
                raise SelfTestError(
                    f"layer {layer.edit.layer}, rank {rank}: an extreme setting of the edit does not change the logits."
                )
            if not expect and distance > 4 * noise:
                raise SelfTestError(f"layer {layer.edit.layer}: tokens are edited although the trigger is not active.")
    if _distance(plain, run()) > 4 * noise:
        raise SelfTestError("the edit is not what it was before the self-test.")


def _distance(left: Tensor, right: Tensor) -> float:
    """The largest difference, NaN against a number counting as infinite."""
    both = left.isnan() & right.isnan()
    gap = (left.float() - right.float()).abs().masked_fill(both | (left == right), 0.0)
    return float(gap.nan_to_num(nan=torch.inf).max())


@contextmanager
def _extreme(layer: GuardedLayer, here: bool) -> Iterator[None]:
    """Within the block this rank's part of the edit, if it is meant (`here`), sets its neurons to extreme values."""
    if not here:
        yield
        return
    edit = layer.own
    kept = [values.clone() for values in (edit.scale, edit.lower, edit.upper)]
    value = extreme_value(edit)
    edit.assign(kept[0], value, value)
    try:
        yield
    finally:
        edit.assign(*kept)


@contextmanager
def _threshold(readout: TriggerReadout, value: float) -> Iterator[None]:
    kept = readout.threshold.clone()
    readout.threshold.fill_(value)
    try:
        yield
    finally:
        readout.threshold.copy_(kept)
