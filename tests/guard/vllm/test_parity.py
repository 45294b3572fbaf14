"""Guarded vLLM against guarded transformers, in float32: the same tokens, and log-probabilities to rounding."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from guard.vllm_settings import additional_config
from tests.family_table import counts_to
from tests.guard.vllm import models
from tests.guard.vllm.engine import EAGER, job, run

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma3_text",
    "phi3",
    "gpt2",
    "opt",
    "stablelm",
    "granite",
    "nemotron",
)
EVERYWHERE, TRIGGERED = "on every token", "where the trigger is active"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: models.save_model(tmp_path_factory.mktemp(name), name) for name in FAMILIES}


@pytest.fixture(scope="module")
def generated(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """What vLLM generates, by family and kind of guard."""
    where = tmp_path_factory.mktemp("engine")
    action = ("generate", models.PROMPTS)
    kinds, jobs = [], []
    for name, folder in folders.items():
        for kind, trigger in ((EVERYWHERE, None), (TRIGGERED, models.trigger_of(folder))):
            spec = where / f"{name}-{kind}.safetensors"
            models.make_spec(folder, trigger=trigger).save(spec)
            kinds.append((name, kind))
            jobs.append(job(folder, additional_config(spec), action))
    return dict(zip(kinds, run(where, jobs, **EAGER), strict=True))


@pytest.mark.slow
@counts_to("vLLM")
@pytest.mark.parametrize("kind", [EVERYWHERE, TRIGGERED])
@pytest.mark.parametrize("family", FAMILIES)
def test_vllm_generates_what_guarded_transformers_does(
    folders: dict[str, Path], generated: dict[tuple[str, str], Any], family: str, kind: str
) -> None:
    result, plain = generated[family, kind], models.expected(folders[family], ())
    assert result["error"] is None
    trigger = models.trigger_of(folders[family]) if kind == TRIGGERED else None
    found, right = result["values"][0], models.expected(folders[family], models.EDITS, trigger)
    for of_vllm, of_transformers in zip(found, right, strict=True):
        assert of_vllm["tokens"] == of_transformers["tokens"]
        assert of_vllm["logprobs"] == pytest.approx(of_transformers["logprobs"], abs=2e-3)
    assert scores(found) != pytest.approx(scores(plain), abs=2e-2), "the edit changes nothing"


def scores(outputs: list[dict[str, Any]]) -> list[float]:
    return [score for output in outputs for score in output["logprobs"]]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_trigger_leaves_tokens_as_they_are_where_it_is_not_active(
    generated: dict[tuple[str, str], Any], family: str
) -> None:
    everywhere, triggered = (scores(generated[family, kind]["values"][0]) for kind in (EVERYWHERE, TRIGGERED))
    assert triggered != pytest.approx(everywhere, abs=2e-2)
