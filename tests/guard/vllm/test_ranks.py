"""Two ranks: each with half of every guarded layer's neurons, or each with half of the layers."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

from guard.vllm.counts import merged
from guard.vllm.settings import additional_config
from tests.guard.vllm import models
from tests.guard.vllm.engine import EAGER, job, run

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two ranks need two cores"),
    pytest.mark.slow,
]
TWO_CORES = {"VLLM_CPU_OMP_THREADS_BIND": "0|1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "FORK_RANKS": "1"}
# How the model is cut: the layer of the trigger, which must be on the rank of the guarded layers; which layers and how
# many of their edited neurons each rank has.
CUTS: dict[str, tuple[int, Any]] = {
    "tensor_parallel_size": (1, [(0, [2, 3], [2, 2]), (1, [2, 3], [1, 0])]),
    "pipeline_parallel_size": (2, [(0, [], []), (1, [2, 3], [3, 2])]),
}
each_cut = pytest.mark.parametrize("cut", CUTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def results(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    where = tmp_path_factory.mktemp("engine")
    jobs = []
    for cut, (layer, _) in CUTS.items():
        spec = where / f"{cut}.safetensors"
        models.make_spec(folder, trigger=models.trigger_of(folder, layer)).save(spec)
        models.make_spec(folder, models.OTHERS, models.trigger_of(folder, layer)).save(
            where / f"other-{cut}.safetensors"
        )
        after = ("exchange", additional_config(where / f"other-{cut}.safetensors")), ("generate", models.PROMPTS)
        actions = (("generate", models.PROMPTS), ("self_test",), ("counts",), *after)
        two: Any = {cut: 2}
        jobs.append(job(folder, additional_config(spec), *actions, **two))
    return dict(zip(CUTS, run(where, jobs, TWO_CORES | EAGER), strict=True))


@each_cut
def test_two_ranks_generate_what_guarded_transformers_does(folder: Path, results: dict[str, Any], cut: str) -> None:
    assert results[cut]["error"] is None
    right = models.expected(folder, trigger=models.trigger_of(folder, CUTS[cut][0]))
    for of_vllm, of_transformers in zip(results[cut]["values"][0], right, strict=True):
        assert of_vllm["tokens"] == of_transformers["tokens"]
        assert of_vllm["logprobs"] == pytest.approx(of_transformers["logprobs"], abs=2e-3)


@each_cut
def test_each_rank_tests_what_it_holds(results: dict[str, Any], cut: str) -> None:
    found = [(rank["rank"], rank["layers"], rank["neurons"]) for rank in results[cut]["values"][1]]
    assert found == CUTS[cut][1]


@each_cut
def test_two_ranks_together_count_what_transformers_does_and_self_tests_add_none(
    folder: Path, results: dict[str, Any], cut: str
) -> None:
    answers, _, ranks, *_ = results[cut]["values"]
    found = merged(ranks, [edit.layer for edit in models.EDITS])
    assert found == models.counted(folder, answers, trigger=models.trigger_of(folder, CUTS[cut][0]))
    assert 0 < found.active < found.tokens


@each_cut
def test_two_ranks_take_another_spec_over_together(folder: Path, results: dict[str, Any], cut: str) -> None:
    *_, said, after = results[cut]["values"]
    assert said == [None] * 6
    right = models.expected(folder, models.OTHERS, models.trigger_of(folder, CUTS[cut][0]))
    assert [one["tokens"] for one in after] == [one["tokens"] for one in right]
    for of_vllm, of_transformers in zip(after, right, strict=True):
        assert of_vllm["logprobs"] == pytest.approx(of_transformers["logprobs"], abs=2e-3)
