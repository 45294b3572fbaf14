"""What the op is measured on: the grid of shapes and settings, the tensors of one shape, and the right answer.

The edit is a clamp, the cheapest there is for a rival that clamps densely: it needs no scale. Bounds are narrow, so
that a kernel that forgets the edit is far from the answer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from guard.errors import NeuronGuardError
from guard.ops import EditTensors
from guard.ops.reference import edit_neurons

WIDTHS, TOKENS = (3584, 7168, 14336, 28672), (1, 8, 64, 256, 2048, 8192)
QUICK_WIDTHS, QUICK_TOKENS = (3584, 14336), (1, 64, 2048)
ACTIVE, EDITED = (0.0, 0.5, 1.0), (0.001, 0.01, 1.0)
MOST_DECODED, GRAPH_CALLS = 256, 32  # up to so many tokens are a decoding step, timed in a graph of so many calls
BOUND = 0.0625  # a quarter of the neurons' standard deviation; every dtype holds it exactly
CHECKED_ROWS = {"cpu": 256, "cuda": 2048}
LIVE_TENSORS = 6  # in the hungriest rival: silu, product, clamped, selected, and one on its way in and out


class WrongResultError(NeuronGuardError):
    """A kernel that does not compute what it is timed for."""


class Shape(NamedTuple):
    """Neurons of a layer and tokens of a forward pass."""

    d_ff: int
    tokens: int

    @property
    def elements(self) -> int:
        """Entries of one tensor [tokens, d_ff]."""
        return self.d_ff * self.tokens


class Setting(NamedTuple):
    """Shares of active tokens and of edited neurons. Everywhere active means without a mask, as without a trigger."""

    active: float
    edited: float


class Inputs(NamedTuple):
    """What an MLP's projections give: gate, up [tokens, d_ff]; packed [tokens, 2 d_ff] where a kernel wants it."""

    gate: Tensor
    up: Tensor
    packed: Tensor | None


def grid(quick: bool) -> list[Shape]:
    """Every shape to measure, narrow layers first; `quick` takes a few."""
    widths, tokens = (QUICK_WIDTHS, QUICK_TOKENS) if quick else (WIDTHS, TOKENS)
    return [Shape(*pair) for pair in product(widths, tokens)]


def settings(shape: Shape) -> list[Setting]:
    """Every setting that `shape` can have: half of one token cannot be active."""
    active = [share for share in ACTIVE if shape.tokens > 1 or share != 0.5]
    return [Setting(*pair) for pair in product(active, EDITED)]


def input_sets(shape: Shape, device: torch.device) -> int:
    """How many inputs a sample goes through: several in a CUDA graph of a decoding step, else one."""
    return GRAPH_CALLS if device.type == "cuda" and shape.tokens <= MOST_DECODED else 1


def bytes_needed(shape: Shape, dtype: torch.dtype, sets: int, *, packed: bool) -> int:
    """Memory that measuring `shape` takes at its peak: inputs, packed copies for kernels that want them, results."""
    return shape.elements * dtype.itemsize * (sets * (4 if packed else 2) + LIVE_TENSORS)


@dataclass(frozen=True)
class Case:
    """The tensors of one shape, input set by input set.

    `edits` by share of edited neurons, `masks` bool [tokens] by share of active tokens, None where all are; `lower` and
    `upper` [d_ff] are the dense bounds of the same edits, infinite elsewhere.
    """

    shape: Shape
    inputs: Sequence[Inputs]
    edits: dict[float, EditTensors]
    masks: dict[float, Tensor | None]
    lower: dict[float, Tensor]
    upper: dict[float, Tensor]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.inputs[0].gate.device


def make_case(shape: Shape, device: torch.device, dtype: torch.dtype, *, packed: bool, seed: int) -> Case:
    """Random inputs, masks and edits of `shape`; the same seed gives the same on one device."""
    generator = torch.Generator(device).manual_seed(seed)

    def one_set() -> Inputs:
        gate, up = (
            torch.randn(shape.tokens, shape.d_ff, device=device, dtype=dtype, generator=generator) for _ in range(2)
        )
        return Inputs(gate, up, torch.cat((gate, up), dim=-1) if packed else None)

    inputs = [one_set() for _ in range(input_sets(shape, device))]
    places = torch.randperm(shape.d_ff, device=device, generator=generator)
    order = torch.randperm(shape.tokens, device=device, generator=generator)
    neurons = {share: places[: max(1, round(share * shape.d_ff))].sort().values for share in EDITED}

    def dense(bound: float) -> dict[float, Tensor]:
        unbounded = math.copysign(math.inf, bound)
        everywhere = torch.full((shape.d_ff,), unbounded, device=device, dtype=dtype)
        return {share: everywhere.index_fill(0, chosen, bound) for share, chosen in neurons.items()}

    return Case(
        shape,
        inputs,
        {share: clamping(chosen, shape.d_ff) for share, chosen in neurons.items()},
        {share: None if share == 1.0 else order < round(share * shape.tokens) for share in ACTIVE},
        dense(-BOUND),
        dense(BOUND),
    )


def clamping(neurons: Tensor, d_ff: int) -> EditTensors:
    """The edit that clamps `neurons`, sorted int64 [k], of `d_ff` to within ±BOUND."""
    bound = torch.full(neurons.shape, BOUND, device=neurons.device)
    return EditTensors.of(neurons, torch.ones_like(bound), -bound, bound, d_ff)


def checked_rows(case: Case) -> Tensor:
    """The rows that are compared with the reference: CHECKED_ROWS of the device, evenly from the first to the last."""
    tokens = case.shape.tokens
    count = min(tokens, CHECKED_ROWS[case.device.type])
    return torch.linspace(0, tokens - 1, count, device=case.device).round().long()


def right_answer(case: Case, setting: Setting | None, rows: Tensor) -> Tensor:
    """What `rows` of the first input set become, in float64 by the reference; unedited if `setting` is None."""
    gate, up = (side[rows].double() for side in case.inputs[0][:2])
    h = F.silu(gate) * up  # [rows, d_ff]
    if setting is None:
        return h
    edit, mask = case.edits[setting.edited], case.masks[setting.active]
    return edit_neurons(h, edit.neurons, edit.scale, edit.lower, edit.upper, None if mask is None else mask[rows])


def check(name: str, result: Tensor, right: Tensor, rows: Tensor, case: Case) -> None:
    """Raise WrongResultError unless `rows` of `result` [tokens, d_ff] are `right` to the rounding of their dtype.

    Allowed are 4 units in the last place: silu and the product round once each, and exponentials differ by one.
    """
    if result.shape != case.inputs[0].gate.shape or result.dtype != case.inputs[0].gate.dtype:
        raise WrongResultError(f"{name} gives {result.dtype} of shape {tuple(result.shape)}: do not time it.")
    given = result[rows].double()
    allowed = 4 * torch.finfo(result.dtype).eps * right.abs() + torch.finfo(result.dtype).tiny
    wrong = ~((given - right).abs() <= allowed)
    if wrong.any():
        worst = float((given - right).abs().max())
        raise WrongResultError(
            f"{name} is wrong at {int(wrong.sum())} of {wrong.numel()} neurons of {case.shape}, "
            f"by up to {worst:.2g}: its time would say nothing."
        )
