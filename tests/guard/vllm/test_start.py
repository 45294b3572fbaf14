"""Starts of real vLLM that must not succeed, each with the sentence that says why."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from guard.vllm.settings import KEY, additional_config
from tests.guard.specs import REFUTED, evidence_with
from tests.guard.vllm import models
from tests.guard.vllm.engine import EAGER, job, run

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.slow,
]
NOT_THIS_MODEL = "ModelMismatchError: the spec was made on another model: "
# case: what the error begins with, or has in it
REFUSALS = {
    "without a spec": "SpecError: vLLM was started with the guard's worker but without a spec",
    "with a spec that is not there": "could not be read: No such file or directory.",
    "with another digest": "SpecError: the spec at ",
    "with a spec whose bytes were altered": "SpecError: ",
    "set up by another version": "SpecError: vLLM was set up by neuron-guard 0.0.0",
    "with an entry that nobody knows": "SpecError: in vLLM's additional configuration, neuron_guard.off:",
    "with a refuted spec": "RefutedSpecError: this spec failed its held-out test",
    "on other MLP weights": NOT_THIS_MODEL + "the MLP weights of layers [2, 3] differ",
    "on a model of another size": NOT_THIS_MODEL + "d_ff is 128 here and 96 in the spec",
    "with another tokenizer": NOT_THIS_MODEL + "the tokenizer differs",
    "in another precision": NOT_THIS_MODEL + "the MLP weights of layers [2, 3] differ",
    "with made-up weights": "UnsupportedModelError: --load-format dummy cannot be served guarded",
    "with quantised weights": "UnsupportedModelError: --quantization ",
    "through vLLM's transformers backend": "TransformersForCausalLM, where no edit can be installed",
    "with keys and values from elsewhere": "UnsupportedModelError: --kv-transfer-config",
    "on a family that is not in the table": "gemma2.Gemma2ForCausalLM, where no edit can be installed",
    "with a guard that cannot be imported": "ModuleNotFoundError: ",
}


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """What each start ends with; None where it did not end."""
    where = tmp_path_factory.mktemp("engine")

    def model(name: str, **settings: Any) -> Path:
        return models.save_model(tmp_path_factory.mktemp(name), **settings)

    plain = model("plain")
    spec = where / "guard.safetensors"
    models.make_spec(plain).save(spec)
    given = additional_config(spec)
    refuted = where / "refuted.safetensors"
    models.make_spec(plain, evidence=evidence_with(verdict=REFUTED, mediators=(), neurons=())).save(refuted)
    gemma2 = model("gemma2", model_type="gemma2", head_dim=32)
    models.make_spec(gemma2).save(where / "gemma2.safetensors")
    connector = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}
    jobs = {
        "without a spec": job(plain),
        "with a spec that is not there": job(plain, changed(given, spec=str(where / "none"))),
        "with another digest": job(plain, changed(given, digest="0" * 64)),
        "with a spec whose bytes were altered": job(plain, changed(given, spec=str(altered(spec, where)))),
        "set up by another version": job(plain, changed(given, version="0.0.0")),
        "with an entry that nobody knows": job(plain, changed(given, off=True)),
        "with a refuted spec": job(plain, changed(additional_config(refuted, allow_refuted=True), allow_refuted=False)),
        "on other MLP weights": job(model("reseeded", seed=1), given),
        "on a model of another size": job(model("wide", d_ff=128), given),
        "with another tokenizer": job(other_tokenizer(model("tokens")), given),
        "in another precision": job(plain, given, dtype="bfloat16"),
        "with made-up weights": job(plain, given, load_format="dummy"),
        "with quantised weights": job(plain, given, dtype="bfloat16", quantization="fp8"),
        "through vLLM's transformers backend": job(plain, given, model_impl="transformers"),
        "with keys and values from elsewhere": job(plain, given, kv_transfer_config=connector),
        "on a family that is not in the table": job(gemma2, additional_config(where / "gemma2.safetensors")),
        "with a guard that cannot be imported": job(plain, given, worker="guard_elsewhere.vllm_worker.GuardedWorker"),
    }
    found = [result["error"] for result in run(where, list(jobs.values()), EAGER, last=False)]
    return dict(zip(jobs, found, strict=True))


def changed(config: dict[str, dict[str, object]], **entries: object) -> dict[str, dict[str, object]]:
    return {KEY: config[KEY] | entries}


def altered(spec: Path, where: Path) -> Path:
    """A copy with one bit of the last bound flipped."""
    contents = bytearray(spec.read_bytes())
    contents[-1] ^= 1
    path = where / "altered.safetensors"
    path.write_bytes(contents)
    return path


def other_tokenizer(folder: Path) -> Path:
    """The same model, two of its tokens exchanged."""
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = document["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(document), encoding="utf-8")
    return folder


@pytest.mark.parametrize("case", REFUSALS)
def test_vllm_does_not_start(errors: dict[str, str | None], case: str) -> None:
    error = errors[case]
    assert error is not None, "it started"
    assert REFUSALS[case] in error
