"""The edit on modules like vLLM's: where it goes, what it leaves alone, how it is cut over ranks."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guard.errors import EditNotAppliedError, ModelMismatchError, UnsupportedModelError
from guard.runtime.buffers import EditBuffers
from guard.spec.edit_spec import EditSpec, LayerEdit, Trigger
from guard.vllm.counts import PassLength
from guard.vllm.install import GuardedActivation, GuardedRowParallel, Share, TriggeredNorm, install
from tests.guard import fake_vllm
from tests.guard.by_hand import make_trigger
from tests.guard.fake_vllm import D_FF, D_MODEL, TOKENS
from tests.guard.specs import MODEL, evidence_with, small_spec

ALONE = Share(0, 1, torch.device("cpu"), TOKENS)
EDITS = (
    LayerEdit(layer=2, neurons=(1, 7), scale=(1.0, 0.5), lower=(2.0, -0.1), upper=(2.0, math.inf)),
    LayerEdit(layer=3, neurons=(0,), scale=(-3.0,), lower=(-math.inf,), upper=(0.25,)),
)
STREAM = torch.randn(TOKENS, D_MODEL, generator=torch.Generator().manual_seed(4))


def spec_of(edits: tuple[LayerEdit, ...] = EDITS, trigger: Trigger | None = None) -> EditSpec:
    identity = MODEL.model_copy(update={"d_model": D_MODEL, "d_ff": D_FF})
    evidence = evidence_with(mediators=(), neurons=())
    return small_spec(model=identity, layers=edits, trigger=trigger, evidence=evidence)


def by_hand(model: Any, edits: tuple[LayerEdit, ...], trigger: Trigger | None = None) -> Tensor:
    """The fake model's forward pass written out, with the edit in it."""
    stream, active = STREAM.double(), torch.ones(TOKENS, dtype=torch.bool)
    for index, layer in enumerate(model.model.layers):
        if trigger is not None and index == trigger.layer:
            active = stream @ torch.tensor(trigger.direction, dtype=torch.float64) > trigger.threshold
        packed = nn.functional.normalize(stream) @ layer.into.double().T
        activation = getattr(layer.mlp.act_fn, "plain", layer.mlp.act_fn)
        h = activation(packed)
        for edit in edits:
            for j, s, low, high in zip(edit.neurons, edit.scale, edit.lower, edit.upper, strict=True):
                if edit.layer == index:
                    h[:, j] = torch.where(active, (h[:, j] * s).clip(low, high), h[:, j])
        stream = stream + h @ layer.mlp.down_proj.weight.double().T
    return stream


def activation_of(name: str) -> Any:
    return fake_vllm.SiluAndMul() if name == "silu" else fake_vllm.GeluAndMul("tanh" if name == "gelu_tanh" else "none")


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("trigger_layer", [None, 0, 1, 2])
def test_a_guarded_model_computes_the_edit_written_by_hand(name: str, trigger_layer: int | None) -> None:
    trigger = None if trigger_layer is None else make_trigger(D_MODEL, layer=trigger_layer)
    model = fake_vllm.LlamaForCausalLM(activation_of(name))
    plain = model(STREAM)
    install(model, spec_of(trigger=trigger), ALONE)
    torch.testing.assert_close(model(STREAM).double(), by_hand(model, EDITS, trigger), rtol=1e-4, atol=1e-5)
    assert not torch.equal(model(STREAM), plain)


def test_a_pass_of_other_tokens_leaves_no_mask_behind() -> None:
    trigger = make_trigger(D_MODEL)
    model = fake_vllm.LlamaForCausalLM()
    install(model, spec_of(trigger=trigger), ALONE)
    alone = model(STREAM[:2])
    model(-STREAM)
    assert torch.equal(model(STREAM[:2]), alone)


def test_the_activation_that_layers_share_is_neither_hooked_nor_changed() -> None:
    model = fake_vllm.LlamaForCausalLM()
    shared = model.model.layers[0].mlp.act_fn
    install(model, spec_of(EDITS[:1]), ALONE)
    kinds = [type(layer.mlp.act_fn) for layer in model.model.layers]
    assert kinds == [fake_vllm.SiluAndMul, fake_vllm.SiluAndMul, GuardedActivation, fake_vllm.SiluAndMul]
    assert model.model.layers[3].mlp.act_fn is shared
    assert not shared._forward_hooks
    assert not shared._forward_pre_hooks


@pytest.mark.parametrize("size", [1, 2, 5])
def test_ranks_edit_together_what_one_would_alone(size: int) -> None:
    packed = torch.randn(TOKENS, 2, D_FF, generator=torch.Generator().manual_seed(5))
    whole = EditBuffers.from_edit(EDITS[0], "cpu", D_FF).activate("silu", packed[:, 0], packed[:, 1])
    parts = []
    for rank in range(size):
        model = fake_vllm.LlamaForCausalLM(width=D_FF // size)
        guard = install(model, spec_of(), Share(rank, size, torch.device("cpu"), 8))
        mine = packed.view(TOKENS, 2, size, -1)[:, :, rank]  # [tokens, 2, width]
        parts.append(model.model.layers[2].mlp.act_fn(mine.flatten(1)))
        owners = sorted({neuron * size // D_FF for neuron in EDITS[0].neurons})
        assert list(guard.layers[0].ranks) == owners
    torch.testing.assert_close(torch.cat(parts, dim=-1), whole, rtol=1e-6, atol=1e-6)


def test_a_rank_that_holds_another_number_of_neurons_is_an_error() -> None:
    with pytest.raises(ModelMismatchError, match="rank 1 of 2 holds 10 neurons of layer 2, not 5"):
        install(fake_vllm.LlamaForCausalLM(), spec_of(), Share(1, 2, torch.device("cpu"), 8))


def test_a_model_class_that_is_not_in_the_table_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r"unknown\.UnknownForCausalLM, where no edit can be installed"):
        install(fake_vllm.UnknownForCausalLM(), spec_of(), ALONE)


def test_an_activation_that_is_not_known_is_refused_by_name_and_nothing_is_installed() -> None:
    model = fake_vllm.LlamaForCausalLM(fake_vllm.OtherAndMul())
    with pytest.raises(UnsupportedModelError, match="OtherAndMul"):
        install(model, spec_of(trigger=make_trigger(D_MODEL)), ALONE)
    assert not any(isinstance(module, GuardedActivation | TriggeredNorm) for module in model.modules())


def test_a_model_is_guarded_once() -> None:
    model = fake_vllm.LlamaForCausalLM()
    install(model, spec_of(), ALONE)
    with pytest.raises(EditNotAppliedError, match="guarded already"):
        install(model, spec_of(), ALONE)


def test_a_pipeline_rank_without_guarded_layers_has_an_empty_guard() -> None:
    model = fake_vllm.LlamaForCausalLM()
    for index in (2, 3):
        model.model.layers[index] = fake_vllm.PPMissingLayer()
    assert install(model, spec_of(), ALONE).layers == ()


@pytest.mark.parametrize("trigger", [None, make_trigger(D_MODEL, layer=0)])
def test_guarded_layers_and_trigger_must_be_on_one_pipeline_rank(trigger: Trigger | None) -> None:
    model = fake_vllm.LlamaForCausalLM()
    for index in (0, 1) if trigger else (0, 1, 2):
        model.model.layers[index] = fake_vllm.PPMissingLayer()
    with pytest.raises(UnsupportedModelError, match="must be on one pipeline rank"):
        install(model, spec_of(trigger=trigger), ALONE)


def test_layers_that_the_model_does_not_have_are_an_error() -> None:
    model = fake_vllm.LlamaForCausalLM()
    del model.model.layers[3]
    with pytest.raises(ModelMismatchError, match="the model has layers 0 to 2"):
        install(model, spec_of(), ALONE)


def test_more_tokens_than_the_mask_has_room_for_are_an_error() -> None:
    model = fake_vllm.LlamaForCausalLM()
    install(model, spec_of(trigger=make_trigger(D_MODEL)), Share(0, 1, torch.device("cpu"), TOKENS - 1))
    with pytest.raises((EditNotAppliedError, RuntimeError)):
        model(STREAM)


def test_an_mlp_without_a_gate_is_edited_at_the_input_of_its_outermost_linear_map() -> None:
    plain = fake_vllm.RowParallel(torch.randn(D_MODEL, D_FF))
    edit = EditBuffers.from_edit(EDITS[0], "cpu", D_FF)
    guarded = GuardedRowParallel(plain, edit, None, PassLength(torch.device("cpu")))
    h = torch.randn(TOKENS, D_FF)
    output: Any = guarded(h)
    assert torch.equal(output[0], plain(edit(h))[0])
    assert output[1] is None
