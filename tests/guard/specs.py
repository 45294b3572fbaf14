"""Specs for tests: one small one, and a Hypothesis strategy of all kinds of valid ones."""

import math
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from guard.spec.edit_spec import (
    BenignRates,
    EditSpec,
    Estimate,
    Evidence,
    HeldOut,
    LayerClips,
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

HALF = Estimate(value=0.5, low=0.25, high=0.75, n=40)
SAME = OffOn(off=HALF, on=HALF)
HELD_OUT = HeldOut(
    harmful_compliance=OffOn(off=Estimate(value=0.975, low=0.9, high=1.0, n=40), on=HALF),
    benign_refusal=SAME,
    harmful_garbled=SAME,
    benign_garbled=SAME,
    benign_kl=HALF,
    benign_first_token_kl=HALF,
    random_gates=(0.9, 1.0),
)
EFFECTIVE = Verdict(outcome="effective", reasons=(), p_value=0.001, margin=0.3)
REFUTED = Verdict(outcome="refuted", reasons=("it does no better than a random gate",), p_value=0.5, margin=0.3)
EVIDENCE = Evidence(
    contrasts=("jailbreak", "topic"),
    outcome_harmful=HALF,
    outcome_reference=HALF,
    total_effect=HALF,
    mediators=(
        MediatorEffect(
            layer=3, kind="mlp", tokens="tail", natural_indirect_effect=HALF, total_natural_indirect_effect=HALF
        ),
    ),
    neurons=(NeuronEvidence(layer=2, neuron=1, first_in=HALF, last_in=HALF, p_value=0.01),),
    set_sizes=(SetSize(size=1, effect=2.5),),
    trials=(Trial(family="clamp", strength=1.0, size=1, harmful_outcome=-3.0, benign_kl=0.001, chosen=True),),
    held_out=HELD_OUT,
    verdict=EFFECTIVE,
)
MODEL = ModelIdentity(
    model_type="llama",
    num_hidden_layers=4,
    d_model=3,
    d_ff=9,
    vocab_size=50,
    tokenizer_digest="1" * 64,
    chat_template_digest=None,
    mlp_digest="2" * 64,
)
RATES = BenignRates(
    triggered=Estimate(value=0.0, low=0.0, high=0.1, n=40),
    clips=(LayerClips(layer=2, share=HALF), LayerClips(layer=3, share=HALF)),
)
LAYERS = (
    LayerEdit(layer=2, neurons=(1, 4), scale=(1.0, 0.5), lower=(-math.inf, 0.25), upper=(0.125, math.inf)),
    LayerEdit(layer=3, neurons=(8,), scale=(0.0,), lower=(-math.inf,), upper=(math.inf,)),
)
TRIGGER = Trigger(layer=1, threshold=0.5, direction=(0.1, -0.2, 0.0), false_trigger_rate=0.01, calibration_size=128)
PROVENANCE = Provenance(
    versions={"torch": "2.13.0"}, seed=7, data={"harmful": "3" * 64}, arguments={"harmful": 'dir/"ü".csv'}
)


def small_spec(**changes: Any) -> EditSpec:
    """A spec of two layers, three neurons and a trigger, with some of its fields changed."""
    fields: dict[str, Any] = {
        "schema_version": 1,
        "model": MODEL,
        "layers": LAYERS,
        "trigger": TRIGGER,
        "provenance": PROVENANCE,
        "evidence": EVIDENCE,
    }
    return EditSpec(**(fields | changes))


def evidence_with(**changes: Any) -> Evidence:
    """The small spec's evidence with some of its fields changed."""
    return Evidence(**({name: getattr(EVIDENCE, name) for name in Evidence.model_fields} | changes))


finite = st.floats(allow_nan=False, allow_infinity=False)
single = st.floats(allow_nan=False, allow_infinity=False, width=32)
shares = st.floats(0.0, 1.0)
counts = st.integers(0, 2**31 - 1)
texts = st.text(max_size=8)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)


@st.composite
def estimates(draw: st.DrawFn, values: st.SearchStrategy[float] = finite) -> Estimate:
    low, value, high = sorted(draw(st.tuples(values, values, values)))
    return Estimate(value=value, low=low, high=high, n=draw(counts))


@st.composite
def layer_edits(draw: st.DrawFn, layer: int, d_ff: int) -> LayerEdit:
    neurons = sorted(draw(st.sets(st.integers(0, d_ff - 1), min_size=1, max_size=5)))
    bounds = [
        sorted(draw(st.tuples(single, single)))
        if draw(st.booleans())
        else draw(st.sampled_from([(-math.inf, math.inf), (-math.inf, 0.5), (-0.5, math.inf)]))
        for _ in neurons
    ]
    return LayerEdit(
        layer=layer,
        neurons=tuple(neurons),
        scale=tuple(draw(st.lists(single, min_size=len(neurons), max_size=len(neurons)))),
        lower=tuple(lower for lower, _ in bounds),
        upper=tuple(upper for _, upper in bounds),
    )


@st.composite
def benign_rates(draw: st.DrawFn, guarded: Sequence[int], has_trigger: bool) -> BenignRates:
    """Rates of a spec that edits the layers `guarded`."""
    return BenignRates(
        triggered=draw(estimates(shares)) if has_trigger else None,
        clips=tuple(LayerClips(layer=layer, share=draw(estimates(shares))) for layer in guarded),
    )


@st.composite
def evidences(
    draw: st.DrawFn, layers: int, d_ff: int, can_be_effective: bool, rates: st.SearchStrategy[BenignRates | None]
) -> Evidence:
    index = st.integers(0, layers - 1)
    effect = st.sampled_from(draw(st.lists(estimates(), min_size=1, max_size=3)))
    rate = st.sampled_from(draw(st.lists(estimates(shares), min_size=1, max_size=3)))
    off_on = st.builds(OffOn, off=rate, on=rate)
    held_out = draw(
        st.builds(
            HeldOut,
            harmful_compliance=off_on,
            benign_refusal=off_on,
            harmful_garbled=off_on,
            benign_garbled=off_on,
            benign_kl=effect,
            benign_first_token_kl=effect,
            random_gates=st.lists(shares, max_size=3).map(tuple),
            benign_rates=rates,
        )
    )
    compliance = held_out.harmful_compliance
    effective = can_be_effective and compliance.on.value <= compliance.off.value and draw(st.booleans())
    verdict = st.builds(
        Verdict,
        outcome=st.just("effective" if effective else "refuted"),
        reasons=st.lists(texts, min_size=0 if effective else 1, max_size=2).map(tuple),
        p_value=shares,
        margin=finite,
    )
    mediator = st.builds(
        MediatorEffect,
        layer=index,
        tokens=texts,
        natural_indirect_effect=effect,
        total_natural_indirect_effect=effect,
    )
    neuron = st.builds(
        NeuronEvidence,
        layer=index,
        neuron=st.integers(0, d_ff - 1),
        first_in=effect,
        last_in=effect,
        p_value=shares,
    )
    trial = st.builds(Trial, family=texts, strength=finite, size=counts, harmful_outcome=finite, benign_kl=finite)
    return Evidence(
        contrasts=draw(st.sampled_from([("jailbreak",), ("topic",), ("topic", "jailbreak")])),
        outcome_harmful=draw(effect),
        outcome_reference=draw(effect),
        total_effect=draw(effect),
        mediators=tuple(draw(st.lists(mediator, max_size=2))),
        neurons=tuple(draw(st.lists(neuron, max_size=2))),
        set_sizes=tuple(draw(st.lists(st.builds(SetSize, size=counts, effect=finite), max_size=2))),
        trials=tuple(draw(st.lists(trial, max_size=2))),
        held_out=held_out,
        verdict=draw(verdict),
    )


@st.composite
def specs(draw: st.DrawFn) -> EditSpec:
    """Any valid spec, of a small model."""
    layers, d_model, d_ff = draw(st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 12)))
    guarded = sorted(draw(st.sets(st.integers(0, layers - 1), max_size=3)))
    triggers = st.builds(
        Trigger,
        layer=st.integers(0, min(guarded, default=layers - 1)),
        threshold=single,
        direction=st.lists(single, min_size=d_model, max_size=d_model).filter(any).map(tuple),
        false_trigger_rate=shares,
        calibration_size=counts,
    )
    model = st.builds(
        ModelIdentity,
        model_type=texts,
        num_hidden_layers=st.just(layers),
        d_model=st.just(d_model),
        d_ff=st.just(d_ff),
        vocab_size=st.integers(1, 2**31 - 1),
        tokenizer_digest=st.none() | digests,
        chat_template_digest=st.none() | digests,
        mlp_digest=digests,
    )
    provenance = st.builds(
        Provenance,
        versions=st.dictionaries(texts, texts, max_size=2),
        seed=st.integers(-(2**63), 2**64 - 1),
        data=st.dictionaries(texts, digests, max_size=2),
        arguments=st.dictionaries(texts, texts, max_size=2),
    )
    trigger = draw(st.none() | triggers)
    rates = st.none() | benign_rates(guarded, trigger is not None) if guarded else st.none()
    return EditSpec(
        schema_version=1,
        model=draw(model),
        layers=tuple(draw(layer_edits(layer, d_ff)) for layer in guarded),
        trigger=trigger,
        provenance=draw(provenance),
        evidence=draw(evidences(layers, d_ff, bool(guarded), rates)),
    )
