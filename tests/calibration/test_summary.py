"""A spec as tables: what a reader of the terminal is told, and what is left out of it."""

import math
from typing import Any

import pytest
from rich.console import Console

from calibration.report.display import probability
from calibration.summary import NEURONS_SHOWN, edit_kinds, held_out_table, result, summary
from guard.spec.edit_spec import BenignRates, Estimate, LayerClips, LayerEdit
from tests.calibration.example_spec import REFUTATIONS, example_spec, with_rates


def shown(renderable: Any, width: int = 200) -> str:
    console = Console(width=width, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_the_table_says_off_and_on_with_intervals_for_every_rate_and_quality() -> None:
    text = shown(result(example_spec())[0])
    for name in (
        "harmful compliance",
        "benign refusal",
        "harmful garbled",
        "benign garbled",
        "full-sequence KL",
        "first-token KL",
    ):
        assert name in text
    assert "96.9% (95.1% to 98.7%)" in text
    assert "0.8%" in text
    assert "0.0021 (0.0011 to 0.0034)" in text
    assert "20 random gates leave harmful compliance at" in text


def test_an_effective_verdict_says_how_sure_it_is() -> None:
    spec = example_spec()
    text = shown(result(spec)[1])
    assert "effective" in text
    assert "refuted" not in text
    assert f"p {probability(spec.evidence.verdict.p_value)}" in text


def test_a_refuted_verdict_gives_each_reason_and_what_that_means() -> None:
    text = shown(result(example_spec(effective=False))[1])
    assert "refuted" in text
    assert all(reason in text for reason in REFUTATIONS)
    assert "nothing serves it" in text


def test_the_trigger_and_its_guarantee_are_told() -> None:
    assert "layer 1" in shown(summary(example_spec()))
    assert "at most 1.0% of benign requests (split-conformal, 128 requests)" in shown(summary(example_spec()))
    assert "every token" in shown(summary(example_spec(trigger=False)))


def test_the_strongest_neurons_are_shown_and_the_others_counted() -> None:
    spec = example_spec(neurons=30)
    text = shown(summary(spec))
    assert f"{30 - NEURONS_SHOWN} more in the file" in text
    strongest = max(spec.evidence.neurons, key=lambda neuron: neuron.first_in.value + neuron.last_in.value)
    assert str(strongest.neuron) in text


@pytest.mark.parametrize(
    "spec", [example_spec(neurons=0, effective=False, mediators=False, trials=False, random_gates=0)]
)
def test_a_spec_of_nothing_can_be_shown_too(spec: Any) -> None:
    assert "refuted" in shown(summary(spec))


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert max(map(len, shown(summary(example_spec()), width).splitlines())) <= width


@pytest.mark.parametrize(
    ("scale", "lower", "upper", "kinds"),
    [
        (1.0, 0.0, 0.0, "1 ablated"),
        (1.0, 0.5, 0.5, "1 ablated"),
        (0.0, -math.inf, math.inf, "1 ablated"),
        (1.0, -math.inf, 0.5, "1 clamped"),
        (0.5, -math.inf, math.inf, "1 scaled"),
        (0.5, -1.0, 1.0, "1 clamped, 1 scaled"),
    ],
)
def test_an_edit_is_named_by_the_words_of_the_design(scale: float, lower: float, upper: float, kinds: str) -> None:
    assert edit_kinds(LayerEdit(layer=0, neurons=(3,), scale=(scale,), lower=(lower,), upper=(upper,))) == kinds


def test_how_often_the_guard_acts_on_benign_requests_is_told_where_it_was_recorded() -> None:
    seldom = Estimate(value=0.0, low=0.0, high=0.03, n=128)
    often = Estimate(value=0.25, low=0.18, high=0.33, n=128)
    spec = example_spec()
    clips = tuple(LayerClips(layer=edit.layer, share=often) for edit in spec.layers)
    rates = BenignRates(triggered=seldom if spec.trigger else None, clips=clips)
    text = shown(held_out_table(with_rates(spec, rates)))
    assert "benign requests that trigger" in text
    assert "0.0% (0.0% to 3.0%)" in text
    for edit in spec.layers:
        assert f"benign values changed, layer {edit.layer}" in text
    assert text.count("25.0% (18.0% to 33.0%)") == len(spec.layers)
    assert "benign values changed" not in shown(held_out_table(spec))
