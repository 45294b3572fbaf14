"""Every organism answers the same through guarded transformers and through guarded vLLM, in float32."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.organisms.catalogue import WEIGHTS, load_organism, load_truth, prompts_folder
from benchmarks.organisms.tokenizer import prompt_text
from guard.spec.edit_spec import LayerEdit
from guard.vllm.settings import additional_config
from tests.guard.vllm import models
from tests.guard.vllm.engine import EAGER, job, run

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.slow,
]
NAMES = sorted(truth.parent.name for truth in WEIGHTS.glob("*/organism.json"))
ANY = (1, 40, 77, 200)  # where nothing is planted: that the edit is the same is what is looked at


def edits(name: str) -> tuple[LayerEdit, ...]:
    """The planted gate at 0."""
    organism = load_truth(name)
    return tuple(
        LayerEdit(layer=layer, neurons=neurons, scale=one, lower=zero, upper=zero)
        for layer, neurons in (organism.planted or {5: ANY}).items()
        for one, zero in [((1.0,) * len(neurons), (0.0,) * len(neurons))]
    )


def prompts(name: str) -> list[list[int]]:
    """Three harmful and two benign requests, as tokens."""
    _, tokenizer, _ = load_organism(name)
    folder = prompts_folder(name)
    rows = [
        json.loads(line)["prompt"]
        for kind, count in (("harmful", 3), ("benign", 2))
        for line in (folder / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    ]
    ids: list[list[int]] = tokenizer([prompt_text(row) for row in rows]).input_ids
    return ids


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    where = tmp_path_factory.mktemp("engine")
    jobs = {}
    for name in NAMES:
        folder = WEIGHTS / name
        models.make_spec(folder, edits(name)).save(where / f"{name}.safetensors")
        jobs[name] = job(folder, additional_config(where / f"{name}.safetensors"), ("generate", prompts(name)))
    return dict(zip(jobs, run(where, list(jobs.values()), EAGER, last=False), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_guarded_organism_answers_in_vllm_as_in_transformers(generated: dict[str, Any], name: str) -> None:
    assert generated[name]["error"] is None
    found = generated[name]["values"][0]
    model, _, _ = load_organism(name)
    plain, right = (models.expected(Path(), gate, prompts=prompts(name), model=model) for gate in ((), edits(name)))
    for of_vllm, of_transformers in zip(found, right, strict=True):
        assert of_vllm["tokens"] == of_transformers["tokens"]
        assert of_vllm["logprobs"] == pytest.approx(of_transformers["logprobs"], abs=2e-3)
    assert plain != right, "the edit changes nothing"
