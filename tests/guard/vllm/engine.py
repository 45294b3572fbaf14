"""Runs jobs through real vLLM in a process of its own: `python -m tests.guard.vllm.engine`, a line of input for a run.

A process, because vLLM changes the one it runs in (threads, distributed groups, model classes), and one for many jobs
and for several modules, because importing it takes longer than starting a tiny model. A job is one engine's life:
started with `arguments`, then each of `actions`, by name and with its arguments, gives one entry of `values`; an error
ends it and is its result.
"""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guard.errors import NeuronGuardError

ROOT = Path(__file__).parents[3]
WORKER = "guard.vllm.worker.GuardedWorker"
# One thread, one process, no server: what a test of a few tokens needs.
FAST = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
EAGER = {"TORCHDYNAMO_DISABLE": "1"}  # vLLM compiles parts of its sampler even where the model is eager
SMALL = {
    "dtype": "float32",
    "max_model_len": 64,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 128,
    "kv_cache_memory_bytes": 2**24,
}

LONGEST_RUN = 600  # seconds

Job = dict[str, Any]
Result = dict[str, Any]


def job(model: Path, config: Any = None, *actions: Any, worker: str = WORKER, **arguments: Any) -> Job:
    """An engine on `model`, eager unless said otherwise, with the guard's entries `config` of the configuration."""
    given = {"model": str(model), "worker_cls": worker, "enforce_eager": True} | SMALL
    if config is not None:
        given["additional_config"] = config
    return {"arguments": given | arguments, "actions": list(actions)}


class _Process:
    """vLLM in a process that waits for jobs until it is ended."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.guard.vllm.engine"],
                cwd=ROOT,
                env=os.environ | FAST | {"VLLM_CACHE_ROOT": str(folder / "cache")} | dict(environment),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
            )

    def ask(self, asked: Path, given: Path) -> None:
        """Have the jobs in `asked` done and their results put in `given`; AssertionError where none come."""
        assert self._process.stdin is not None
        print(json.dumps([str(asked), str(given)]), file=self._process.stdin, flush=True)
        deadline = time.monotonic() + LONGEST_RUN
        while not given.exists():
            assert self._process.poll() is None, self._log.read_text(encoding="utf-8")[-4000:]
            assert time.monotonic() < deadline, self._log.read_text(encoding="utf-8")[-4000:]
            time.sleep(0.1)

    def end(self) -> None:
        """Let it end, and wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


_waiting: dict[tuple[tuple[str, str], ...], _Process] = {}


def run(folder: Path, jobs: Sequence[Job], environment: Mapping[str, str], *, last: bool = True) -> list[Result]:
    """The results of `jobs`, one after the other in one process; files for it are put in `folder`.

    Unless this run is its `last`, the process waits for the next one that asks for the same environment.
    """
    asked, given, key = folder / "jobs.json", folder / "results.json", tuple(sorted(environment.items()))
    asked.write_text(json.dumps(jobs), encoding="utf-8")
    given.unlink(missing_ok=True)
    process = _waiting.pop(key, None) or _Process(folder, environment)
    process.ask(asked, given)
    if last:
        process.end()
    else:
        _waiting[key] = process
    results: list[Result] = json.loads(given.read_text(encoding="utf-8"))
    return results


def end_all() -> None:
    """End the processes that wait for another run."""
    while _waiting:
        _, process = _waiting.popitem()
        process.end()


def main() -> None:
    from vllm.model_executor.models import registry

    from tests.guard.vllm.actions import fork_ranks

    # vLLM looks at a model class in a process of its own, lest CUDA be initialised: ten seconds for each class
    registry._run_in_subprocess = lambda look: look()
    gc.collect = lambda *_: 0  # vLLM collects all garbage nine times an engine, half a second each
    if os.environ.get("FORK_RANKS"):
        fork_ranks()
    for line in sys.stdin:
        asked, given = map(Path, json.loads(line))
        results = [_run(one) for one in json.loads(asked.read_text(encoding="utf-8"))]
        whole = given.with_suffix(".part")
        whole.write_text(json.dumps(results), encoding="utf-8")
        whole.rename(given)


def _run(one: Job) -> Result:
    from vllm import LLM
    from vllm.compilation.counter import compilation_counter
    from vllm.distributed import cleanup_dist_env_and_memory

    from tests.guard.vllm.actions import ACTIONS, force_piecewise

    if one.get("in_pieces"):
        force_piecewise()
    compilation_counter.__init__()
    result: Result = {"values": [], "error": None}
    llm = None
    try:
        llm = LLM(**one["arguments"])
        for name, *arguments in one["actions"]:
            result["values"].append(ACTIONS[name](llm, *arguments))
    except (NeuronGuardError, ImportError, RuntimeError, ValueError) as error:
        result["error"] = f"{type(error).__name__}: {error}"
    finally:
        del llm
        cleanup_dist_env_and_memory()
    return result


if __name__ == "__main__":
    main()
