"""A server in a process of its own, as an operator starts it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.common.server import Server, serving
from tests.serve.served import MODEL, ORGANISM

KEY = "sk-organism"
PATIENCE = 90  # seconds; a loaded machine imports slowly
SEQUENCES, PASS_TOKENS = 8, 128  # of a pass of vLLM's at most


@dataclass(frozen=True)
class Live:
    """A running server, where it answers, and the file that its stderr goes to: a pipe that nobody reads fills up."""

    process: "subprocess.Popen[str]"
    url: str
    log: Path

    def end(self) -> str:
        """Ask it to end, as a process manager does, and return what it has written to stderr."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        return self.log.read_text(encoding="utf-8")


@contextmanager
def live(spec: Path, *more: str) -> Iterator[Live]:
    """A server of the organism guarded with the spec at `spec`, once it is healthy; ended at the end."""
    command = [sys.executable, "-m", "neuron_guard", "serve", str(ORGANISM), "--spec", str(spec), "--engine", "hf"]
    command += ["--port", "0", "--served-model-name", MODEL, "--completions", *more]
    environment = os.environ | {"NEURON_GUARD_API_KEY": KEY, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    log = spec.with_name("log.txt")
    with (
        log.open("wb") as written,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=written, text=True, cwd=ORGANISM.parents[3]
        ) as process,
    ):
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert "http://" in first, log.read_text(encoding="utf-8")
            server = Live(process, first.split()[-1], log)
            until_healthy(server.url)
            yield server
        finally:
            process.kill()


def live_vllm(model: Path, spec: Path, *more: str) -> AbstractContextManager[Server]:
    """A vLLM server of the model at `model`, eager, guarded with the spec at `spec`; `more` are vLLM's own options."""
    options = ["--engine", "vllm", "--served-model-name", MODEL, "--dtype", "float32", "--allow-refuted"]
    options += ["--completions", "--max-context", "64", "--max-batch", str(SEQUENCES), "--self-test-interval", "1"]
    options += ["--", "--enforce-eager", "--max-num-batched-tokens", str(PASS_TOKENS), "--no-enable-prefix-caching"]
    options += ["--kv-cache-memory-bytes", str(2**25), *more]
    environment = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_CACHE_ROOT": str(spec.with_name("cache"))}
    return serving(model, spec, spec.with_name("log.txt"), options, environment)


def until_healthy(url: str) -> None:
    """Wait for the server at `url`; TimeoutError where it does not come."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise TimeoutError(url)
