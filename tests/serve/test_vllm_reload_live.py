"""A new spec taking over in real vLLM, asked for as an operator does it, with prompts that are in the prefix cache."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.common.server import Server
from guard.spec.edit_spec import LayerEdit
from tests.guard.vllm import models
from tests.serve.live import PATIENCE, live_vllm
from tests.serve.served import MODEL

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.slow,
]
LONG = [(7 * number + 3) % 250 + 5 for number in range(50)]
BLOCK = 32  # tokens that the prefix cache keeps together


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def spec(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "guard.safetensors"
    models.make_spec(folder).save(path)
    return path


@pytest.fixture(scope="module")
def server(folder: Path, spec: Path) -> Iterator[Server]:
    more = "--enable-prefix-caching", "--block-size", str(BLOCK), "--enable-prompt-tokens-details"
    with live_vllm(folder, spec, *more) as running:
        yield running


def ask(server: Server) -> tuple[list[float], int]:
    """The log-probabilities of a greedy answer, and how many tokens of its prompt were cached."""
    body = {"model": MODEL, "prompt": LONG, "max_tokens": models.NEW_TOKENS, "temperature": 0, "logprobs": 1}
    response = httpx.post(f"{server.url}/v1/completions", headers=server.headers, json=body, timeout=PATIENCE)
    answer: dict[str, Any] = response.raise_for_status().json()
    cached = (answer["usage"]["prompt_tokens_details"] or {}).get("cached_tokens", 0)
    return answer["choices"][0]["logprobs"]["token_logprobs"], cached


def reload(server: Server) -> httpx.Response:
    return httpx.post(f"{server.url}/guard/reload", headers=server.headers, timeout=PATIENCE)


def right(folder: Path, edits: tuple[LayerEdit, ...]) -> Any:
    return pytest.approx(models.expected(folder, edits, prompts=[LONG])[0]["logprobs"], abs=2e-3)


def test_a_new_spec_takes_over_and_no_answer_begins_in_the_old_one_s_cache(
    server: Server, folder: Path, spec: Path
) -> None:
    assert ask(server)[0] == right(folder, models.EDITS)
    assert ask(server)[1] == BLOCK, "the test shows nothing"
    assert right(folder, models.EDITS) != models.expected(folder, models.OTHERS, prompts=[LONG])[0]["logprobs"]
    new = models.make_spec(folder, models.OTHERS)
    new.save(spec)
    response = reload(server)
    assert (response.status_code, response.json()["spec_digest"]) == (200, new.digest), response.text
    answer, cached = ask(server)
    assert cached == 0
    assert answer == right(folder, models.OTHERS)
    seen = httpx.get(f"{server.url}/guard", headers=server.headers, timeout=PATIENCE)
    assert (seen.json()["spec_digest"], seen.json()["in_force"]) == (new.digest, True)
    assert seen.json()["tokens"] == len(LONG) + models.NEW_TOKENS - 1


def test_a_spec_of_other_layers_takes_a_new_start_and_the_old_one_serves_on(
    server: Server, folder: Path, spec: Path
) -> None:
    before = httpx.get(f"{server.url}/guard", headers=server.headers, timeout=PATIENCE).json()["spec_digest"]
    answer, _ = ask(server)
    models.make_spec(folder, models.EDITS[:1]).save(spec)
    response = reload(server)
    assert response.status_code == 409
    assert "layers: [2, 3] in the running graphs, [2] in the new spec" in response.json()["error"]["message"]
    assert ask(server)[0] == pytest.approx(answer, abs=2e-3)
    after = httpx.get(f"{server.url}/guard", headers=server.headers, timeout=PATIENCE).json()
    assert (after["spec_digest"], after["in_force"]) == (before, True)
