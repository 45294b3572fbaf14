"""The figures of the report: plotly accepts them, they hold what the spec holds, and no shape of spec breaks them."""

import json
from typing import Any

import plotly.graph_objects as go
import pytest

from calibration.report.plots import draw
from guard.spec.edit_spec import EditSpec
from tests.calibration.example_spec import SHAPES, example_spec

ALL = {
    "random-gates",
    "effect-by-layer",
    "attention-against-mlp",
    "token-groups",
    "neuron-effects",
    "set-sizes",
    "bounds-tried",
}
each_shape = pytest.mark.parametrize("spec", [example_spec(**shape) for shape in SHAPES.values()], ids=SHAPES)


def coloured(value: Any) -> Any:
    """Colour roles replaced by a colour, as the page does."""
    if isinstance(value, str):
        return "#123456" if value.startswith("$") else value
    if isinstance(value, list):
        return [coloured(item) for item in value]
    return {key: coloured(item) for key, item in value.items()} if isinstance(value, dict) else value


@each_shape
def test_plotly_accepts_every_figure(spec: EditSpec) -> None:
    for plot in draw(spec).values():
        go.Figure({"data": coloured(plot.traces), "layout": coloured(plot.layout)})


@each_shape
def test_every_figure_is_strict_json(spec: EditSpec) -> None:
    for plot in draw(spec).values():
        json.dumps([plot.traces, plot.layout], allow_nan=False)


@each_shape
def test_every_figure_has_its_numbers_as_a_table_and_a_sentence(spec: EditSpec) -> None:
    for plot in draw(spec).values():
        assert plot.label.endswith(".")
        assert plot.rows
        assert all(len(row) == len(plot.columns) for row in plot.rows)


def test_a_full_spec_has_every_figure() -> None:
    assert set(draw(example_spec())) == ALL


def test_what_was_not_measured_is_not_drawn() -> None:
    assert set(draw(example_spec(**SHAPES["nothing measured"]))) == {"neuron-effects", "set-sizes"}
    assert set(draw(example_spec(**SHAPES["no neuron"]))) == ALL - {"neuron-effects", "set-sizes", "bounds-tried"}


def test_token_groups_are_drawn_only_where_there_are_several() -> None:
    assert "token-groups" not in draw(example_spec(groups=("edited",)))


def test_every_random_gate_is_a_dot_within_the_rounding() -> None:
    spec = example_spec(random_gates=37)
    dots = draw(spec)["random-gates"].traces[0]
    shares = sorted(100 * share for share in spec.evidence.held_out.random_gates)
    assert dots["x"] == pytest.approx(shares, abs=1.26)
    assert len(set(zip(dots["x"], dots["y"], strict=True))) == 37


def test_this_gate_is_marked_among_the_random_ones_with_its_interval() -> None:
    spec = example_spec()
    ours, on = draw(spec)["random-gates"].traces[1], spec.evidence.held_out.harmful_compliance.on
    assert ours["x"] == [100 * on.value]
    assert ours["x"][0] + ours["error_x"]["array"][0] == pytest.approx(100 * on.high)
    assert ours["x"][0] - ours["error_x"]["arrayminus"][0] == pytest.approx(100 * on.low)


def test_of_many_neurons_the_strongest_forty_are_drawn_and_the_figure_says_so() -> None:
    plot = draw(example_spec(neurons=500))["neuron-effects"]
    first, last = (trace["x"] for trace in plot.traces)
    weights = [abs(a + b) for a, b in zip(first, last, strict=True)]
    assert len(weights) == 40
    assert weights == sorted(weights, reverse=True)
    assert plot.note == "The strongest 40 of 500 neurons are drawn."
    assert len(plot.rows) == 500


def test_forty_neurons_or_fewer_are_all_drawn_without_a_note() -> None:
    plot = draw(example_spec(neurons=40))["neuron-effects"]
    assert (len(plot.traces[0]["x"]), plot.note) == (40, "")


def test_each_neuron_is_labelled_with_its_layer_and_has_its_p_value() -> None:
    spec = example_spec(neurons=3)
    layout = draw(spec)["neuron-effects"].layout
    assert set(layout["yaxis"]["ticktext"]) == {f"L{e.layer} · {e.neuron}" for e in spec.evidence.neurons}
    assert len(layout["annotations"]) == 3


def test_effects_by_layer_use_the_edited_tokens_where_several_groups_were_measured() -> None:
    spec = example_spec(groups=("tail", "edited"))
    tnie = draw(spec)["effect-by-layer"].traces[1]["y"]
    expected = [
        m.total_natural_indirect_effect.value
        for m in spec.evidence.mediators
        if m.kind == "layer" and m.tokens == "edited"
    ]
    assert tnie == expected


def test_every_trial_is_drawn_once_and_the_chosen_one_is_ringed() -> None:
    spec = example_spec()
    *families, ring = draw(spec)["bounds-tried"].traces
    drawn = sorted(y for family in families for y in family["y"])
    assert drawn == sorted(trial.harmful_outcome for trial in spec.evidence.trials)
    assert ring["y"] == [trial.harmful_outcome for trial in spec.evidence.trials if trial.chosen]


def test_a_trial_that_changes_nothing_has_a_place_on_the_logarithmic_axis() -> None:
    spec = example_spec()
    assert min(trial.benign_kl for trial in spec.evidence.trials) == 0
    assert all(x > 0 for trace in draw(spec)["bounds-tried"].traces for x in trace["x"])


def test_a_whisker_is_never_negative_where_rounding_leaves_the_point_outside_its_interval() -> None:
    spec = example_spec(neurons=1)
    neuron = spec.evidence.neurons[0]
    odd = neuron.first_in.model_copy(update={"low": neuron.first_in.value + 1e-9, "high": neuron.first_in.value + 2e-9})
    evidence = spec.evidence.model_copy(update={"neurons": (neuron.model_copy(update={"first_in": odd}),)})
    bars = draw(spec.model_copy(update={"evidence": evidence}))["neuron-effects"].traces[0]["error_x"]
    assert min(*bars["array"], *bars["arrayminus"]) >= 0


def test_markup_in_the_names_of_a_spec_is_escaped_for_plotly() -> None:
    figure = draw(example_spec(**SHAPES["a token group of another name"]))["token-groups"]
    assert not any("<script" in name or "<b>" in name for name in figure.traces[0]["y"])
