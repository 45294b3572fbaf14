"""Proof that an installed edit is live in this very model, before anything relies on it.

An edit that is not applied raises nothing and changes nothing that one would notice, so installation ends with a test:
random tokens through the real model, its guarded layers observed from inside. It runs the model's Python code, not a
compiled form of it: that torch.compile honours a replaced module is what the tests of this project show.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from guard.errors import SelfTestError
from guard.families.architectures import architecture_of, unwrap
from guard.runtime.buffers import EditBuffers
from guard.runtime.edit_check import SEED, extreme_value, fault_in
from guard.runtime.trigger import TriggerReadout
from guard.runtime.wrappers import GuardedDownProjection, Wrapper

ROWS, TOKENS = 2, 7


class Tap(Wrapper):
    """Stands in for a module, calls it, and keeps the arguments of the last call."""

    seen: tuple[Any, ...] = ()

    def forward(self, *arguments: Any) -> Any:
        """What the tapped module returns for `arguments`."""
        self.seen = arguments
        return self.original(*arguments)


@contextmanager
def swapped(owner: nn.Module, name: str, stand_in: Any) -> Iterator[None]:
    """Within the block, attribute `name` of `owner` is `stand_in`."""
    kept = getattr(owner, name)
    setattr(owner, name, stand_in)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def probe_logits(model: nn.Module) -> Tensor:
    """Logits [2, 7, vocabulary] of `model` on fixed random tokens; the caller's random state stays as it was."""
    architecture = architecture_of(model)
    table = next(architecture.embedding(model).parameters())  # [vocabulary, d_model]
    tokens = torch.randint(table.shape[0], (ROWS, TOKENS), generator=torch.Generator().manual_seed(SEED))
    # the state is put back each time, so that dropout, where the model trains, is the same in every probe
    devices = {weight.device for weight in model.parameters() if weight.device.type == "cuda"}
    with torch.inference_mode(), torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
        logits: Tensor = unwrap(model)(input_ids=tokens.to(table.device), use_cache=False).logits
    return logits


def check(
    model: nn.Module, guarded: Sequence[GuardedDownProjection], readout: TriggerReadout | None, plain: Tensor
) -> None:
    """Raise SelfTestError unless the edits are live. `plain` is `probe_logits(model)` from before the installation.

    Shown for every guarded layer: what reaches its down projection is the edit of what the MLP made, in bounds, all
    other neurons bit for bit; and setting its gate to extreme values changes the logits. With a trigger, with the
    threshold at -inf and at +inf: all tokens are edited, or none is and the logits are the plain ones.
    """
    if readout is None:
        _check_extremes(model, guarded, _check_edits(model, guarded, expect_active=None))
        return
    with swapped(readout, "threshold", torch.full_like(readout.threshold, -torch.inf)):
        _check_extremes(model, guarded, _check_edits(model, guarded, expect_active=True))
    with swapped(readout, "threshold", torch.full_like(readout.threshold, torch.inf)):
        logits = _check_edits(model, guarded, expect_active=False)
    if not torch.allclose(logits, plain, rtol=0.0, atol=0.0, equal_nan=True):
        raise SelfTestError(
            "the logits differ from the unguarded model's although no token is active; nothing was installed."
        )


def _check_edits(model: nn.Module, guarded: Sequence[GuardedDownProjection], expect_active: bool | None) -> Tensor:
    taps = [(wrapper.edit, Tap(wrapper.edit), Tap(wrapper.original)) for wrapper in guarded]
    with ExitStack() as stack:
        for wrapper, (_, entering, leaving) in zip(guarded, taps, strict=True):
            stack.enter_context(swapped(wrapper, "edit", entering))
            stack.enter_context(swapped(wrapper, "original", leaving))
        logits = probe_logits(model)
    for edit, entering, leaving in taps:
        if not entering.seen or not leaving.seen:
            raise SelfTestError("a guarded layer was not reached by the model's forward pass; nothing was installed.")
        h, active = entering.seen
        if expect_active is not None and not bool((active == expect_active).all()):
            raise SelfTestError("the trigger does not follow its threshold; nothing was installed.")
        fault = fault_in(edit, h, leaving.seen[0], active)
        if fault is not None:
            raise SelfTestError(f"{fault}; nothing was installed.")
    return logits


def _check_extremes(model: nn.Module, guarded: Sequence[GuardedDownProjection], edited: Tensor) -> None:
    for wrapper in guarded:
        edit = wrapper.edit
        value = extreme_value(edit)
        with swapped(wrapper, "edit", EditBuffers(edit.neurons, edit.scale, value, value, edit.d_ff)):
            logits = probe_logits(model)
        if torch.allclose(logits, edited, rtol=0.0, atol=0.0, equal_nan=True):
            raise SelfTestError("an extreme setting of a gate does not change the logits; nothing was installed.")
