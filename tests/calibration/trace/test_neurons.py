"""Neurons of a trace: their effects by hand-made runs in float64, and what they write, on every family."""

import pytest
import torch
from torch import Tensor

from calibration.effects.attribution import attribution_patching
from calibration.effects.exact.final_norm import final_norm_of
from calibration.effects.outcome import readout_logits
from calibration.runs.interventions import Mediator, patched_outcome, through
from calibration.runs.resume import record
from calibration.trace import neurons
from calibration.trace.gradients import values_in
from calibration.trace.written import Writer
from guard.families.architectures import architecture_of
from tests.calibration.trace.subjects import (
    LAYERS,
    SAME_LENGTH,
    SHORTER,
    looked_at,
    neurons_of,
)
from tests.conftest import FAMILIES

families = pytest.mark.parametrize("model_type", FAMILIES)


@families
def test_a_neurons_effect_is_what_setting_it_to_0_takes_from_y(model_type: str) -> None:
    found, gradients, _ = looked_at(model_type)
    every = tuple(range(found.batch.input_ids.shape[1]))
    for neuron in neurons_of(model_type)[::7]:
        mediator = Mediator("neurons", neuron.layer, (neuron.neuron,), every)
        zero = torch.zeros(1, dtype=torch.float64)
        after = float(patched_outcome(found.model, found.batch, {mediator: zero}))
        assert neuron.run
        assert neuron.effect == pytest.approx(gradients.outcome - after, abs=1e-6)


@pytest.mark.parametrize("other", [SAME_LENGTH, SHORTER])
def test_with_another_prompt_a_neuron_takes_its_value_there(other: tuple[int, ...]) -> None:
    found, gradients, _ = looked_at(other=other)
    assert found.reference is not None
    values = values_in(found.model, found.reference)
    for neuron in neurons_of(other=other)[::5]:
        mediator = Mediator("neurons", neuron.layer, (neuron.neuron,))
        there = values["neurons", neuron.layer][:, found.batch.edited, neuron.neuron, None]
        after = float(patched_outcome(found.model, found.batch, {mediator: there}))
        assert neuron.effect == pytest.approx(gradients.outcome - after, abs=1e-6)
        assert neuron.other is not None
        mine = values["neurons", neuron.layer][0, : found.batch.prompt_width, neuron.neuron]
        assert neuron.other == pytest.approx(mine[-len(other) :].tolist())


@pytest.mark.parametrize("other", [None, SAME_LENGTH, SHORTER])
def test_a_neuron_at_one_token_is_a_full_patched_run_where_it_was_run(other: tuple[int, ...] | None) -> None:
    found, gradients, _ = looked_at(other=other)
    values = None if found.reference is None else values_in(found.model, found.reference)
    column = found.columns[-2]
    checked = 0
    for neuron in neurons_of(other=other)[::4]:
        if not neuron.run_by_column:
            continue
        mediator = Mediator("neurons", neuron.layer, (neuron.neuron,), (column,))
        value = torch.zeros(1, dtype=torch.float64)
        if values is not None:
            value = values["neurons", neuron.layer][:, [column], neuron.neuron, None]
        after = float(patched_outcome(found.model, found.batch, {mediator: value}))
        assert neuron.by_column[-2] == pytest.approx(gradients.outcome - after, abs=1e-9)
        checked += 1
    assert checked >= 3


def test_the_named_ones_are_there_whatever_they_carry() -> None:
    roles = {(each.layer, each.neuron): each.role for each in neurons_of()}
    assert roles[2, 7] == "gate"
    assert roles[1, 3] == roles[1, 4] == "set"


def test_each_layer_has_its_strongest_first() -> None:
    for layer in range(LAYERS):
        sizes = [abs(each.effect) for each in neurons_of() if each.layer == layer]
        assert sizes == sorted(sizes, reverse=True)
        assert len(sizes) >= neurons.EACH_LAYER


def test_the_strongest_of_all_neurons_is_among_them() -> None:
    found, gradients, _ = looked_at()
    every = tuple(range(found.batch.input_ids.shape[1]))
    zero = torch.zeros(1, dtype=torch.float64)
    effects = {
        (layer, neuron): gradients.outcome
        - float(patched_outcome(found.model, found.batch, {Mediator("neurons", layer, (neuron,), every): zero}))
        for layer in range(LAYERS)
        for neuron in range(37)
    }
    strongest_place = max(effects, key=lambda place: abs(effects[place]))
    assert strongest_place in {(each.layer, each.neuron) for each in neurons_of()}


def test_screening_agrees_with_attribution_patching() -> None:
    found, gradients, _ = looked_at()
    run = record(found.model, found.batch, 0)
    values = {layer: torch.zeros(1, dtype=torch.float64).expand(37) for layer in range(LAYERS)}
    linear = attribution_patching(run, values)[0]  # [layers, d_ff]
    columns = list(range(found.batch.edited.start, found.batch.edited.stop))
    for layer in range(LAYERS):
        here = gradients.linear("neurons", layer, torch.zeros(1, dtype=torch.float64), columns).sum(0)
        torch.testing.assert_close(here, linear[layer], rtol=1e-9, atol=1e-9)


@families
def test_what_a_last_neuron_writes_is_what_its_column_adds_to_the_logits_at_the_runs_norm(model_type: str) -> None:
    found, gradients, _ = looked_at(model_type)
    architecture = architecture_of(found.model)
    layer = architecture.decoder_layers(found.model)[-1]
    neuron = next(each for each in neurons_of(model_type) if each.layer == LAYERS - 1)
    written = Writer(found, gradients).logits(
        LAYERS - 1, [neuron.neuron], torch.tensor([neuron.activations[neuron.peak]])
    )[0]
    assert [each.logit for each in neuron.promoted] == pytest.approx(written.topk(5).values.tolist(), rel=1e-4)
    assert [each.logit for each in neuron.demoted] == pytest.approx((-written).topk(5).values.neg().tolist(), rel=1e-4)
    if architecture.post_mlp_norm(layer) is not None or architecture.readout(found.model).soft_cap is not None:
        return
    # A change of the neuron so small that the norm divides by the same moves logits by what it writes, and by a
    # part of what they are: the second is the same share of each logit, less what the norm does not rescale.
    step = 1e-6
    last = found.batch.prompt_width - 1
    change = step * neuron.activations[neuron.peak]

    def logits(by: float) -> Tensor:
        def push(h: Tensor) -> Tensor:
            moved = h.clone()
            moved[:, last, neuron.neuron] += by
            return moved

        with torch.inference_mode(), through(found.model, Mediator("neurons", LAYERS - 1), push):
            return readout_logits(found.model, found.batch)[0, 0]

    plain = logits(0.0)
    moved = (logits(change) - plain) / step - written.double()
    offset = final_norm_of(found.model, architecture, torch.float64).offset
    shares = torch.stack([plain if offset is None else plain - offset, torch.ones_like(plain)], dim=1)
    left = moved - shares @ torch.linalg.lstsq(shares, moved[:, None]).solution[:, 0]
    assert float(left.abs().max()) < 0.02 * float(moved.abs().max() + written.abs().max())
