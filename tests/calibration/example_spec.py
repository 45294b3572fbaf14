"""Example edit specs for tests: every number made up and seeded, every shape that a calibration may leave behind.

`example_spec()` is a gate of eight neurons over two layers that the verdict holds effective; arguments bend it to the
edges: no neuron at all, hundreds of them, no trigger, no mediators, no trials.
"""

import math
from typing import Any

import numpy as np

from guard.spec.edit_spec import (
    BenignRates,
    EditSpec,
    Estimate,
    Evidence,
    HeldOut,
    LayerEdit,
    MediatorEffect,
    ModelIdentity,
    NeuronEvidence,
    OffOn,
    Provenance,
    SetSize,
    Trial,
    Trigger,
    Verdict,
)

D_MODEL = 16
# Arguments of `example_spec` for every shape that a report has to bear.
SHAPES: dict[str, dict[str, Any]] = {
    "eight neurons": {},
    "no neuron": {"neurons": 0, "effective": False},
    "one neuron": {"neurons": 1},
    "five hundred neurons": {"neurons": 500},
    "one token group": {"groups": ("edited",)},
    "a token group of another name": {"groups": ("the <b>third</b> word", "<script>")},
    "nothing measured": {"mediators": False, "trials": False, "random_gates": 0, "trigger": False},
    "two hundred random gates": {"random_gates": 200},
}
REFUTATIONS = (
    "harmful compliance went from 96.9% to 95.3%, not a fall of more than 30% at p < 0.01 (p = 1)",
    "it does no better than the strongest random neurons at p < 0.01 (p = 0.62)",
)


def _single(value: float) -> float:
    """The nearest float32, since a spec's tensors keep no more."""
    return float(np.float32(value))


def _around(value: float, width: float, n: int = 64) -> Estimate:
    return Estimate(value=value, low=value - width, high=value + width, n=n)


def _share(value: float, n: int = 128) -> Estimate:
    width = 0.5 / math.sqrt(n)
    return Estimate(value=value, low=max(0.0, value - width * 0.4), high=min(1.0, value + width * 0.4), n=n)


def example_edits(neurons: int, layers: tuple[int, ...], d_ff: int, seed: int) -> tuple[LayerEdit, ...]:
    """`neurons` spread over `layers`, with every kind of bound: ablated, held, clamped, scaled."""
    random = np.random.default_rng(seed)
    kinds = (
        (1.0, 0.0, 0.0),
        (1.0, 0.21, 0.21),
        (1.0, -math.inf, 0.37),
        (1.0, -0.12, math.inf),
        (0.5, -math.inf, math.inf),
    )
    edits = []
    for place, layer in enumerate(layers):
        count = neurons // len(layers) + (place < neurons % len(layers))
        if not count:
            continue
        chosen = sorted(int(neuron) for neuron in random.choice(d_ff, size=count, replace=False))
        scale, lower, upper = zip(*(kinds[(place + n) % len(kinds)] for n in range(count)), strict=True)
        edits.append(
            LayerEdit(
                layer=layer,
                neurons=tuple(chosen),
                scale=tuple(map(_single, scale)),
                lower=tuple(map(_single, lower)),
                upper=tuple(map(_single, upper)),
            )
        )
    return tuple(edits)


def example_mediators(layers: int, groups: tuple[str, ...], seed: int) -> tuple[MediatorEffect, ...]:
    """Effects that grow with the layer, mostly through the MLP of the last two."""
    random = np.random.default_rng(seed)
    share = {"edited": 1.0, "tail": 0.85, "last_prompt": 0.7, "response": 0.2, "first_response": 0.1}
    effects = []
    for layer in range(layers):
        late = 1 / (1 + math.exp(-2.5 * (layer - layers + 2.2)))
        for kind, part in (("layer", late), ("attention", 0.08 * late), ("mlp", 0.9 * late**4 - 0.03)):
            for group in groups:
                value = 18.4 * part * share.get(group, 0.5) + random.normal(0, 0.15)
                effects.append(
                    MediatorEffect(
                        layer=layer,
                        kind=kind,  # type: ignore[arg-type]
                        tokens=group,
                        natural_indirect_effect=_around(value * 0.8, 0.4 + 0.08 * abs(value)),
                        total_natural_indirect_effect=_around(value, 0.3 + 0.06 * abs(value)),
                    )
                )
    return tuple(effects)


def example_neurons(edits: tuple[LayerEdit, ...], seed: int) -> tuple[NeuronEvidence, ...]:
    """Evidence for each edited neuron, from strong to none."""
    random = np.random.default_rng(seed)
    places = [(edit.layer, neuron) for edit in edits for neuron in edit.neurons]
    evidence = []
    for rank, (layer, neuron) in enumerate(places):
        first, last = 4.0 / (1 + 0.5 * rank), 2.5 / (1 + 0.3 * rank) + random.normal(0, 0.05)
        evidence.append(
            NeuronEvidence(
                layer=layer,
                neuron=neuron,
                first_in=_around(first, 0.1 + 0.1 * first),
                last_in=_around(last, 0.15 + 0.1 * abs(last)),
                p_value=min(1.0, 1e-7 * 8.0 ** min(rank, 9)),
            )
        )
    return tuple(evidence)


def example_trials(seed: int, size: int) -> tuple[Trial, ...]:
    """Forty trials over four families, one of them chosen, one that changes nothing."""
    random = np.random.default_rng(seed)
    trials = []
    for place in range(40):
        family, strength = ("scale", "clamp", "benign_mean", "reference_mean")[place % 4], round(random.random(), 2)
        cost = 0.0 if place == 3 else float(10 ** random.normal(-4.5 + 2 * strength, 0.7))
        lean = 9.0 - 16 * strength + random.normal(0, 1)
        trials.append((family, strength, lean, cost))
    best = min(range(40), key=lambda place: trials[place][2] + 1000 * max(0.0, trials[place][3] - 0.01))
    return tuple(
        Trial(family=f, strength=s, size=size, harmful_outcome=y, benign_kl=kl, chosen=place == best)
        for place, (f, s, y, kl) in enumerate(trials)
    )


def example_spec(
    *,
    neurons: int = 8,
    effective: bool = True,
    trigger: bool = True,
    mediators: bool = True,
    groups: tuple[str, ...] = ("edited", "tail", "response"),
    trials: bool = True,
    random_gates: int = 20,
    seed: int = 0,
) -> EditSpec:
    """A spec of `neurons` neurons in the last two of six layers; see the module."""
    random, d_ff = np.random.default_rng(seed), 512
    edits = example_edits(neurons, (4, 5), d_ff, seed)
    on = 0.008 if effective else 0.953
    sizes = [size for size in (1, 2, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 500) if size <= 2 * neurons]
    total = Estimate(value=18.4, low=17.2, high=19.6, n=64)
    return EditSpec(
        schema_version=1,
        model=ModelIdentity(
            model_type="llama",
            num_hidden_layers=6,
            d_model=D_MODEL,
            d_ff=d_ff,
            vocab_size=320,
            tokenizer_digest="5d41402abc4b2a76b9719d911017c592ae5d41402abc4b2a76b9719d911017c5",
            chat_template_digest=None,
            mlp_digest="7d793037a0760186574b0282f2f435e7ba7d793037a0760186574b0282f2f435",
        ),
        layers=edits,
        trigger=Trigger(
            layer=1,
            threshold=_single(1.375),
            direction=tuple(_single(x) for x in random.normal(size=D_MODEL)),
            false_trigger_rate=0.01,
            calibration_size=128,
        )
        if trigger
        else None,
        provenance=Provenance(
            versions={"neuron-guard": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.2"},
            seed=seed,
            data={
                "harmful": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                "benign": "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752",
            },
            arguments={"trigger": "auto", "benign_kl_budget": "0.01", "harmful": "requests/harmful.jsonl"},
        ),
        evidence=Evidence(
            contrasts=("topic",),
            outcome_harmful=_around(7.9, 0.6),
            outcome_reference=_around(-10.5, 0.8),
            total_effect=total,
            mediators=example_mediators(6, groups, seed) if mediators else (),
            neurons=example_neurons(edits, seed),
            set_sizes=tuple(SetSize(size=n, effect=17.6 * (1 - math.exp(-n / 3))) for n in sizes),
            trials=example_trials(seed, neurons) if trials and neurons else (),
            held_out=HeldOut(
                harmful_compliance=OffOn(off=_share(0.969), on=_share(on)),
                benign_refusal=OffOn(off=_share(0.0), on=_share(0.008)),
                harmful_garbled=OffOn(off=_share(0.0), on=_share(0.0)),
                benign_garbled=OffOn(off=_share(0.008), on=_share(0.008)),
                benign_kl=Estimate(value=0.00213, low=0.0011, high=0.0034, n=128),
                benign_first_token_kl=Estimate(value=4.1e-5, low=1.2e-5, high=9.3e-5, n=128),
                random_gates=tuple(float(x) for x in np.clip(random.normal(0.95, 0.03, size=random_gates), 0, 1)),
            ),
            verdict=Verdict(
                outcome="effective" if effective else "refuted",
                reasons=() if effective else REFUTATIONS,
                p_value=3.2e-9 if effective else 1.0,
                margin=0.3,
            ),
        ),
    )


def with_rates(spec: EditSpec, rates: BenignRates) -> EditSpec:
    """`spec` with how often the guard acts on benign requests."""
    held_out = spec.evidence.held_out.model_copy(update={"benign_rates": rates})
    return spec.model_copy(update={"evidence": spec.evidence.model_copy(update={"held_out": held_out})})
