"""How strong the guard is made: fewer of its neurons, or looser bounds, from no edit to the spec's own.

Both sweeps are edits as a spec has them, so each could be saved and served. Value by value each lies between what the
model says unedited and what the spec makes of it: a sweep shows what strength buys, and never passes the spec.

Fewer neurons: the first ones by the size of their effects in the evidence, first and last in. Looser bounds: moved
linearly from a neuron's natural range to the spec's, its scale from 1 to the spec's. A spec does not record natural
ranges. They are the lowest and highest values over some prompts, best those that it was calibrated on, without any
over random tokens; so the way from no edit to the loosest bounds is a step, and the rest is a line.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.safety.conditions.catalogue import GUARDED, PLAIN
from benchmarks.safety.conditions.condition import Condition
from calibration.report.display import plural
from calibration.runs.trial import transformed
from guard.families.architectures import architecture_of
from guard.hf import install_edits
from guard.spec.edit_spec import EditSpec, LayerEdit

Sweep = Literal["ends", "neurons", "bounds"]
Range = tuple[Tensor, Tensor]
SHARES = (0.125, 0.25, 0.5, 0.75)
TIGHTNESS = (0.25, 0.5, 0.75, 0.9)
MOST_PROMPTS = 128
RANDOM_TOKENS = (16, 64)


@dataclass(frozen=True)
class Strength(Condition):
    """The guard with `neurons` of the spec's `of_neurons`, and bounds `tightness` of the way to the spec's.

    Both sweeps share their ends, which are the conditions no guard and guard, by name too.
    """

    sweep: Sweep = "ends"
    neurons: int = 0
    of_neurons: int = 0
    tightness: float = 0.0
    edits: tuple[LayerEdit, ...] = ()


def strengths(model: nn.Module, spec: EditSpec, prompts: Sequence[tuple[int, ...]] = ()) -> tuple[Strength, ...]:
    """No edit, the sweep of neurons, the sweep of bounds, and the spec, each sweep from weak to strong.

    `prompts`, encoded, are what natural ranges are read on. None for a spec that edits nothing.
    """
    total = sum(len(edit.neurons) for edit in spec.layers)
    if not total:
        return ()

    def strength(name: str, sweep: Sweep, neurons: int, tightness: float, edits: tuple[LayerEdit, ...]) -> Strength:
        installed = partial(install_edits, model, edits, spec.trigger) if edits else nullcontext
        return Strength(
            name, installed, sweep=sweep, neurons=neurons, of_neurons=total, tightness=tightness, edits=edits
        )

    ranges = natural_ranges(model, spec.layers, prompts)
    counts = sorted({round(share * total) for share in SHARES} - {0, total})
    fewer = [
        strength(f"guard, {count} of {plural(total, 'neuron')}", "neurons", count, 1.0, strongest_neurons(spec, count))
        for count in counts
    ]
    looser = [
        strength(f"guard, bounds at {tightness:.0%}", "bounds", total, tightness, loosened(spec, ranges, tightness))
        for tightness in TIGHTNESS
    ]
    return (
        strength(PLAIN, "ends", 0, 0.0, ()),
        *fewer,
        *looser,
        strength(GUARDED, "ends", total, 1.0, spec.layers),
    )


def strongest_neurons(spec: EditSpec, count: int) -> tuple[LayerEdit, ...]:
    """The spec's edits of the `count` neurons whose effects, first and last in, are largest on average.

    Neurons without evidence come last; of equal ones the earlier layer, then the lower number, comes first.
    """
    effects = {(e.layer, e.neuron): abs(e.first_in.value + e.last_in.value) / 2 for e in spec.evidence.neurons}
    every = [(edit.layer, neuron) for edit in spec.layers for neuron in edit.neurons]
    kept = set(sorted(every, key=lambda place: (-effects.get(place, 0.0), place))[:count])
    edits = []
    for edit in spec.layers:
        places = [place for place, neuron in enumerate(edit.neurons) if (edit.layer, neuron) in kept]
        if places:
            edits.append(
                LayerEdit(
                    layer=edit.layer,
                    neurons=tuple(edit.neurons[place] for place in places),
                    scale=tuple(edit.scale[place] for place in places),
                    lower=tuple(edit.lower[place] for place in places),
                    upper=tuple(edit.upper[place] for place in places),
                )
            )
    return tuple(edits)


def loosened(spec: EditSpec, ranges: Mapping[int, Range], tightness: float) -> tuple[LayerEdit, ...]:
    """The spec's edits with bounds and scales `tightness` (0 to 1) of the way to the spec's.

    A neuron whose scale is above 1 or below 0, or that is scaled towards bounds without 0 between them, keeps its
    bounds and has its scale moved alone: with looser bounds it could be moved beyond where the spec puts it.
    """
    edits = []
    for edit in spec.layers:
        scale, lower, upper = (
            torch.tensor(values, dtype=torch.float64) for values in (edit.scale, edit.lower, edit.upper)
        )  # [k] each
        low, high = (end.double() for end in ranges[edit.layer])
        alone = (scale != 1) & ((scale < 0) | (scale > 1) | (lower > 0) | (upper < 0))
        looser_lower, looser_upper = _between(low, lower, tightness), _between(high, upper, tightness)
        edits.append(
            LayerEdit(
                layer=edit.layer,
                neurons=edit.neurons,
                scale=tuple((1 + tightness * (scale - 1)).tolist()),
                lower=tuple(torch.where(alone, lower, torch.minimum(lower, looser_lower)).tolist()),
                upper=tuple(torch.where(alone, upper, torch.maximum(upper, looser_upper)).tolist()),
            )
        )
    return tuple(edits)


def _between(natural: Tensor, bound: Tensor, tightness: float) -> Tensor:
    """`tightness` of the way from the natural end to the bound, [k]; a bound that is infinite stays so."""
    return torch.where(bound.isinf(), bound, natural + tightness * (bound - natural))


@torch.inference_mode()
def natural_ranges(
    model: nn.Module, edits: Sequence[LayerEdit], prompts: Sequence[tuple[int, ...]]
) -> dict[int, Range]:
    """Lowest and highest value of each edited neuron, [k] float32 each, by layer, over the tokens of `prompts`.

    At most `MOST_PROMPTS` of them, evenly taken; random tokens stand for them where there are none.
    """
    device = next(model.parameters()).device
    some = prompts[:: max(1, len(prompts) // MOST_PROMPTS)]
    rows = [torch.tensor([prompt], device=device) for prompt in some] or [_random_tokens(model).to(device)]
    seen: dict[int, list[Tensor]] = {edit.layer: [] for edit in edits}

    def reading(edit: LayerEdit) -> Callable[[Tensor], Tensor]:
        neurons = torch.tensor(edit.neurons)

        def read(h: Tensor) -> Tensor:
            values = h[..., neurons.to(h.device)].float().cpu().flatten(0, 1)  # [tokens, k]
            seen[edit.layer].append(torch.stack([values.amin(0), values.amax(0)]))
            return h

        return read

    with transformed(model, {edit.layer: reading(edit) for edit in edits}):
        for row in rows:
            model(input_ids=row, use_cache=False)
    ends = {layer: torch.stack(found) for layer, found in seen.items()}  # [rows, 2, k]
    return {layer: (found[:, 0].amin(0), found[:, 1].amax(0)) for layer, found in ends.items()}


def _random_tokens(model: nn.Module) -> Tensor:
    """Fixed random tokens, int64."""
    table = next(architecture_of(model).embedding(model).parameters())  # [vocabulary, d_model]
    return torch.randint(table.shape[0], RANDOM_TOKENS, generator=torch.Generator().manual_seed(0))
