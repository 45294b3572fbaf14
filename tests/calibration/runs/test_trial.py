"""Trial edits against the edits that are installed, and what a trial leaves behind."""

import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from calibration.effects.outcome import outcome, readout_logits
from calibration.runs.resume import record
from calibration.runs.trial import edit_transforms, transformed
from guard.hf import install_edits
from guard.spec.edit_spec import LayerEdit
from tests.calibration.late_models import random_batch
from tests.conftest import FAMILIES, TinyModel, make_tiny_model

CPU = torch.device("cpu")
BOUNDS = st.sampled_from([(0.0, 0.0), (-0.2, 0.3), (-math.inf, 0.1), (-0.1, math.inf), (-math.inf, math.inf)])


@cache
def model_of(model_type: str) -> nn.Module:
    return make_tiny_model(model_type, layers=4)


@st.composite
def layer_edits(draw: st.DrawFn) -> list[LayerEdit]:
    edits = []
    for layer in sorted(draw(st.sets(st.integers(1, 3), min_size=1))):
        neurons = sorted(draw(st.sets(st.integers(0, 36), min_size=1, max_size=6)))
        held = [draw(BOUNDS) for _ in neurons]
        scale = tuple(draw(st.sampled_from([0.0, 0.5, 1.0, 1.5])) for _ in neurons)
        lower, upper = zip(*held, strict=True)
        edits.append(LayerEdit(layer=layer, neurons=tuple(neurons), scale=scale, lower=lower, upper=upper))
    return edits


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@settings(max_examples=20)
@given(edits=layer_edits())
def test_a_trial_gives_the_logits_of_the_installed_edit(model_type: str, edits: list[LayerEdit]) -> None:
    model, batch = model_of(model_type), random_batch()
    with torch.inference_mode():
        with transformed(model, edit_transforms(edits, CPU)):
            tried = readout_logits(model, batch)
        with install_edits(model, edits):
            installed = readout_logits(model, batch)
    assert torch.equal(tried, installed)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_trial_is_the_installed_edit_in_every_family(model_type: str) -> None:
    model, batch = model_of(model_type), random_batch()
    bounds = {"scale": (1.0, 0.5, 2.0), "lower": (0.3, -0.1, -9.0), "upper": (0.3, 0.2, 9.0)}
    edits = [LayerEdit(layer=layer, neurons=(0, 5, 36), **bounds) for layer in (1, 3)]
    with torch.inference_mode():
        plain = readout_logits(model, batch)
        with transformed(model, edit_transforms(edits, CPU)):
            tried = readout_logits(model, batch)
        with install_edits(model, edits):
            installed = readout_logits(model, batch)
    assert torch.equal(tried, installed)
    assert (tried - plain).abs().max() > 1e-2


@pytest.mark.parametrize("model_type", ["llama", "opt"])
def test_a_trial_touches_the_active_tokens_alone(model_type: str, tiny_model: TinyModel) -> None:
    model, batch = tiny_model(model_type), random_batch()
    edit = LayerEdit(layer=1, neurons=(0, 7), scale=(1.0, 1.0), lower=(2.0, -3.0), upper=(2.0, -3.0))
    active = torch.zeros(batch.input_ids.shape, dtype=torch.bool)
    active[2, 3] = True
    given, after = [], []

    def edited(h: torch.Tensor) -> torch.Tensor:
        given.append(h.clone())
        after.append(edit_transforms([edit], CPU, active)[1](h))
        return after[-1]

    with torch.inference_mode(), transformed(model, {1: edited}):
        readout_logits(model, batch)
    changed = (given[0] != after[0]).nonzero().tolist()
    assert changed == [[2, 3, 0], [2, 3, 7]]
    assert after[0][2, 3, [0, 7]].tolist() == [2.0, -3.0]


def test_the_model_is_as_it_was_after_a_trial_however_it_ends(tiny_model: TinyModel) -> None:
    model, batch = tiny_model(), random_batch()
    plain = readout_logits(model, batch)
    with pytest.raises(RuntimeError, match="stop"), transformed(model, {2: torch.zeros_like}):
        raise RuntimeError("stop")
    assert torch.equal(readout_logits(model, batch), plain)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_no_edits_change_nothing(tiny_model: TinyModel) -> None:
    model, batch = tiny_model(), random_batch()
    with torch.inference_mode():
        plain = readout_logits(model, batch)
        with transformed(model, edit_transforms([], CPU)):
            assert torch.equal(readout_logits(model, batch), plain)


def test_a_late_run_under_a_trial_edit_is_the_installed_model(tiny_model: TinyModel) -> None:
    model, batch = tiny_model("qwen2", layers=4), random_batch()
    edit = LayerEdit(layer=3, neurons=(4, 5, 30), scale=(0.0, 1.0, 2.0), lower=(-1.0, 0.5, -9.0), upper=(1.0, 0.5, 9.0))
    run = record(model, batch, 2)
    with torch.inference_mode():
        with transformed(model, edit_transforms([edit], CPU)):
            tried = outcome(run.readout_logits(), batch)
        with install_edits(model, [edit]):
            installed = outcome(readout_logits(model, batch), batch)
    torch.testing.assert_close(tried, installed, rtol=0, atol=1e-5)
    assert (installed - outcome(readout_logits(model, batch), batch)).abs().max() > 1e-3
