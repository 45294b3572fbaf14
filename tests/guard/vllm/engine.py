"""Runs jobs through real vLLM in a process of its own: `python -m tests.guard.vllm.engine JOBS RESULTS`.

A process, because vLLM changes the one it runs in (threads, distributed groups, model classes), and one for many jobs,
because importing it takes longer than starting a tiny model. A job is one engine's life: started with `arguments`, then
each of `actions`, by name and with its arguments, gives one entry of `values`; an error ends it and is its result.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guard.errors import NeuronGuardError

ROOT = Path(__file__).parents[3]
WORKER = "guard.vllm_worker.GuardedWorker"
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

Job = dict[str, Any]
Result = dict[str, Any]


def job(model: Path, config: Any = None, *actions: Any, worker: str = WORKER, **arguments: Any) -> Job:
    """An engine on `model`, eager unless said otherwise, with the guard's entries `config` of the configuration."""
    given = {"model": str(model), "worker_cls": worker, "enforce_eager": True} | SMALL
    if config is not None:
        given["additional_config"] = config
    return {"arguments": given | arguments, "actions": list(actions)}


def run(folder: Path, jobs: Sequence[Job], **environment: str) -> list[Result]:
    """The results of `jobs`, one after the other in a new process; files for it are put in `folder`."""
    asked, given = folder / "jobs.json", folder / "results.json"
    asked.write_text(json.dumps(jobs), encoding="utf-8")
    given.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.guard.vllm.engine", str(asked), str(given)],
        cwd=ROOT,
        env=os.environ | FAST | {"VLLM_CACHE_ROOT": str(folder / "cache")} | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert given.exists(), done.stderr[-4000:]
    results: list[Result] = json.loads(given.read_text(encoding="utf-8"))
    return results


def main(asked: str, given: str) -> None:
    from vllm.model_executor.models import registry

    # vLLM looks at a model class in a process of its own, lest CUDA be initialised: ten seconds for each class
    registry._run_in_subprocess = lambda look: look()
    gc.collect = lambda *_: 0  # vLLM collects all garbage nine times an engine, half a second each
    results = [_run(one) for one in json.loads(Path(asked).read_text(encoding="utf-8"))]
    Path(given).write_text(json.dumps(results), encoding="utf-8")


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
    main(*sys.argv[1:])
