"""The model on disk, and the model that vLLM holds, against the one that the spec was made on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from guard.errors import ModelMismatchError, UnsupportedModelError
from guard.families.table import FAMILIES as FAMILY_TABLE
from guard.families.table import VllmLayout
from guard.spec.fingerprint import fingerprint, mlp_digest, verify
from guard.vllm.checkpoint import Checkpoint, check_loaded, skeleton, weights_of
from guard.vllm.install import Share
from tests.conftest import TinyModel
from tests.guard.specs import evidence_with, small_spec

LAYERS = (1, 2)
LAYOUTS = {name: family.vllm for name, family in FAMILY_TABLE.items() if family.vllm is not None}
GATED = VllmLayout("made.Up", into="into", down="down")
PLAIN = VllmLayout("made.Up", into="into", down="down", activation=None)


def read(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The skeleton of the model in `folder`."""
    config = AutoModelForCausalLM.from_pretrained(folder).config
    return skeleton(
        Checkpoint(sorted(folder.glob("*.safetensors"))), config, LAYERS, dtype, LAYOUTS[config.model_type].transposed
    )


@pytest.mark.parametrize("family", LAYOUTS)
def test_a_checkpoint_has_the_identity_of_the_model_that_transformers_loads(
    tiny_model: TinyModel, tmp_path: Path, family: str
) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    assert fingerprint(read(tmp_path), LAYERS) == fingerprint(model, LAYERS)


def test_a_spec_fits_the_checkpoint_of_its_model_and_no_other(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    edits = tuple(edit.model_copy(update={"layer": edit.layer - 1}) for edit in small_spec().layers)
    spec = small_spec(
        model=fingerprint(model, LAYERS), layers=edits, trigger=None, evidence=evidence_with(mediators=(), neurons=())
    )
    verify(spec, read(tmp_path))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][3, 4] += 1e-3
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelMismatchError, match="MLP weights of layers"):
        verify(spec, read(tmp_path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_count_as_the_dtype_in_which_they_are_loaded(
    tiny_model: TinyModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    tiny_model().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert mlp_digest(read(tmp_path, dtype), LAYERS) == mlp_digest(loaded, LAYERS)


def test_tensors_may_be_in_several_files_and_without_the_first_part_of_their_names(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    for number in range(2):
        part = {name.removeprefix("transformer."): tensors[name] for name in sorted(tensors)[number::2]}
        save_file(part, tmp_path / f"model-{number}.safetensors")
    config: Any = model.config
    found = skeleton(Checkpoint(sorted(tmp_path.glob("*.safetensors"))), config, LAYERS, torch.float32, True)
    assert fingerprint(found, LAYERS) == fingerprint(model, LAYERS)


def test_a_checkpoint_that_lacks_a_tensor_is_an_error(tiny_model: TinyModel, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelMismatchError, match=r"no tensor model\.layers\.1\.mlp\.down_proj\.weight"):
        skeleton(Checkpoint([tmp_path / "model.safetensors"]), tiny_model().config, LAYERS, torch.float32, False)


def test_quantised_weights_are_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match="layer 1 are quantised"):
        skeleton(Checkpoint([tmp_path / "model.safetensors"]), tiny_model().config, LAYERS, torch.float32, False)


def test_a_file_that_is_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelMismatchError, match="cannot be read as safetensors"):
        Checkpoint([tmp_path / "model.safetensors"])


class Linear(nn.Module):
    """A linear map as vLLM returns it: output and bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight.detach(), bias

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return nn.functional.linear(x, self.weight, self.bias), None


def held(model: nn.Module, layout: VllmLayout, dtype: torch.dtype, transposed: bool = False) -> Any:
    """What the model says of layer 1, and a layer that computes it on one rank."""
    weights = weights_of(model, 1, layout.activation is not None, transposed)
    layer = nn.Module()
    biases = [bias for bias in weights.into_bias if bias is not None]
    layer.into = Linear(torch.cat(weights.into).to(dtype), torch.cat(biases).to(dtype) if biases else None)
    layer.down = Linear(weights.down.to(dtype), weights.down_bias)
    return weights, layer


ALONE = Share(0, 1, torch.device("cpu"), 8)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_that_computes_what_the_checkpoint_says_passes(
    tiny_model: TinyModel, tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    tiny_model(family, d_ff=38).save_pretrained(tmp_path)
    kind = PLAIN if family == "gpt2" else GATED
    weights, layer = held(read(tmp_path, dtype), kind, dtype, family == "gpt2")
    check_loaded(layer, 1, weights, kind, ALONE)


def wrong_halves(layer: Any) -> None:
    layer.into.weight = layer.into.weight.roll(layer.into.weight.shape[0] // 2, 0)


def wrong_order(layer: Any) -> None:
    layer.down.weight = layer.down.weight.roll(1, 1)


def one_wrong_neuron(layer: Any) -> None:
    layer.into.weight = layer.into.weight.clone()
    layer.into.weight[5] += 0.1


@pytest.mark.parametrize("change", [wrong_halves, wrong_order, one_wrong_neuron])
def test_a_layer_with_other_weights_or_another_order_does_not(
    tiny_model: TinyModel, tmp_path: Path, change: Any
) -> None:
    tiny_model().save_pretrained(tmp_path)
    weights, layer = held(read(tmp_path), GATED, torch.float32)
    change(layer)
    with pytest.raises(ModelMismatchError, match="of layer 1 does not compute what the checkpoint says"):
        check_loaded(layer, 1, weights, GATED, ALONE)


def test_a_rank_must_hold_its_own_part(tiny_model: TinyModel, tmp_path: Path) -> None:
    tiny_model(d_ff=36).save_pretrained(tmp_path)
    weights, layer = held(read(tmp_path), GATED, torch.float32)
    whole = layer.down
    into = layer.into.weight.unflatten(0, (2, 2, 18))  # gate or up, rank, neuron
    for rank in range(2):
        layer.into = Linear(into[:, rank].flatten(0, 1), None)
        neurons = torch.zeros(36, dtype=torch.bool).view(2, 18).index_fill(0, torch.tensor(rank), True).flatten()
        layer.down = Summed(whole.weight, neurons)
        check_loaded(layer, 1, weights, GATED, Share(rank, 2, ALONE.device, 8))
        with pytest.raises(ModelMismatchError):
            check_loaded(layer, 1, weights, GATED, Share(1 - rank, 2, ALONE.device, 8))


class Summed(nn.Module):
    """A row-parallel map after its sum over ranks: the other ranks' neurons are those of the check, made again."""

    def __init__(self, weight: Tensor, mine: Tensor) -> None:
        super().__init__()
        self.weight, self.mine = weight, mine

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        generator = torch.Generator().manual_seed(0)
        torch.randn(x.shape[0], self.weight.shape[0], generator=generator)
        whole = torch.randn(x.shape[0], self.weight.shape[1], generator=generator)
        whole[:, self.mine] = x
        return nn.functional.linear(whole, self.weight), None
