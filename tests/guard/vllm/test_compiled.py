"""vLLM compiling the model: its cache on disk knows the guard, and compiled graphs follow the edit's buffers."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from guard.spec.edit_spec import Trigger
from guard.vllm.counts import merged
from guard.vllm.settings import additional_config
from tests.guard.vllm import models
from tests.guard.vllm.engine import job, run

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.slow,
]
LEAKY_WORKER = "tests.guard.vllm.leaky_worker.LeakyWorker"
UNGUARDED, LEAKY, COLD, CACHED, WHOLE = "unguarded", "leaky", "in pieces", "in pieces, from disk", "as one graph"
# Two layers, since compiling takes its time; the trigger in the first.
EDITS = tuple(edit.model_copy(update={"layer": edit.layer - 2}) for edit in models.EDITS)
OTHERS = tuple(edit.model_copy(update={"layer": edit.layer - 2}) for edit in models.OTHERS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_model(tmp_path_factory.mktemp("model"), layers=2)


def other_trigger(folder: Path) -> Trigger:
    """Active where the first one is not."""
    first = models.trigger_of(folder, 0)
    turned = {"direction": tuple(-entry for entry in first.direction), "threshold": -first.threshold}
    return first.model_copy(update=turned)


@pytest.fixture(scope="module")
def results(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An engine as vLLM compiles for a CPU; and four with one cache on disk, the first, unguarded, filling it."""
    where = tmp_path_factory.mktemp("engine")
    spec = where / "guard.safetensors"
    models.make_spec(folder, EDITS, models.trigger_of(folder, 0)).save(spec)
    given = additional_config(spec)
    models.make_spec(folder, EDITS).save(where / "always.safetensors")
    leaky = additional_config(where / "always.safetensors")  # a trigger's norm would not fit the graph and stop it
    actions = (("generate", models.PROMPTS), ("compiled",))
    models.make_spec(folder, OTHERS, other_trigger(folder)).save(where / "other.safetensors")
    after = ("exchange", additional_config(where / "other.safetensors")), ("generate", models.PROMPTS), ("counts",)
    guarded = job(folder, given, *actions, ("self_test",), ("counts",), *after, enforce_eager=False)
    jobs = {
        UNGUARDED: job(folder, None, *actions, worker="auto", enforce_eager=False),
        LEAKY: job(folder, None, *actions, worker=LEAKY_WORKER, enforce_eager=False),
        COLD: guarded,
        CACHED: guarded,
    }
    # first, as making vLLM compile in pieces cannot be undone
    jobs = {WHOLE: guarded} | {name: one | {"in_pieces": True} for name, one in jobs.items()}
    return dict(zip(jobs, run(where, list(jobs.values()), {"LEAKY_SETTINGS": json.dumps(leaky)}), strict=True))


@pytest.mark.parametrize("start", [COLD, CACHED, WHOLE])
def test_a_compiled_model_generates_what_guarded_transformers_does(
    folder: Path, results: dict[str, Any], start: str
) -> None:
    assert results[start]["error"] is None
    right = models.expected(folder, EDITS, models.trigger_of(folder, 0))
    for of_vllm, of_transformers in zip(results[start]["values"][0], right, strict=True):
        assert of_vllm["tokens"] == of_transformers["tokens"]
        assert of_vllm["logprobs"] == pytest.approx(of_transformers["logprobs"], abs=2e-3)


@pytest.mark.parametrize("start", [COLD, CACHED, WHOLE])
def test_a_compiled_model_counts_what_transformers_does_and_self_tests_add_none(
    folder: Path, results: dict[str, Any], start: str
) -> None:
    answers, _, _, ranks, *_ = results[start]["values"]
    found = merged(ranks, [edit.layer for edit in EDITS])
    assert found == models.counted(folder, answers, EDITS, models.trigger_of(folder, 0))
    assert 0 < found.active < found.tokens


@pytest.mark.parametrize("start", [COLD, CACHED, WHOLE])
def test_compiled_graphs_follow_a_spec_of_other_neurons_that_takes_over(
    folder: Path, results: dict[str, Any], start: str
) -> None:
    before, *_, said, after, ranks = results[start]["values"]
    trigger = other_trigger(folder)
    assert said == [None] * 3
    assert [one["tokens"] for one in after] != [one["tokens"] for one in before], "the test shows nothing"
    for of_vllm, of_transformers in zip(after, models.expected(folder, OTHERS, trigger), strict=True):
        assert of_vllm["tokens"] == of_transformers["tokens"]
        assert of_vllm["logprobs"] == pytest.approx(of_transformers["logprobs"], abs=2e-3)
    assert merged(ranks, [edit.layer for edit in OTHERS]) == models.counted(folder, after, OTHERS, trigger)


def test_a_graph_compiled_without_the_guard_is_not_loaded_with_it(results: dict[str, Any]) -> None:
    assert results[UNGUARDED]["values"][1] == {"compiled": 1, "loaded": 0, "pieces": 3}
    assert results[COLD]["values"][1] == {"compiled": 1, "loaded": 0, "pieces": 3}
    assert results[CACHED]["values"][1] == {"compiled": 0, "loaded": 1, "pieces": 0}


def test_the_self_test_sees_a_graph_that_was_compiled_without_the_guard(results: dict[str, Any]) -> None:
    assert results[LEAKY]["error"] == (
        "SelfTestError: layer 0, rank 0: an extreme setting of the edit does not change the logits."
    )
