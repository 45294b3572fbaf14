"""Gates, activations and bounds drawn at random, and the edits made of them by neuron."""

from typing import get_args

import torch
from hypothesis import strategies as st
from torch import Tensor

from calibration.search.bounds import AMPLIFICATIONS, OVERSHOOT, Activations, Bounds, Family
from calibration.search.selection import Carries, Member
from guard.spec.edit_spec import LayerEdit

D_FF = 5
FAMILIES = get_args(Family)
ACTIVATION = st.floats(-1e6, 1e6, width=32)


@st.composite
def activations_of_two_layers(draw: st.DrawFn) -> Activations:
    def column() -> Tensor:
        return torch.tensor(draw(st.lists(ACTIVATION, min_size=D_FF, max_size=D_FF)))

    summaries: dict[str, dict[int, Tensor]] = {name: {} for name in Activations.__dataclass_fields__}
    for layer in (3, 4):
        ends = torch.stack([column(), column()]).sort(dim=0).values
        summaries["benign_low"][layer], summaries["benign_high"][layer] = ends
        for name in ("benign_mean", "harmful_mean", "reference_mean", "harmful_size"):
            summaries[name][layer] = column()
    return Activations(**summaries)


@st.composite
def gates(draw: st.DrawFn) -> list[Member]:
    places = draw(st.sets(st.tuples(st.sampled_from([3, 4]), st.integers(0, D_FF - 1)), min_size=1))
    kinds: st.SearchStrategy[Carries] = st.sampled_from(get_args(Carries))
    return [Member(layer=layer, neuron=neuron, carries=draw(kinds), effect=0.0) for layer, neuron in sorted(places)]


BOUNDS = st.builds(
    Bounds,
    family=st.sampled_from(FAMILIES),
    strength=st.floats(0.0, OVERSHOOT, width=32),
    amplification=st.sampled_from(AMPLIFICATIONS),
)


def held(edits: tuple[LayerEdit, ...]) -> dict[tuple[int, int], tuple[float, float, float]]:
    """(layer, neuron) -> scale, lower, upper."""
    return {
        (edit.layer, neuron): (scale, lower, upper)
        for edit in edits
        for neuron, scale, lower, upper in zip(edit.neurons, edit.scale, edit.lower, edit.upper, strict=True)
    }
