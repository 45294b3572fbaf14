"""Guarded vLLM against guarded transformers, in float32: the same tokens, and log-probabilities to rounding."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from guard.families.table import FAMILIES as FAMILY_TABLE
from guard.spec.edit_spec import Trigger
from guard.vllm.settings import additional_config
from tests.family_table import counts_to
from tests.guard.vllm import models
from tests.guard.vllm.engine import EAGER, job, run

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

FAMILIES = tuple(name for name, family in FAMILY_TABLE.items() if family.vllm is not None)
EVERYWHERE, TRIGGERED = "on every token", "where the trigger is active"
# gated, not gated, and one whose norm after the MLP is of another kind
GUARDED = [
    *((name, TRIGGERED) for name in FAMILIES),
    *((name, EVERYWHERE) for name in ("llama", "gpt2", "gemma3_text")),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: models.save_model(tmp_path_factory.mktemp(name), name) for name in FAMILIES}


@pytest.fixture(scope="module")
def generated(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """What vLLM generates, by family and kind of guard."""
    where = tmp_path_factory.mktemp("engine")
    action = ("generate", models.PROMPTS)
    kinds, jobs = [], []
    for name, kind in GUARDED:
        spec = where / f"{name}-{kind}.safetensors"
        models.make_spec(folders[name], trigger=trigger_of(folders[name], kind)).save(spec)
        kinds.append((name, kind))
        jobs.append(job(folders[name], additional_config(spec), action))
    return dict(zip(kinds, run(where, jobs, EAGER, last=False), strict=True))


def trigger_of(folder: Path, kind: str) -> Trigger | None:
    return models.trigger_of(folder) if kind == TRIGGERED else None


@pytest.mark.slow
@counts_to("vLLM")
@pytest.mark.parametrize(("family", "kind"), GUARDED)
def test_vllm_generates_what_guarded_transformers_does(
    folders: dict[str, Path], generated: dict[tuple[str, str], Any], family: str, kind: str
) -> None:
    result, folder = generated[family, kind], folders[family]
    assert result["error"] is None
    found, right = result["values"][0], models.expected(folder, models.EDITS, trigger_of(folder, kind))
    for of_vllm, of_transformers in zip(found, right, strict=True):
        assert of_vllm["tokens"] == of_transformers["tokens"]
        assert of_vllm["logprobs"] == pytest.approx(of_transformers["logprobs"], abs=2e-3)
    assert scores(found) != pytest.approx(scores(models.expected(folder, ())), abs=2e-2), "the edit changes nothing"
    if kind == TRIGGERED:
        everywhere = models.expected(folder, models.EDITS)
        assert scores(found) != pytest.approx(scores(everywhere), abs=2e-2), "the trigger changes nothing"


def scores(outputs: list[dict[str, Any]]) -> list[float]:
    return [score for output in outputs for score in output["logprobs"]]
