"""Putting an edit on a model and taking it off: what it replaces, what it refuses, what it leaves behind."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from guard.errors import EditNotAppliedError, ModelMismatchError, NeuronGuardError, SpecError, UnsupportedModelError
from guard.hf import install_edits
from guard.spec.edit_spec import LayerEdit, Trigger
from tests.conftest import TinyModel
from tests.guard.by_hand import EDITS, PROMPTS, make_trigger


def edit_of(layer: int, neuron: int = 0) -> LayerEdit:
    return LayerEdit(layer=layer, neurons=(neuron,), scale=(1.0,), lower=(9.0,), upper=(9.0,))


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(PROMPTS).logits
    return logits


@pytest.mark.parametrize("trigger", [None, make_trigger(layer=0)], ids=["always", "trigger"])
def test_removing_puts_back_the_very_same_modules_and_logits(tiny_model: TinyModel, trigger: Trigger | None) -> None:
    model = tiny_model()
    modules, plain = dict(model.named_modules()), logits_of(model)
    installation = install_edits(model, EDITS, trigger)
    assert not torch.equal(logits_of(model), plain)
    installation.remove()
    after = dict(model.named_modules())
    assert list(after) == list(modules)
    assert all(after[name] is module for name, module in modules.items())
    assert torch.equal(logits_of(model), plain)


def test_removing_twice_does_nothing(tiny_model: TinyModel) -> None:
    model = tiny_model()
    with install_edits(model, EDITS) as first:
        first.remove()
        second = install_edits(model, EDITS)
        guarded = logits_of(model)
        first.remove()
        assert torch.equal(logits_of(model), guarded)
    assert torch.equal(logits_of(model), guarded), "the end of the block took off a later installation"
    second.remove()


def test_an_exception_inside_the_block_takes_the_guard_off(tiny_model: TinyModel) -> None:
    model = tiny_model()
    plain = logits_of(model)
    with pytest.raises(ZeroDivisionError), install_edits(model, EDITS, make_trigger()):
        1 / 0  # noqa: B018
    assert torch.equal(logits_of(model), plain)


def test_the_order_of_edits_and_of_installations_does_not_matter(tiny_model: TinyModel) -> None:
    model = tiny_model()
    with install_edits(model, EDITS):
        expected = logits_of(model)
    with install_edits(model, EDITS[::-1]):
        assert torch.equal(logits_of(model), expected)
    with install_edits(model, EDITS[1:]), install_edits(model, EDITS[:1]):
        assert torch.equal(logits_of(model), expected)
    first, second = install_edits(model, EDITS[:1]), install_edits(model, EDITS[1:])
    first.remove()
    second.remove()
    assert not torch.equal(logits_of(model), expected)


def test_the_state_dict_stays_the_model_s_own(tiny_model: TinyModel) -> None:
    model = tiny_model()
    plain = model.state_dict()
    with install_edits(model, EDITS, make_trigger()):
        guarded = model.state_dict()
        assert list(guarded) == list(plain)
        assert all(torch.equal(guarded[name], plain[name]) for name in plain)


def test_weights_can_be_loaded_into_a_guarded_model(tiny_model: TinyModel) -> None:
    model, other = tiny_model(seed=0), tiny_model(seed=1)
    with install_edits(other, EDITS, make_trigger()):
        expected = logits_of(other)
    with install_edits(model, EDITS, make_trigger()):
        model.load_state_dict(other.state_dict(), strict=True)
        assert torch.equal(logits_of(model), expected)


def test_a_guarded_model_is_saved_as_the_plain_one(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = tiny_model()
    plain = logits_of(model)
    with install_edits(model, EDITS, make_trigger()):
        model.save_pretrained(tmp_path)
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path)), plain)


def test_a_copy_of_a_guarded_model_is_guarded_by_itself(tiny_model: TinyModel) -> None:
    model = tiny_model()
    with install_edits(model, EDITS, make_trigger()):
        expected, copied = logits_of(model), copy.deepcopy(model)
    assert torch.equal(logits_of(copied), expected)


def test_train_and_eval_are_kept(tiny_model: TinyModel) -> None:
    model = tiny_model()
    with install_edits(model, EDITS, make_trigger()):
        assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("trigger", [None, make_trigger(layer=0)], ids=["always", "trigger"])
def test_a_guarded_layer_is_not_guarded_again(tiny_model: TinyModel, trigger: Trigger | None) -> None:
    model = tiny_model()
    with install_edits(model, [edit_of(1)], trigger):
        guarded = logits_of(model)
        with pytest.raises(EditNotAppliedError, match="layer 1 is guarded already"):
            install_edits(model, [edit_of(0), edit_of(1)])
        assert torch.equal(logits_of(model), guarded)


def test_a_layer_s_norm_takes_one_trigger(tiny_model: TinyModel) -> None:
    model, trigger = tiny_model(), make_trigger(layer=0)
    with (
        install_edits(model, [edit_of(1)], trigger),
        pytest.raises(EditNotAppliedError, match="trigger's layer 0 is guarded already"),
    ):
        install_edits(model, [edit_of(2)], trigger)


def test_a_module_replaced_meanwhile_is_not_overwritten(tiny_model: TinyModel) -> None:
    model: Any = tiny_model()
    installation = install_edits(model, EDITS)
    newcomer = torch.nn.Sequential(model.model.layers[1].mlp.down_proj)
    model.model.layers[1].mlp.down_proj = newcomer
    with pytest.raises(EditNotAppliedError, match="down_proj was replaced after installation"):
        installation.remove()
    assert model.model.layers[1].mlp.down_proj is newcomer
    assert isinstance(model.model.layers[2].mlp.down_proj, torch.nn.Linear)
    with pytest.raises(EditNotAppliedError, match="layer 1 is guarded already"):
        install_edits(model, EDITS)


@pytest.mark.parametrize(
    ("edits", "trigger", "error", "message"),
    [
        ([], None, SpecError, "no layer to edit"),
        ([edit_of(1), edit_of(1)], None, SpecError, "each guarded layer must be named once"),
        ([edit_of(3)], None, ModelMismatchError, "layers 0 to 2"),
        ([edit_of(1), edit_of(2, neuron=37)], None, ModelMismatchError, "neuron 37.*37 neurons"),
        ([edit_of(1)], make_trigger(layer=2), SpecError, "too late"),
        ([edit_of(1)], make_trigger(23), ModelMismatchError, "23 entries.*24"),
    ],
)
def test_edits_that_do_not_fit_are_refused_and_change_nothing(
    tiny_model: TinyModel,
    edits: list[LayerEdit],
    trigger: Trigger | None,
    error: type[NeuronGuardError],
    message: str,
) -> None:
    model = tiny_model()
    modules = list(model.modules())
    with pytest.raises(error, match=message):
        install_edits(model, edits, trigger)
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))


def test_a_model_whose_weights_are_elsewhere_is_refused(tiny_model: TinyModel) -> None:
    with pytest.raises(UnsupportedModelError, match="offloaded"):
        install_edits(tiny_model().to("meta"), EDITS)  # type: ignore[arg-type]


def test_a_guarded_layer_that_runs_without_its_trigger_raises(tiny_model: TinyModel) -> None:
    model: Any = tiny_model()
    layer = model.model.layers[2]
    with install_edits(model, EDITS, make_trigger(layer=1)):
        logits_of(model)
        with pytest.raises(EditNotAppliedError, match="without its trigger"):
            layer.mlp(torch.zeros(*PROMPTS.shape, 24))


def test_a_trigger_that_saw_other_tokens_raises(tiny_model: TinyModel) -> None:
    model: Any = tiny_model()
    with install_edits(model, EDITS, make_trigger(layer=1)):
        model.model.layers[1].input_layernorm(torch.zeros(2, 5, 24))
        with pytest.raises(EditNotAppliedError, match=r"\(2, 5\).*\(2, 4\)"):
            model.model.layers[2].mlp(torch.zeros(2, 4, 24))


def recompute_activations(model: Any) -> None:
    """Gradient checkpointing, by the name that this version of transformers has for it."""
    newest = getattr(model, "activation_checkpointing_enable", None)
    (newest or model.gradient_checkpointing_enable)()


def test_gradient_checkpointing_keeps_an_edit_without_a_trigger(tiny_model: TinyModel) -> None:
    gradients = []
    for checkpointing in (False, True):
        model: Any = tiny_model().train()
        if checkpointing:
            recompute_activations(model)
        with install_edits(model, EDITS):
            model(PROMPTS).logits.square().mean().backward()
        gradients.append(model.model.embed_tokens.weight.grad)
    torch.testing.assert_close(*gradients)


def test_gradient_checkpointing_with_a_trigger_raises_rather_than_lose_the_mask(tiny_model: TinyModel) -> None:
    model: Any = tiny_model().train()
    recompute_activations(model)
    with install_edits(model, EDITS, make_trigger(layer=0)):
        loss = model(PROMPTS).logits.square().mean()
        with pytest.raises(EditNotAppliedError, match="gradient checkpointing"):
            loss.backward()


def test_weights_are_read_through_the_guard(tiny_model: TinyModel) -> None:
    model: Any = tiny_model()
    down = model.model.layers[1].mlp.down_proj
    with install_edits(model, EDITS):
        assert model.model.layers[1].mlp.down_proj.weight is down.weight
        assert model.model.layers[1].mlp.down_proj.bias is None


def test_a_guard_set_aside_is_back_where_the_block_raises_and_gone_where_it_does_not(tiny_model: TinyModel) -> None:
    model = tiny_model()
    plain = logits_of(model)
    installation = install_edits(model, EDITS)
    guarded, wrappers = logits_of(model), installation.guarded
    with pytest.raises(ZeroDivisionError), installation.set_aside():
        1 / 0  # noqa: B018
    assert torch.equal(logits_of(model), guarded)
    assert installation.guarded == wrappers
    with installation.set_aside():
        assert torch.equal(logits_of(model), plain)
    assert torch.equal(logits_of(model), plain)
    assert installation.guarded == []
