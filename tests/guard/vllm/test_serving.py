"""What happens in one engine's life: cached prefixes, adapters, drafts, and a guard that somebody touches."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from guard.vllm.settings import additional_config
from tests.guard.vllm import models
from tests.guard.vllm.engine import EAGER, job, run

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.slow,
]
LONG = [(7 * number + 3) % 250 + 5 for number in range(50)]
# Plain and guarded answers differ, and both have repeated what was there before.
REPEATED = [[5, 17, 23, 4, 40] * 4, [(11 * number) % 13 + 60 for number in range(20)], LONG[:9] * 2]
RANK = 8
BLOCK = 32  # tokens that the prefix cache keeps together
ADAPTED = {
    "llama": ("gate_proj", "up_proj", "down_proj"),
    "nemotron": ("up_proj", "down_proj"),
}
DRAFTS: dict[str, dict[str, Any]] = {
    "an unguarded model": {"method": "draft_model"},  # the very model that is guarded
    "the prompt": {"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 2},
}
FAILURES = {
    "the plain activation put back": "layer 2: the guarded module was replaced.",
    "another edit in its place": "layer 2: the guarded module was replaced.",
    "one form of a bound lifted": "layer 2: the edit's upper_of_all is not the spec's any more.",
    "the plain norm put back": "the trigger's norm was replaced.",
    "a forward method that does not edit": "layer 2: an edited neuron is outside its bounds.",
    "a mask that is never written": "layer 2: an edited neuron is outside its bounds.",
    "a threshold that is never reached": "the trigger's threshold is not the spec's any more.",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: models.save_model(tmp_path_factory.mktemp(name), name) for name in ADAPTED}


@pytest.fixture(scope="module")
def adapters(folders: dict[str, Path]) -> dict[str, Path]:
    return {name: save_adapter(folder / "adapter", ADAPTED[name]) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def results(
    folders: dict[str, Path], adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    halves = {
        name: models.save_model(tmp_path_factory.mktemp(f"half-{name}"), name, dtype=torch.bfloat16) for name in folders
    }
    where = tmp_path_factory.mktemp("engine")
    config = {}
    for name, folder in folders.items():
        models.make_spec(folder, trigger=models.trigger_of(folder)).save(where / f"{name}.safetensors")
        config[name] = additional_config(where / f"{name}.safetensors")
    plain = folders["llama"], config["llama"]
    again = ("generate", [LONG]), ("generate", [LONG, LONG[:-3]])
    jobs = {"prefix": job(*plain, *again, ("self_test",), ("fused",), block_size=BLOCK, enable_prefix_caching=True)}
    # fewer sequences at once than a self-test's pass has tokens
    jobs["one"] = job(*plain, ("generate", models.PROMPTS), ("self_test",), max_num_seqs=1)
    for name, folder in folders.items():
        action = ("generate", models.PROMPTS, str(adapters[name]))
        jobs[f"adapter {name}"] = job(
            folder, config[name], action, ("self_test",), action, enable_lora=True, max_lora_rank=RANK
        )
    for name, path in halves.items():
        models.make_spec(path, dtype=torch.bfloat16).save(where / f"half-{name}.safetensors")
        given = additional_config(where / f"half-{name}.safetensors")
        jobs[f"bfloat16 {name}"] = job(path, given, ("generate", models.PROMPTS), ("self_test",), dtype="bfloat16")
    for how in FAILURES:
        broken = ("error_of", "self_test"), ("error_of", "generate", models.PROMPTS)
        jobs[how] = job(*plain, ("self_test",), ("tamper", how), *broken)
    # last, as vLLM stumbles over a module that one of them imports when it starts the next engine
    for source, settings in DRAFTS.items():
        drafts = settings | {"num_speculative_tokens": 3}
        if source == "an unguarded model":
            drafts["model"] = str(folders["llama"])
        actions = ("generate", REPEATED), ("drafts",), ("self_test",), ("generate", REPEATED)
        jobs[source] = job(*plain, *actions, speculative_config=drafts, disable_log_stats=False)
    return dict(zip(jobs, run(where, list(jobs.values()), EAGER), strict=True))


def save_adapter(folder: Path, projections: tuple[str, ...]) -> Path:
    """A LoRA adapter in PEFT's format, for the MLP of every layer."""
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for layer in range(4):
        for projection in projections:
            entering, leaving = (models.D_FF, models.D_MODEL) if projection == "down_proj" else (64, models.D_FF)
            name = f"base_model.model.model.layers.{layer}.mlp.{projection}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, entering, generator=generator) * 0.2
            tensors[f"{name}.lora_B.weight"] = torch.randn(leaving, RANK, generator=generator) * 0.2
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(projections)}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def merged(folder: Path, adapter: Path) -> Any:
    """The transformers model with the adapter added to its weights."""
    model = models.load(folder)
    tensors = load_file(adapter / "adapter_model.safetensors")
    with torch.no_grad():
        for name in [name for name in tensors if name.endswith("lora_A.weight")]:
            weight = model.get_parameter(name.removeprefix("base_model.model.").replace("lora_A.weight", "weight"))
            weight += tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
    return model


def assert_equal(found: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
    for of_vllm, of_transformers in zip(found, right, strict=True):
        assert of_vllm["tokens"] == of_transformers["tokens"]
        assert of_vllm["logprobs"] == pytest.approx(of_transformers["logprobs"], abs=2e-3)


def test_tokens_from_the_prefix_cache_were_guarded(folders: dict[str, Path], results: dict[str, Any]) -> None:
    assert results["prefix"]["error"] is None
    first, second = results["prefix"]["values"][:2]
    assert first[0]["cached"] == 0
    assert all(output["cached"] >= BLOCK for output in second), "nothing came from the cache: the test shows nothing"
    trigger = models.trigger_of(folders["llama"])
    right = models.expected(folders["llama"], trigger=trigger, prompts=[LONG, LONG, LONG[:-3]])
    assert_equal([*first, *second], right)


def test_an_engine_of_one_sequence_at_a_time_starts_guarded_and_tests_itself(
    folders: dict[str, Path], results: dict[str, Any]
) -> None:
    assert results["one"]["error"] is None
    assert_equal(
        results["one"]["values"][0], models.expected(folders["llama"], trigger=models.trigger_of(folders["llama"]))
    )
    assert results["one"]["values"][1][0]["layers"] == [2, 3]


@pytest.mark.parametrize("family", ADAPTED)
def test_a_model_with_an_adapter_is_guarded(
    folders: dict[str, Path], adapters: dict[str, Path], results: dict[str, Any], family: str
) -> None:
    result, trigger = results[f"adapter {family}"], models.trigger_of(folders[family])
    assert result["error"] is None
    assert result["values"][1][0]["layers"] == [2, 3]
    model = merged(folders[family], adapters[family])
    right = models.expected(folders[family], trigger=trigger, model=model)
    assert_equal(result["values"][0], right)
    assert_equal(result["values"][2], right)  # the self-test's passes leave the adapter as it was


@pytest.mark.parametrize("family", ADAPTED)
def test_a_model_in_half_precision_starts_with_its_weights_as_the_checkpoint_has_them(
    results: dict[str, Any], family: str
) -> None:
    result = results[f"bfloat16 {family}"]
    assert result["error"] is None
    assert result["values"][1][0]["neurons"] == [3, 2]


@pytest.mark.parametrize("source", DRAFTS)
def test_drafts_are_no_way_round_the_guard(folders: dict[str, Path], results: dict[str, Any], source: str) -> None:
    result, folder = results[source], folders["llama"]
    assert result["error"] is None
    first, drafted, _, second = result["values"]
    assert 0 < drafted["accepted"] < drafted["draft"], "no draft was tried: the test shows nothing"
    right = models.expected(folder, trigger=models.trigger_of(folder), prompts=REPEATED)
    assert right != models.expected(folder, (), prompts=REPEATED)
    assert_equal(first, right)
    assert_equal(second, right)


def test_the_self_test_can_be_repeated_while_serving(results: dict[str, Any]) -> None:
    report = results["prefix"]["values"][2]
    assert [(rank["rank"], rank["layers"], rank["neurons"]) for rank in report] == [(0, [2, 3], [3, 2])]


def test_fused_activation_and_quantisation_passes_the_guarded_activation_by(results: dict[str, Any]) -> None:
    assert results["prefix"]["values"][3] == [True, True]


@pytest.mark.parametrize("how", FAILURES)
def test_a_guard_that_was_touched_fails_its_self_test_and_serves_no_more(results: dict[str, Any], how: str) -> None:
    assert results[how]["error"] is None
    _, _, test, generation = results[how]["values"]
    assert test == f"SelfTestError: {FAILURES[how]}"
    assert generation == f"EditNotAppliedError: no request is run: the self-test failed: {FAILURES[how]}"
