"""Running the late layers from a kept residual stream, against the whole model."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from calibration.effects.outcome import outcome, readout_logits
from calibration.runs.resume import LateRun, record
from calibration.runs.trial import transformed
from tests.calibration.late_models import late_model, random_batch, shared_model
from tests.conftest import FAMILIES

WINDOWS: dict[str, dict[str, Any]] = {
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "mistral": {"sliding_window": 4},
}
models = pytest.mark.parametrize("model_type", FAMILIES)


def model_of(model_type: str) -> nn.Module:
    return shared_model(model_type, **WINDOWS.get(model_type, {}))


@models
@pytest.mark.parametrize("first_layer", [0, 3])
@pytest.mark.parametrize("padded", [True, False])
def test_a_late_run_is_the_full_forward_pass(model_type: str, first_layer: int, padded: bool) -> None:
    model, same = model_of(model_type), ((3, 3), (3, 3), (3, 3))
    batch = random_batch() if padded else random_batch(prompts=(6, 6, 6), lengths=same)
    run = record(model, batch, first_layer)
    with torch.inference_mode():
        torch.testing.assert_close(run.readout_logits(), readout_logits(model, batch), rtol=0, atol=1e-12)


@models
@pytest.mark.parametrize("edited", [2, 3])
def test_a_late_run_is_the_full_forward_pass_with_an_edit_in_place(model_type: str, edited: int) -> None:
    model, batch = model_of(model_type), random_batch()
    run = record(model, batch, 2)
    with torch.inference_mode():
        plain = run.readout_logits()
        with transformed(model, {edited: lambda h: 0.3 * h - 0.1}):
            late, full = run.readout_logits(), readout_logits(model, batch)
    torch.testing.assert_close(late, full, rtol=0, atol=1e-12)
    assert (late - plain).abs().max() > 0.01


@settings(max_examples=15)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 5), st.integers(1, 3))
def test_a_late_run_is_exact_for_any_lengths(prompts: list[int], continuation: int, first_layer: int) -> None:
    model = late_model()
    lengths = tuple((continuation, 1 + place) for place in range(len(prompts)))
    batch = random_batch(prompts=tuple(prompts), lengths=lengths)
    with torch.inference_mode():
        late = record(model, batch, first_layer).readout_logits()
        torch.testing.assert_close(late, readout_logits(model, batch), rtol=0, atol=1e-9)


def test_a_late_run_can_be_repeated_and_leaves_no_hook_behind() -> None:
    model, batch = model_of("llama"), random_batch()
    run = record(model, batch, 1)
    hooks = [module for module in model.modules() if module._forward_pre_hooks or module._forward_hooks]
    assert hooks == []
    with torch.inference_mode():
        assert torch.equal(run.readout_logits(), run.readout_logits())


def test_recording_that_fails_leaves_no_hook_behind() -> None:
    model, batch = model_of("llama"), random_batch()
    broken = type(batch)(batch.input_ids + 10_000, *list(vars(batch).values())[1:])
    with pytest.raises(IndexError):
        record(model, broken, 1)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_kept_stream_and_layers_start_at_the_first_late_layer() -> None:
    model, batch = model_of("llama"), random_batch()
    run: LateRun = record(model, batch, 3)
    assert run.residual.shape == (*batch.input_ids.shape, 24)
    assert len(run.arguments) == 1
    assert not run.residual.requires_grad


def test_gradients_flow_through_a_late_run() -> None:
    model, batch = late_model(), random_batch()
    run = record(model, batch, 2)
    strength = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    with transformed(model, {2: lambda h: h * strength}):
        (gradient,) = torch.autograd.grad(outcome(run.readout_logits(), batch).sum(), strength)

    def at(value: float) -> float:
        with torch.inference_mode(), transformed(model, {2: lambda h: h * value}):
            return float(outcome(run.readout_logits(), batch).sum())

    assert float(gradient) == pytest.approx((at(0.7 + 1e-5) - at(0.7 - 1e-5)) / 2e-5, rel=1e-5)
