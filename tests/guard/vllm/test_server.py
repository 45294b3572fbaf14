"""vLLM's own server, started as the README says."""

import http.client
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guard.vllm_settings import KEY, additional_config
from tests.guard.vllm import models
from tests.guard.vllm.engine import EAGER, FAST, ROOT, WORKER

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.slow,
]
LONGEST_START = 300  # seconds
SERVER = FAST | EAGER | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def config(folder: Path) -> dict[str, dict[str, object]]:
    models.make_spec(folder, trigger=models.trigger_of(folder)).save(folder / "guard.safetensors.spec")
    return additional_config(folder / "guard.safetensors.spec")


def start(folder: Path, config: Any, port: int, log: Path) -> subprocess.Popen[bytes]:
    arguments = {
        "--model": str(folder),
        "--worker-cls": WORKER,
        "--additional-config": json.dumps(config),
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": "float32",
        "--max-model-len": "64",
        "--max-num-seqs": "1",  # fewer than a self-test's pass has tokens
    }
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
            + [part for pair in arguments.items() for part in pair],
            cwd=ROOT,
            env=os.environ | SERVER | {"VLLM_CACHE_ROOT": str(log.parent / "cache")},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def post(port: int, path: str, body: Any) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return json.load(connection.getresponse())


def is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def server(folder: Path, config: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a running server."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    process = start(folder, config, port, log)
    try:
        deadline = time.monotonic() + LONGEST_START
        while not is_healthy(port):
            assert process.poll() is None, log.read_text(encoding="utf-8")[-4000:]
            assert time.monotonic() < deadline, "the server did not start in time"
            time.sleep(1)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_the_server_answers_as_guarded_transformers_does(server: int, folder: Path) -> None:
    right = models.expected(folder, trigger=models.trigger_of(folder))
    for prompt, expected in zip(models.PROMPTS, right, strict=True):
        body = {
            "model": str(folder),
            "prompt": prompt,
            "max_tokens": models.NEW_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        assert post(server, "/v1/completions", body)["choices"][0]["token_ids"] == expected["tokens"]


def test_a_server_whose_spec_was_changed_ends_and_says_why(folder: Path, config: Any, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    process = start(folder, {KEY: config[KEY] | {"digest": "0" * 64}}, port, log)
    try:
        assert process.wait(timeout=LONGEST_START) != 0
    finally:
        process.kill()
    assert "guard.errors.SpecError: the spec at " in log.read_text(encoding="utf-8")
    assert not is_healthy(port)
