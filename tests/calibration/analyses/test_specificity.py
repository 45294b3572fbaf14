"""The analysis of specificity: what it measures of a gate and of each neuron, and what the report says of it."""

from dataclasses import replace
from functools import cache

import plotly.graph_objects as go
import pytest

from calibration.analyses import specificity
from calibration.analyses.specificity import NeuronSpecificity, Specificity
from calibration.analyses.subject import Subject
from calibration.evidence.specificity import LIMIT, KindEffect, deployed_effects
from guard.hf import install_edits
from guard.spec.measures import Estimate
from tests.calibration.organisms import every_kind
from tests.calibration.planted_subject import planted_subject


@cache
def subject() -> Subject:
    """The true gate of the two-layer organism, with benign requests of every kind."""
    planted = planted_subject("two-layer")
    material = every_kind()
    model, edits = planted.model, planted.edits
    kinds = deployed_effects(model, material.held_out_outcomes, lambda: install_edits(model, edits), seed=0)
    examined = planted.findings.examined.model_copy(update={"kinds": kinds})
    return replace(planted, material=material, findings=replace(planted.findings, examined=examined))


STEPS: list[int] = []


@cache
def measured() -> Specificity:
    return specificity.measure(subject(), STEPS.append)


def test_the_true_gate_of_an_organism_is_claimed_to_be_specific() -> None:
    (claim,) = measured().claims
    assert claim.said == "yes"
    assert all(neuron.specific for neuron in measured().neurons)


def test_every_intervention_is_measured_on_the_same_kinds() -> None:
    by_intervention: dict[str, list[str]] = {}
    for effect in measured().kinds:
        by_intervention.setdefault(effect.intervention, []).append(effect.kind)
    assert set(by_intervention) == {"deployed", "edit", "natural"}
    assert len({tuple(kinds) for kinds in by_intervention.values()}) == 1
    assert len(by_intervention["edit"]) >= 3


def test_without_a_trigger_the_guard_as_deployed_does_what_its_edit_does() -> None:
    for effect in measured().kinds:
        if effect.intervention == "deployed":
            (same,) = (e for e in measured().kinds if e.intervention == "edit" and e.kind == effect.kind)
            assert effect.index.value == pytest.approx(same.index.value, abs=1e-3)


def test_each_neuron_is_edited_and_noised_once() -> None:
    members = subject().gate.members
    assert [(n.layer, n.neuron) for n in measured().neurons] == [(m.layer, m.neuron) for m in members]
    assert sum(STEPS) == specificity.total(subject()) == 2 * len(members)


def test_what_is_left_out_is_told_with_its_reason_in_the_report() -> None:
    section = specificity.describe(measured())
    assert measured().left_out
    for each in measured().left_out:
        assert any(each.kind in paragraph and each.reason in paragraph for paragraph in section.paragraphs)


def failing() -> Specificity:
    """The measured one, with a neuron that is not specific and a kind with markup in its name."""

    def renamed(effect: KindEffect) -> KindEffect:
        return effect.model_copy(update={"kind": "<b>a very long name of a kind</b>"})

    neuron = measured().neurons[0]
    moved = neuron.edit.model_copy(update={"benign": neuron.edit.harmful})
    bad = NeuronSpecificity(layer=5, neuron=3, edit=renamed(moved), natural=neuron.natural, specific=False)
    kinds = tuple(renamed(effect) if effect.kind == moved.kind else effect for effect in measured().kinds)
    return measured().model_copy(update={"neurons": (*measured().neurons, bad), "kinds": kinds})


def test_neurons_that_fail_are_named_and_drawn_apart() -> None:
    section = specificity.describe(failing())
    assert any("neuron 3 of layer 5" in paragraph for paragraph in section.paragraphs)
    by_neuron = next(plot for plot in section.plots if plot.name == "specificity-by-neuron")
    assert {trace["name"] for trace in by_neuron.traces} == {"specific", "not specific", "negligible below"}
    assert not any("not specific alone" in paragraph for paragraph in specificity.describe(measured()).paragraphs)


def test_the_report_says_whether_the_guard_is_specific_where_a_neuron_alone_is_not() -> None:
    bad = failing()
    loud = [
        each.model_copy(update={"benign": each.harmful, "index": Estimate(value=0.0, low=-0.1, high=0.1, n=9)})
        for each in bad.kinds
    ]
    for found, said in (
        (bad, "specific all the same"),
        (bad.model_copy(update={"kinds": loud}), "not specific either"),
    ):
        assert any(said in paragraph for paragraph in specificity.describe(found).paragraphs)


def test_neurons_that_were_dropped_are_named_in_the_evidence_and_in_the_report() -> None:
    kept, gone = subject().gate.members[:2]
    gate = subject().gate.model_copy(update={"members": (kept,), "dropped": (gone,)})
    smaller = replace(subject(), findings=replace(subject().findings, gate=gate))
    found = specificity.measure(smaller, lambda _: None)
    assert [(each.layer, each.neuron) for each in found.dropped] == [(gone.layer, gone.neuron)]
    told = next(each for each in specificity.describe(found).paragraphs if each.startswith("Dropped"))
    assert f"neuron {gone.neuron} of layer {gone.layer}" in told


def test_the_figures_are_valid_and_hold_every_number() -> None:
    section = specificity.describe(failing())
    assert [plot.name for plot in section.plots] == ["specificity-by-kind", "specificity-by-neuron"]
    for plot in section.plots:
        text = str(plot.traces) + str(plot.layout)
        assert "<b>" not in text
        go.Figure(data=[{**trace, "marker": {}, "line": {}, "error_x": {}} for trace in plot.traces])
        assert all(len(row) == len(plot.columns) for row in plot.rows)
    assert len(section.plots[0].rows) == len(measured().kinds)
    assert len(section.plots[1].rows) == len(measured().neurons) + 1
    assert f"{LIMIT}" in section.plots[0].label


def test_the_report_writes_no_request() -> None:
    text = measured().model_dump_json() + str(specificity.describe(measured()))
    words = {request.prompt for request in subject().sources.benign.held_out}
    assert not any(prompt in text for prompt in words)


def test_nothing_measured_makes_a_section_without_figures() -> None:
    nothing = Specificity(limit=LIMIT, negligible=0.02, kinds=(), neurons=(), left_out=())
    assert specificity.describe(nothing).plots == ()
    assert nothing.claims == ()
