"""Is it a gate of harm, or does it modulate whatever the model says?

The gate as a whole and each of its neurons are set against benign outcomes by kind, on held-out requests: as deployed,
with the edit active everywhere, and by the natural indirect effect, for which neurons take the values that they have on
the request of the contrast. It costs four passes over the late layers for the gate and three more for each neuron, on
at most 48 harmful requests and 24 of every kind.
"""

import torch

from calibration.analyses.subject import Subject
from calibration.evidence.specificity import LIMIT, NEGLIGIBLE, failing, keep_outcomes
from calibration.search.findings import Advance
from calibration.search.specific_gate import alone
from guard.analyses.specificity import DroppedNeuron, KindEffect, NeuronSpecificity, Specificity


def measure(subject: Subject, advance: Advance) -> Specificity:
    """The gate's specificity on held-out requests."""
    gate, seed = subject.gate, subject.settings.seed
    late, outcomes = subject.late, subject.material.held_out_outcomes
    kept = keep_outcomes(subject.model, outcomes, late.layers[0], late.shelf)
    of_gate: dict[int, list[int]] = {}
    for member in gate.members:
        of_gate.setdefault(member.layer, []).append(member.neuron)
    everywhere, natural = kept.edited(subject.edits, None), kept.noised(of_gate)
    effects = kept.answers.effects
    kinds = (
        *subject.findings.examined.kinds,
        *effects(everywhere[:, None], "edit", seed=seed)[0],
        *effects(natural[:, None], "natural", seed=seed)[0],
    )
    edited = alone(gate, late.activations, kept, advance)  # [N, members]
    noised = []
    for member in gate.members:
        noised.append(kept.noised({member.layer: (member.neuron,)}))
        advance(1)
    return Specificity(
        limit=LIMIT,
        negligible=NEGLIGIBLE,
        kinds=kinds,
        neurons=tuple(
            NeuronSpecificity(
                layer=member.layer,
                neuron=member.neuron,
                edit=_most_moved(by_edit),
                natural=_most_moved(by_nature),
                specific=not failing((*by_edit, *by_nature)),
            )
            for member, by_edit, by_nature in zip(
                gate.members,
                effects(edited, "edit", seed=seed),
                effects(torch.stack(noised, dim=1), "natural", seed=seed),
                strict=True,
            )
            if by_edit and by_nature
        ),
        left_out=kept.answers.left_out,
        dropped=tuple(DroppedNeuron(layer=member.layer, neuron=member.neuron) for member in gate.dropped),
    )


def _most_moved(effects: tuple[KindEffect, ...]) -> KindEffect:
    """The kind that one neuron fails on, else the one that it moves most."""
    return max(failing(effects) or effects, key=lambda effect: effect.benign.value)


def total(subject: Subject) -> int:
    """Twice the number of neurons: each is edited, and noised."""
    return 2 * len(subject.gate.members)
