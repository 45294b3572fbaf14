"""Subjects whose gate is the organism's true one, ablated: what `find` finds in minutes, made in seconds."""

from functools import cache

from benchmarks.organisms.catalogue import load_truth
from calibration.analyses.subject import Subject
from calibration.evidence.effects_evidence import Mediation
from calibration.evidence.verdict import Examined
from calibration.prompts.material import Encoder, pair_up
from calibration.prompts.request_sets import load_jailbreaks
from calibration.search.bounds import Bounds, Measured, Searched, build_edits
from calibration.search.findings import Findings, NeuronFindings, Settings
from calibration.search.gate import Gate
from calibration.search.selection import Member
from tests.calibration.example_spec import example_spec
from tests.calibration.organisms import BENIGN, HARMFUL, JAILBREAK, late, material, organism, requests

COUNT = 60


@cache
def planted_subject(name: str, wrapped: bool = False) -> Subject:
    """The organism's planted neurons as the gate, each ablated to 0; mediation and verdict are an example's."""
    model, tokenizer = organism(name)
    members = tuple(
        Member(layer=layer, neuron=neuron, carries="compliance", effect=1.0)
        for layer, neurons in load_truth(name).gate.items()
        for neuron in neurons
    )
    kept, bounds = late(name, COUNT, wrapped), Bounds(family="scale", strength=1.0, amplification=1.0)
    measured = Measured(harm=0.0, harmful_outcome=0.0, benign_kl=0.0, benign_first_token_kl=0.0, benign_refusal=0.0)
    edits = build_edits(members, kept.activations, bounds)
    gate = Gate(members=members, searched=Searched(bounds=bounds, edits=edits, measured=measured, trials=()))
    evidence = example_spec().evidence
    mediation = Mediation(
        outcome_harmful=evidence.outcome_harmful,
        outcome_reference=evidence.outcome_reference,
        total_effect=evidence.total_effect,
        mediators=(),
    )
    examined = Examined(held_out=evidence.held_out, verdict=evidence.verdict, harmful_samples=(), benign_samples=())
    sources = pair_up(
        requests(HARMFUL)[:COUNT],
        requests(BENIGN)[:COUNT],
        load_jailbreaks(JAILBREAK) if wrapped else None,
        seed=0,
        max_requests=None,
    )
    return Subject(
        model=model,
        tokenizer=tokenizer,
        encoder=Encoder(model, tokenizer, template=True, batch_size=12, max_new_tokens=20),
        sources=sources,
        material=material(name, COUNT, wrapped),
        findings=Findings(mediation, kept, gate, NeuronFindings(neurons=(), set_sizes=()), examined),
        settings=Settings(batch_size=12, max_new_tokens=20),
    )
