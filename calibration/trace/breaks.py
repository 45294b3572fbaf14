"""Breaks: neurons set by hand, as `L23.N1187=0` writes them, and the edits that they are.

A break is one line of the edit's formula, h <- clip(h, lower, upper), at every token. It is for looking: what a break
may say afterwards is decided in `cases.py`.
"""

import math
import re
from collections.abc import Sequence

from guard.errors import NeuronGuardError
from guard.spec.edit_spec import LayerEdit

WRITTEN = re.compile(r"\s*L(\d{1,6})\s*\.\s*N(\d{1,9})\s*(<=|>=|=)\s*(\S+)\s*", re.IGNORECASE | re.ASCII)
LARGEST = 3.4e38  # float32's, about


class BreakError(NeuronGuardError):
    """A break that cannot be read, or that names what the model does not have."""


def read_breaks(written: Sequence[str]) -> dict[tuple[int, int], tuple[float, float]]:
    """Lower and upper bound by (layer, neuron). Two breaks of one neuron must leave it a value. Raises BreakError."""
    bounds: dict[tuple[int, int], tuple[float, float]] = {}
    for text in written:
        found = WRITTEN.fullmatch(text)
        value = _number(found[4]) if found else None
        if found is None or value is None:
            raise BreakError(
                f"{text!r} sets no neuron: write L23.N1187=0, 'L23.N1187<=0.5' or 'L23.N1187>=-1' with a number."
            )
        place, sign = (int(found[1]), int(found[2])), found[3]
        lower, upper = bounds.get(place, (-math.inf, math.inf))
        lower = max(lower, value) if sign != "<=" else lower
        upper = min(upper, value) if sign != ">=" else upper
        if lower > upper:
            raise BreakError(f"{text!r} contradicts an earlier --set of the same neuron: no value satisfies both.")
        bounds[place] = (lower, upper)
    return bounds


def break_edits(written: Sequence[str], widths: Sequence[int]) -> tuple[LayerEdit, ...]:
    """The edits of all breaks, by layer; `widths` are the neurons of each layer of the model. Raises BreakError."""
    bounds = read_breaks(written)
    for layer, neuron in bounds:
        if layer >= len(widths):
            raise BreakError(
                f"there is no layer {layer} to set a neuron of: the model has layers 0 to {len(widths) - 1}."
            )
        if neuron >= widths[layer]:
            raise BreakError(
                f"there is no neuron {neuron} to set in layer {layer}: it has neurons 0 to {widths[layer] - 1}."
            )
    edits = []
    for layer in sorted({layer for layer, _ in bounds}):
        neurons = tuple(sorted(neuron for at, neuron in bounds if at == layer))
        limits = [bounds[layer, neuron] for neuron in neurons]
        edits.append(
            LayerEdit(
                layer=layer,
                neurons=neurons,
                scale=(1.0,) * len(neurons),
                lower=tuple(lower for lower, _ in limits),
                upper=tuple(upper for _, upper in limits),
            )
        )
    return tuple(edits)


def _number(text: str) -> float | None:
    """A finite number that float32 holds, else None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) <= LARGEST else None
