"""The command that writes folded models: what is in the folder, that it does what the guard does, what it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from guard.errors import ModelMismatchError
from guard.hf import install, install_edits
from guard.spec.edit import LayerEdit
from guard.spec.edit_spec import EditSpec
from guard.spec.fingerprint import fingerprint
from serve.fold import RECORD_FILE, SPEC_FILE, FoldRecord, write_folded
from tests.conftest import TinyModel
from tests.guard.by_hand import PROMPTS, greedy, make_trigger
from tests.guard.specs import REFUTED, evidence_with
from tests.serve.fold_setting import CLAMP, MEAN, SCALE, ZERO, Setting


@pytest.fixture
def setting(tmp_path: Path, tiny_model: TinyModel) -> Setting:
    return Setting(tmp_path, tiny_model("llama"))


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(PROMPTS).logits
    return logits


@pytest.mark.parametrize("layers", [SCALE, ZERO, MEAN], ids=["scale", "zero", "mean"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "granite", "opt"])
def test_the_folder_holds_a_model_that_does_what_the_guard_does(
    tmp_path: Path, tiny_model: TinyModel, family: str, layers: tuple[LayerEdit, ...]
) -> None:
    here = Setting(tmp_path, tiny_model(family))
    here.spec(layers)
    outcome = here.fold()
    assert outcome.exit_code == 0, outcome.output
    with install_edits(here.model, layers):
        expected, generated = logits_of(here.model), greedy(here.model, PROMPTS)
    folded = here.folded()
    torch.testing.assert_close(logits_of(folded), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits_of(here.model), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(greedy(folded, PROMPTS), generated)


def test_the_folder_says_what_was_folded(setting: Setting) -> None:
    spec = setting.spec(MEAN)
    output = setting.fold().output
    record = FoldRecord.model_validate_json((setting.output / RECORD_FILE).read_text())
    assert (record.spec_digest, record.verdict, record.model_type) == (spec.digest, "effective", "llama")
    assert (record.layers, record.neurons, record.bias_entry) == ({1: 2, 2: 2}, 4, "mlp_bias")
    assert record.dtype == "float32"
    assert record.logit_difference < 1e-5
    assert EditSpec.load(setting.output / SPEC_FILE) == spec
    assert "folded 4 neurons of layers 1, 2" in output
    assert "mlp_bias is switched on" in output
    assert json.loads((setting.output / "config.json").read_text())["mlp_bias"] is True


def test_servers_find_no_weights_but_the_model_s(setting: Setting) -> None:
    setting.spec(ZERO)
    setting.fold()
    assert [path.name for path in setting.output.glob("*.safetensors")] == ["model.safetensors"]


def test_tokenizer_generation_config_and_side_files_come_along(setting: Setting) -> None:
    generation: Any = GenerationConfig
    generation(max_new_tokens=17, eos_token_id=9).save_pretrained(setting.source)
    (setting.source / "tokenizer.model").write_bytes(b"pieces")
    setting.spec(ZERO)
    assert setting.fold().exit_code == 0
    tokenizer = AutoTokenizer.from_pretrained(setting.output)
    assert tokenizer("there")["input_ids"] == setting.tokenizer("there")["input_ids"] == [2]
    assert tokenizer.chat_template == setting.tokenizer.chat_template
    assert setting.folded().generation_config.max_new_tokens == 17
    assert (setting.output / "tokenizer.model").read_bytes() == b"pieces"


def test_the_spec_no_longer_fits_the_folded_model(setting: Setting) -> None:
    spec = setting.spec(ZERO)
    setting.fold()
    with pytest.raises(ModelMismatchError, match=r"the MLP weights of layers \[2\] differ"):
        install(setting.folded(), spec)
    setting.source, setting.output = setting.output, setting.output.with_name("twice")
    assert "the spec was made on another model" in setting.refusal()
    assert not setting.output.exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_checkpoint_keeps_its_type(tmp_path: Path, tiny_model: TinyModel, dtype: torch.dtype) -> None:
    here = Setting(tmp_path, tiny_model(dtype=dtype))
    here.spec(MEAN)
    outcome = here.fold()
    assert outcome.exit_code == 0, outcome.output
    assert {tensor.dtype for tensor in here.folded().state_dict().values()} == {dtype}
    untouched = here.folded().model.layers[1].mlp.down_proj.weight[:, [0, 36]]
    assert torch.equal(untouched, here.model.model.layers[1].mlp.down_proj.weight[:, [0, 36]])


def test_a_float32_checkpoint_can_be_written_in_the_type_that_the_spec_was_made_in(
    tmp_path: Path, tiny_model: TinyModel
) -> None:
    here = Setting(tmp_path, tiny_model())
    here.model.to(torch.bfloat16)
    here.spec(ZERO)
    assert "the MLP weights of layers [2] differ" in here.refusal()
    assert here.fold("--dtype", "bfloat16").exit_code == 0
    assert here.folded().dtype == torch.bfloat16


def test_shards_in_and_shards_out(setting: Setting) -> None:
    for path in setting.source.glob("*.safetensors"):
        path.unlink()
    setting.model.save_pretrained(setting.source, max_shard_size="8KB")
    assert len(list(setting.source.glob("*.safetensors"))) > 2
    spec = setting.spec(MEAN)
    assert setting.fold().exit_code == 0
    sharded = setting.output.with_name("sharded")
    model = AutoModelForCausalLM.from_pretrained(setting.source)
    write_folded(model, setting.tokenizer, spec, sharded, shard_size="8KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    again = AutoModelForCausalLM.from_pretrained(sharded).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in setting.folded().state_dict().items())


def test_tied_embeddings_stay_tied(tmp_path: Path, tiny_model: TinyModel) -> None:
    here = Setting(tmp_path, tiny_model(tie_word_embeddings=True))
    here.spec(MEAN)
    assert here.fold().exit_code == 0
    folded = here.folded()
    assert folded.lm_head.weight is folded.model.embed_tokens.weight
    assert torch.equal(folded.lm_head.weight, here.model.lm_head.weight)


def test_an_existing_empty_folder_is_filled(setting: Setting) -> None:
    setting.output.mkdir()
    setting.spec(ZERO)
    assert setting.fold().exit_code == 0
    assert (setting.output / "config.json").exists()


def test_a_folder_with_something_in_it_is_refused_and_left_alone(setting: Setting) -> None:
    setting.spec(ZERO)
    setting.output.mkdir()
    (setting.output / "note.txt").write_text("mine")
    assert "not an empty folder; name a new one" in setting.refusal()
    assert [path.name for path in setting.output.iterdir()] == ["note.txt"]


def test_a_clamp_and_a_trigger_are_refused_before_the_model_is_loaded(setting: Setting) -> None:
    setting.spec(CLAMP)
    setting.source = setting.source / "nowhere"
    assert "neuron 0 of layer 2 is clamped to [-0.5, 0.5]" in setting.refusal()
    setting.spec(ZERO, trigger=make_trigger())
    assert "a trigger in layer 1" in setting.refusal()


def test_a_refuted_spec_is_folded_only_by_name(setting: Setting) -> None:
    setting.spec(ZERO, evidence=evidence_with(mediators=(), neurons=(), verdict=REFUTED))
    assert "failed its held-out test" in setting.refusal()
    assert not setting.output.exists()
    assert setting.fold("--allow-refuted").exit_code == 0
    assert json.loads((setting.output / RECORD_FILE).read_text())["verdict"] == "refuted"


def test_a_spec_of_another_model_is_refused(setting: Setting, tiny_model: TinyModel) -> None:
    spec = setting.spec(ZERO)
    other = fingerprint(tiny_model(seed=5), [2])
    spec.model_copy(update={"model": other}).save(setting.spec_path)
    assert "the MLP weights of layers [2] differ" in setting.refusal()
    assert not setting.output.exists()


def test_a_family_without_a_bias_is_refused_by_name(tmp_path: Path, tiny_model: TinyModel) -> None:
    here = Setting(tmp_path, tiny_model("mistral"))
    here.spec(MEAN)
    assert "a mistral model cannot have one" in here.refusal()
    assert not here.output.exists()


def test_a_quantised_checkpoint_is_refused_by_its_method(setting: Setting) -> None:
    setting.spec(ZERO)
    path = setting.source / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    path.write_text(json.dumps(config))
    assert "the checkpoint is quantised (gptq)" in setting.refusal()


def test_an_edit_that_rounds_to_nothing_is_refused(tmp_path: Path, tiny_model: TinyModel) -> None:
    here = Setting(tmp_path, tiny_model(dtype=torch.bfloat16))
    edit = LayerEdit(layer=1, neurons=(3,), scale=(1.0001,), lower=(-math.inf,), upper=(math.inf,))
    here.spec((edit,))
    assert "no weight changes" in here.refusal()
    assert not here.output.exists()


def test_a_model_that_is_not_there_is_one_line(setting: Setting) -> None:
    setting.spec(ZERO)
    setting.source = setting.source.with_name("nowhere")
    (setting.source).mkdir()
    assert "cannot load" in setting.refusal()
