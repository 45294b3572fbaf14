"""Calibration from end to end on random models of families unlike Llama: it runs, and its spec is the model's own."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from calibration.effects.exact.suffix import method_of
from calibration.options import CalibrationOptions
from calibration.pipeline import calibrate
from guard import EditSpec, install
from tests.calibration.organisms import BENIGN, HARMFUL, organism
from tests.conftest import make_tiny_model


@pytest.mark.parametrize(("model_type", "analyses"), [("gemma2", "all"), ("opt", "none")])
def test_a_calibrated_model_of_another_family_installs_its_spec(model_type: str, analyses: str, tmp_path: Path) -> None:
    _, tokenizer = organism("two-layer")
    model = make_tiny_model(model_type, layers=4, d_ff=96, vocabulary=len(tokenizer))
    assert method_of(model, 2) == "replicas"
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    options = CalibrationOptions(
        model=str(tmp_path / "model"),
        harmful=HARMFUL,
        benign=BENIGN,
        output=tmp_path / "guard.safetensors",
        max_requests=36,
        max_new_tokens=8,
        max_neurons=4,
        analyses=analyses,
    )
    spec = calibrate(options)
    assert spec.layers
    assert {effect.layer for effect in spec.evidence.neurons} <= {2, 3}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    words = torch.tensor([[90, 85, 586, 72]])
    with torch.inference_mode():
        plain = loaded(words).logits
        own = AutoTokenizer.from_pretrained(tmp_path / "model")
        with install(loaded, EditSpec.load(options.output), tokenizer=own, allow_refuted=True):
            guarded = loaded(words).logits
    assert torch.equal(plain, model(words).logits)
    assert spec.trigger is not None or not torch.equal(guarded, plain)
