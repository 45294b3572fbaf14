"""Gradient screens: what each of them conserves or gets exactly right."""

import pytest
import torch
from torch import Tensor, nn

from calibration.effects.attribution import attribution_patching, integrated_gradients, relevance_patching
from calibration.effects.exact.suffix import neuron_effects
from calibration.effects.outcome import outcome
from calibration.effects.relevance import relevance_rules
from calibration.prompts.sequences import Batch
from calibration.runs.interventions import Mediator, patched_outcome, patching, recorded
from calibration.runs.resume import LateRun, record
from guard.errors import UnsupportedModelError
from guard.families.architectures import architecture_of
from tests.calibration.late_models import (
    base_outcome,
    edited_width,
    late_model,
    random_batch,
    shared_model,
    shared_values,
)
from tests.conftest import FAMILIES, MIXTURES

FIRST, LAST = 2, 3


def per_layer_values(model: nn.Module, batch: Batch) -> dict[int, Tensor]:
    d_ff = architecture_of(model).d_ff(model)
    return {layer: shared_values(batch, d_ff, seed=layer) for layer in (FIRST, LAST)}


def effect_of_all(model: nn.Module, batch: Batch, layer: int, values: Tensor) -> Tensor:
    return base_outcome(model, batch) - patched_outcome(model, batch, {Mediator("neurons", layer): values})


def nearby(model: nn.Module, batch: Batch, layer: int, distance: float) -> Tensor:
    """Values a little off the base run's, so that the outcome is nearly linear between."""
    mediator = Mediator("neurons", layer)
    h = recorded(model, batch, [mediator])[1][mediator]
    return h + distance * shared_values(batch, h.shape[-1])


@pytest.mark.parametrize("model_type", [*FAMILIES, *MIXTURES])
def test_attribution_patching_is_exact_where_the_outcome_is_linear(model_type: str) -> None:
    model, batch = shared_model(model_type), random_batch()
    values = {layer: nearby(model, batch, layer, 1e-6) for layer in (FIRST, LAST)}
    estimate = attribution_patching(record(model, batch, FIRST), values)
    exact = torch.stack([neuron_effects(model, batch, layer, None, values[layer]) for layer in values], dim=1)
    assert estimate.shape == (batch.size, 2, values[LAST].shape[-1])
    torch.testing.assert_close(estimate, exact, rtol=1e-3, atol=1e-10)
    assert estimate.abs().amax() > 1e-8


@pytest.mark.parametrize("model_type", FAMILIES)
def test_integrated_gradients_of_a_layer_add_up_to_the_effect_of_setting_all_of_it(model_type: str) -> None:
    model, batch = shared_model(model_type), random_batch()
    values = per_layer_values(model, batch)
    steps = 96 if model_type == "opt" else 12  # ReLU gives the path kinks
    sums = integrated_gradients(record(model, batch, FIRST), values, steps).sum(-1)
    effects = torch.stack([effect_of_all(model, batch, layer, values[layer]) for layer in values], dim=1)
    torch.testing.assert_close(sums, effects, rtol=2e-3, atol=2e-3)
    assert effects.abs().amax() > 0.05


@pytest.mark.parametrize("entering", [0, 2])
def test_relevance_is_conserved_from_a_logit_to_the_residual_stream(entering: int) -> None:
    model, batch = late_model("llama"), random_batch()
    run = record(model, batch, entering)
    run.residual.requires_grad_()
    with torch.enable_grad(), relevance_rules(model):
        logit = run.readout_logits()[:, 0, 7].sum()
        (coefficient,) = torch.autograd.grad(logit, run.residual)
    torch.testing.assert_close((run.residual * coefficient).sum(), logit, rtol=1e-9, atol=1e-9)


def test_gradients_do_not_conserve_a_logit() -> None:
    model, batch = late_model("llama"), random_batch()
    run = record(model, batch, 2)
    run.residual.requires_grad_()
    with torch.enable_grad():
        logit = run.readout_logits()[:, 0, 7].sum()
        (gradient,) = torch.autograd.grad(logit, run.residual)
    assert ((run.residual * gradient).sum() - logit).abs() > 0.1


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_relevance_rules_leave_forward_values_and_afterwards_gradients_alone(model_type: str) -> None:
    model, batch = late_model(model_type), random_batch()
    run, values = record(model, batch, FIRST), per_layer_values(model, batch)
    plain, before = run.readout_logits(), attribution_patching(run, values)
    with relevance_rules(model):
        torch.testing.assert_close(run.readout_logits(), plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(attribution_patching(run, values), before, rtol=0, atol=0)


def test_relevance_of_last_layer_neurons_is_their_effect_under_a_frozen_norm() -> None:
    """After the last layer only the norm's denominator separates RelP from a linear outcome of logits."""
    model, batch = late_model("llama"), random_batch(lengths=((1, 1), (1, 1), (1, 1)))
    h = nearby(model, batch, LAST, 0.0)
    mediator = Mediator("neurons", LAST)
    run, moved = record(model, batch, LAST), h + shared_values(batch, 37)
    estimate = relevance_patching(run, {LAST: moved})[:, 0]
    norm = model.get_submodule("model.norm")
    denominators: list[Tensor] = []
    with torch.inference_mode():
        keep = norm.register_forward_hook(
            lambda _, inputs, __: denominators.append((inputs[0].square().mean(-1, keepdim=True) + 1e-6).rsqrt())
        )
        base = outcome(run.readout_logits(), batch)
        keep.remove()
        freeze = norm.register_forward_hook(lambda module, inputs, _: inputs[0] * denominators[0] * module.weight)
        effects = []
        for neuron in range(37):
            value = {Mediator("neurons", LAST, (neuron,), mediator.tokens): moved[..., neuron, None]}
            effects.append(base - patched_outcome_late(run, value))
        freeze.remove()
    torch.testing.assert_close(estimate, torch.stack(effects, dim=1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("model_type", ["gemma2", "gpt2", "phi3"])
def test_relevance_of_layers_that_it_has_no_rules_for_is_refused(model_type: str) -> None:
    model, batch = shared_model(model_type), random_batch()
    with pytest.raises(UnsupportedModelError, match="no rules for the layers"):
        relevance_patching(record(model, batch, FIRST), per_layer_values(model, batch))


def patched_outcome_late(run: LateRun, value: dict[Mediator, Tensor]) -> Tensor:
    with patching(run.model, run.batch, value):
        return outcome(run.readout_logits(), run.batch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_screens_run_in_narrow_dtypes_and_answer_in_float32(dtype: torch.dtype) -> None:
    model, batch = late_model(dtype=dtype), random_batch()
    run, values = record(model, batch, FIRST), {layer: torch.zeros(37) for layer in (FIRST, LAST)}
    for screen in (attribution_patching, integrated_gradients, relevance_patching):
        estimate = screen(run, values)
        assert estimate.dtype == torch.float32
        assert estimate.shape == (batch.size, 2, 37)
        assert bool(estimate.isfinite().all())
    assert edited_width(batch) == batch.tail + batch.continuation_width - 1
