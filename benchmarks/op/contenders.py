"""Who is timed: our op, what a user would write instead, and the layer without any edit.

Compiled functions are compiled for any number of tokens and one d_ff, as serving engines do. A dense clamp does the
same work whatever it edits, and so does our op in a compiled graph: both are timed at one share of edited neurons, the
clamp with a mask and without.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.op.cases import Case, Setting, check, checked_rows, right_answer, settings
from benchmarks.op.peers import Kernel
from guard.ops import silu_mul_edit

OURS, OURS_COMPILED = "neuron-guard", "neuron-guard, compiled"
CLAMP, CLAMP_COMPILED = "dense clamp", "dense clamp, compiled"
PLAIN, PLAIN_COMPILED = "unedited", "unedited, compiled"
COPY = "copy"
CLAMPED_SHARE = 0.01

Call = Callable[[int], Tensor]  # takes the place of the input set


class Contender(NamedTuple):
    """A function under the clock; `setting` is None for one that edits nothing."""

    name: str
    setting: Setting | None = None


def unedited(gate: Tensor, up: Tensor) -> Tensor:
    """The layer without an edit, as eager models compute it."""
    return F.silu(gate) * up


def clamped(gate: Tensor, up: Tensor, lower: Tensor, upper: Tensor, active: Tensor | None) -> Tensor:
    """The same, then a clamp of all neurons: what one writes without a kernel."""
    h = F.silu(gate) * up
    edited = torch.clamp(h, lower, upper)
    return edited if active is None else torch.where(active[:, None], edited, h)


ours = silu_mul_edit  # itself: a function around it would be timed with it


def clamp_settings(case: Case) -> list[Setting]:
    """The settings of a dense clamp that cost differently: with a mask, and without."""
    masked = 0.5 if case.shape.tokens > 1 else 0.0
    return [Setting(masked, CLAMPED_SHARE), Setting(1.0, CLAMPED_SHARE)]


def contenders(case: Case, peers: Mapping[str, Kernel]) -> dict[Contender, Call]:
    """Every function to time on `case`."""
    keep_widths(case)
    calls: dict[Contender, Call] = {Contender(PLAIN): _unedited(case, unedited)}
    calls[Contender(PLAIN_COMPILED)] = _unedited(case, _compiled(unedited))
    for name, kernel in peers.items():
        calls[Contender(name)] = _peer(case, kernel)
    for name, clamp in ((CLAMP, clamped), (CLAMP_COMPILED, _compiled(clamped))):
        for setting in clamp_settings(case):
            calls[Contender(name, setting)] = _clamped(case, clamp, setting)
    compiled = _compiled(ours)
    for setting in settings(case.shape):
        calls[Contender(OURS, setting)] = _ours(case, ours, setting)
        if setting.edited == CLAMPED_SHARE:
            calls[Contender(OURS_COMPILED, setting)] = _ours(case, compiled, setting)
    return calls


def check_all(case: Case, calls: Mapping[Contender, Call]) -> int:
    """Compare every function with the reference and raise WrongResultError for a wrong one; how many rows it saw."""
    rows = checked_rows(case)
    for setting in {contender.setting: None for contender in calls}:  # one answer at a time is kept
        right = right_answer(case, setting, rows)
        for contender, call in calls.items():
            if contender.setting == setting:
                check(contender.name, call(0), right, rows, case)
    return len(rows)


def keep_widths(case: Case) -> None:
    """Have torch.compile take d_ff as it is and leave the numbers of tokens and of edited neurons open."""
    for inputs in case.inputs:
        torch._dynamo.mark_static(inputs.gate, 1)
        torch._dynamo.mark_static(inputs.up, 1)
    for bound in (*case.lower.values(), *case.upper.values()):
        torch._dynamo.mark_static(bound, 0)
    for edit in case.edits.values():
        for values in (edit.slots, edit.scale_of_all, edit.lower_of_all, edit.upper_of_all):
            torch._dynamo.mark_static(values, 0)


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=True)


def _unedited(case: Case, function: Callable[[Tensor, Tensor], Tensor]) -> Call:
    arguments = [inputs[:2] for inputs in case.inputs]
    return lambda place: function(*arguments[place])


def _peer(case: Case, kernel: Kernel) -> Call:
    inputs = case.inputs
    return lambda place: kernel(inputs[place])


def _clamped(case: Case, function: Callable[..., Tensor], setting: Setting) -> Call:
    lower, upper, mask = case.lower[setting.edited], case.upper[setting.edited], case.masks[setting.active]
    arguments = [(*inputs[:2], lower, upper, mask) for inputs in case.inputs]
    return lambda place: function(*arguments[place])


def _ours(case: Case, function: Callable[..., Tensor], setting: Setting) -> Call:
    arguments = [(*inputs[:2], case.edits[setting.edited], case.masks[setting.active]) for inputs in case.inputs]
    return lambda place: function(*arguments[place])
