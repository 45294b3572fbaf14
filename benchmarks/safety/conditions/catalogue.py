"""The conditions that are compared: no guard, the guard, and baselines.

Each is a context in which the model answers. What a condition puts on the model is gone when its context ends.
"""

import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial

from torch import nn
from transformers import PreTrainedTokenizerBase

from benchmarks.localisation.truth import ablation
from benchmarks.safety.conditions.condition import Calibrated, Condition
from benchmarks.safety.conditions.learnt import LEARNT, learnt
from benchmarks.safety.conditions.respondents import SYSTEM_PROMPT
from calibration.prompts.material import Encoder
from calibration.report.display import listed, plural
from calibration.runs.store import Store
from guard.families.architectures import architecture_of
from guard.hf import install, install_edits
from guard.spec.edit_spec import EditSpec, LayerEdit, Trigger

__all__ = ["GUARDED", "LEARNT", "PLAIN", "RANDOM", "SYSTEM", "TRUE_GATE", "Calibrated", "Condition", "conditions"]

PLAIN, GUARDED, SYSTEM, RANDOM, TRUE_GATE = "no guard", "guard", "system prompt", "random neurons", "true gate"
BATCH, TOKENS = 32, 32  # of the answers that a baseline learns from


def conditions(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    spec: EditSpec | None,
    calibrated: Calibrated | None,
    *,
    seed: int,
    allow_refuted: bool,
    template: bool,
    planted: Mapping[int, Sequence[int]] | None = None,
    work: Store | None = None,
) -> tuple[Condition, ...]:
    """All that can be compared: no guard, and with a spec the guard; a system prompt, and with a spec its edit on
    random neurons; what is learnt from the `calibrated` requests; and the `planted` neurons, by layer, at 0.

    What is learnt is kept in `work`.
    """
    found = [Condition(PLAIN, nullcontext), Condition(SYSTEM, nullcontext, SYSTEM_PROMPT, words="asks for refusals")]
    if spec is not None and spec.layers:
        guarded, elsewhere = partial(install, model, spec, allow_refuted=allow_refuted), random_edits(model, spec, seed)
        found.insert(1, Condition(GUARDED, guarded, words=_in_words(spec.layers, spec.trigger)))
        found.append(
            Condition(
                RANDOM, partial(install_edits, model, elsewhere, spec.trigger), words=_in_words(elsewhere, spec.trigger)
            )
        )
    if calibrated is not None:
        found += learnt(Encoder(model, tokenizer, template, BATCH, TOKENS), spec, calibrated, seed=seed, work=work)
    if planted:
        gate = ablation((layer, neuron) for layer, own in planted.items() for neuron in own)
        found.append(Condition(TRUE_GATE, partial(install_edits, model, gate), words=_in_words(gate, None)))
    return tuple(found)


def _in_words(edits: Sequence[LayerEdit], trigger: Trigger | None) -> str:
    layers = [str(edit.layer) for edit in edits]
    neurons = plural(sum(len(edit.neurons) for edit in edits), "neuron")
    where = f"{neurons} of layer{'s' if len(layers) > 1 else ''} {listed(layers)}"
    return where + (" where a trigger says so" if trigger else "")


def random_edits(model: nn.Module, spec: EditSpec, seed: int) -> tuple[LayerEdit, ...]:
    """The spec's scales and bounds on neurons drawn from those of the same layer that it does not edit."""
    generator, architecture = random.Random(seed), architecture_of(model)
    layers = architecture.decoder_layers(model)
    drawn = []
    for edit in spec.layers:
        free = sorted(set(range(architecture.neurons_of(layers[edit.layer]))) - set(edit.neurons))
        count = min(len(edit.neurons), len(free))
        drawn.append(
            LayerEdit(
                layer=edit.layer,
                neurons=tuple(sorted(generator.sample(free, count))),
                scale=edit.scale[:count],
                lower=edit.lower[:count],
                upper=edit.upper[:count],
            )
        )
    return tuple(drawn)
