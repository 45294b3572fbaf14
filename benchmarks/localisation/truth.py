"""What finding a gate is measured against: the planted neurons, weighted by what each of them does.

A planted neuron need not carry effect, so recall counts effect rather than names (DESIGN, "effect-weighted recall"):
weight_j = |CE({j}) + CE(all) - CE(all but j)| / 2 under ablation to 0, first and last in, so that redundant neurons
count.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from calibration.effects.outcome import outcome, readout_logits
from calibration.prompts.sequences import Batch
from calibration.runs.trial import edit_transforms, transformed
from guard.spec.edit_spec import LayerEdit

Neuron = tuple[int, int]


def ablation(neurons: Iterable[Neuron]) -> tuple[LayerEdit, ...]:
    """The edits that set `neurons`, (layer, neuron) each, to 0."""
    by_layer: dict[int, list[int]] = {}
    for layer, neuron in sorted(neurons):
        by_layer.setdefault(layer, []).append(neuron)
    return tuple(
        LayerEdit(
            layer=layer,
            neurons=tuple(chosen),
            scale=(1.0,) * len(chosen),
            lower=(0.0,) * len(chosen),
            upper=(0.0,) * len(chosen),
        )
        for layer, chosen in by_layer.items()
    )


@torch.inference_mode()
def mean_outcome(model: nn.Module, batches: Sequence[Batch], neurons: Iterable[Neuron]) -> float:
    """Mean Y over harmful requests with `neurons` ablated, nats."""
    edits = ablation(neurons)
    found = []
    for batch in batches:
        with transformed(model, edit_transforms(edits, batch.input_ids.device)):
            found.append(outcome(readout_logits(model, batch), batch))
    return float(torch.cat(found).mean())


def effect_weights(model: nn.Module, batches: Sequence[Batch], planted: Sequence[Neuron]) -> dict[Neuron, float]:
    """The weight of each planted neuron on `batches` of harmful requests, nats."""
    none, every = mean_outcome(model, batches, ()), mean_outcome(model, batches, planted)
    return {
        neuron: abs(
            (none - mean_outcome(model, batches, [neuron]))
            + (mean_outcome(model, batches, [other for other in planted if other != neuron]) - every)
        )
        / 2
        for neuron in planted
    }


def effect_weighted_recall(weights: dict[Neuron, float], found: Iterable[Neuron]) -> float:
    """Share of the planted weight that is among `found`."""
    named = set(found)
    return sum(weight for neuron, weight in weights.items() if neuron in named) / sum(weights.values())


def precision(planted: Iterable[Neuron], found: Sequence[Neuron], k: int) -> float:
    """Share of the first k neurons of `found` that are planted; a list shorter than k is judged by its own length."""
    first = found[:k]
    return len(set(planted) & set(first)) / len(first) if first else 0.0


def restored(off: float, on: float, true_gate: float) -> float:
    """Behaviour restored: (compliance off - on) / (off - with the true gate ablated), rates on held-out requests."""
    return (off - on) / (off - true_gate)
