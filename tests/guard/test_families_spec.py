"""Every family with a spec: its fingerprint, its weights read through the guard, the proof that the edit is live."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from guard import install
from guard.errors import ModelMismatchError, SelfTestError, UnsupportedModelError
from guard.hf import install_edits
from guard.runtime.wrappers import GuardedDownProjection
from guard.spec import fingerprint
from tests.conftest import MIXTURES, TinyModel, make_tiny_model
from tests.family_table import GUARDED, family_property
from tests.guard.families.test_table import EDITS, halfway_trigger, logits_of
from tests.guard.family_by_hand import RECIPES, module_in
from tests.guard.test_install import spec_for

WAY_THROUGH_EXPERTS = {key: {"experts_implementation": "eager"} for key in MIXTURES}  # the others want even widths
LAYERS = [edit.layer for edit in EDITS]
families = pytest.mark.parametrize("model_type", GUARDED)


@family_property("self-test")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_spec_installs_and_is_proved_live(tiny_model: TinyModel, model_type: str, dtype: torch.dtype) -> None:
    model = tiny_model(model_type, dtype=dtype)
    plain = logits_of(model)
    for trigger in (None, halfway_trigger(model, 1)):
        with install(model, spec_for(model, layers=EDITS, trigger=trigger)):
            assert not torch.equal(logits_of(model), plain)
        assert torch.equal(logits_of(model), plain)


@family_property("self-test")
def test_an_edit_that_does_not_act_is_found(
    tiny_model: TinyModel, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(model_type)
    spec = spec_for(model, layers=EDITS)
    monkeypatch.setattr(GuardedDownProjection, "forward", lambda wrapper, h: wrapper.original(h))
    with pytest.raises(SelfTestError, match="not reached"):
        install(model, spec)


@family_property("saved")
def test_a_model_that_was_saved_and_loaded_is_the_same_one(
    tiny_model: TinyModel, model_type: str, tmp_path: Path
) -> None:
    model = tiny_model(model_type)
    spec = spec_for(model, layers=EDITS)
    with install_edits(model, EDITS):
        model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, **WAY_THROUGH_EXPERTS.get(model_type, {}))
    fingerprint.verify(spec, loaded)
    with install(loaded, spec), install_edits(model, EDITS):
        torch.testing.assert_close(logits_of(loaded), logits_of(model), rtol=1e-5, atol=1e-5)


@family_property("saved")
def test_every_weight_that_the_neurons_pass_counts(tiny_model: TinyModel, model_type: str) -> None:
    recipe, model = RECIPES[model_type], tiny_model(model_type)
    spec = spec_for(model, layers=EDITS)
    for layer in LAYERS:
        for name in (*recipe.at(layer).inputs, recipe.at(layer).down):
            for weight in module_in(model, layer, name).parameters():
                kept = weight.detach().clone()
                with torch.no_grad():
                    weight.view(-1)[-1] += 0.5
                with pytest.raises(ModelMismatchError, match="MLP weights"):
                    fingerprint.verify(spec, model)
                with torch.no_grad():
                    weight.copy_(kept)
    fingerprint.verify(spec, model)


@families
def test_weights_are_read_through_the_guard(tiny_model: TinyModel, model_type: str) -> None:
    model: Any = tiny_model(model_type)
    name = RECIPES[model_type].at(1).down
    original = module_in(model, 1, name)
    with install_edits(model, EDITS):
        wrapper = module_in(model, 1, name)
        assert wrapper is not original
        assert wrapper.weight is original.weight
        assert wrapper.bias is original.bias
        assert fingerprint.fingerprint(model, LAYERS).d_ff == max(plain_widths(model_type))


def plain_widths(model_type: str) -> list[int]:
    """Neurons of each layer, read off the shapes in the state_dict."""
    recipe, state = RECIPES[model_type], make_tiny_model(model_type).state_dict()
    downs = [state[f"{recipe.layers}.{layer}.{recipe.at(layer).down}.weight"] for layer in range(3)]
    return [down.shape[0 if recipe.transposed else 1] for down in downs]


@pytest.mark.parametrize("model_type", MIXTURES)
def test_a_mixture_s_layers_have_their_own_numbers_of_neurons(tiny_model: TinyModel, model_type: str) -> None:
    model = tiny_model(model_type)
    assert plain_widths(model_type) == [37, 41, 41]
    dense = EDITS[0].model_copy(update={"layer": 0, "neurons": (0, 1, 37)})
    with pytest.raises(ModelMismatchError, match="names neuron 37, but the layer has 37 neurons"):
        install_edits(model, [dense])
    with install_edits(model, [dense.model_copy(update={"layer": 1})]):
        logits_of(model)


def test_a_mixture_without_shared_experts_is_refused(tiny_model: TinyModel) -> None:
    model: Any = tiny_model("deepseek_v3")
    del model.model.layers[1].mlp.shared_experts
    with pytest.raises(UnsupportedModelError, match="no module"):
        install_edits(model, EDITS[:1])
