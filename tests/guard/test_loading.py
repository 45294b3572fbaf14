"""A model is loaded whole, or one sentence says why not."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks.organisms.catalogue import WEIGHTS
from guard.errors import ModelLoadError
from guard.load_options import Precision, WrittenPrecision
from guard.loading import choose_device, load_model

ORGANISM = WEIGHTS / "two-layer"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of an organism's folder, to be damaged."""
    return Path(shutil.copytree(ORGANISM, tmp_path / "model"))


def changed(folder: Path, **entries: object) -> Path:
    """The folder, its configuration's `entries` replaced."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | entries), "utf-8")
    return folder


def refused(folder: Path) -> str:
    """The sentence that says why the model in `folder` is not loaded."""
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(folder), device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "found"),
    [("auto", torch.float32), ("checkpoint", torch.bfloat16), ("float32", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_a_model_has_the_type_asked_for_on_a_cpu_and_is_not_in_training(
    dtype: Precision | WrittenPrecision, found: torch.dtype
) -> None:
    model, _ = load_model(str(ORGANISM), device="cpu", dtype=dtype)
    assert model.dtype == found
    assert not model.training


def test_no_folder_and_no_hub_name(tmp_path: Path) -> None:
    assert "nowhere" in refused(tmp_path / "nowhere")


def test_weights_of_other_shapes_than_the_configuration_s(folder: Path) -> None:
    assert "cannot load" in refused(changed(folder, intermediate_size=7))


def test_weights_that_are_cut_off(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot load" in refused(folder)


def test_a_configuration_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{", "utf-8")
    assert "cannot load" in refused(folder)


def test_a_quantisation_whose_package_is_not_installed(folder: Path) -> None:
    quantised = {"quant_method": "hqq", "quant_config": {}, "skip_modules": []}
    assert "cannot load" in refused(changed(folder, quantization_config=quantised))


def test_code_that_comes_with_a_model_is_never_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "y")  # what transformers asks where nobody has decided
    (folder / "mine.py").write_text("raise SystemExit('it ran')\n", "utf-8")
    changed(folder, model_type="mine", auto_map={"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"})
    assert "cannot load" in refused(folder)


def test_a_device_that_torch_does_not_know() -> None:
    with pytest.raises(ModelLoadError, match="use auto, cpu or cuda"):
        choose_device("abacus")


def test_cuda_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ModelLoadError, match="use --device cpu"):
        choose_device("cuda:1")
    assert choose_device("auto") == torch.device("cpu")
