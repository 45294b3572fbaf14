"""Three vLLM engines side by side, each in a process of its own: plain, guarded and idle, guarded and active.

A guard is installed when vLLM starts and stays, so the ways take turns as processes; those that wait are idle, and a
round is timed within one process. `python -m benchmarks.serving.vllm` is such a process: it reads one round a line from
its input and writes its timing to the file descriptor that it was given.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from benchmarks.serving.generate_models import CONTEXT, Size
from benchmarks.serving.setting import ARMS, MODEL_FOLDER, NEW_TOKENS, Arm, Timing, save
from guard.errors import NeuronGuardError
from guard.vllm.settings import additional_config

WORKER = "guard.vllm.worker.GuardedWorker"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
CACHE_BYTES = 2**28  # of keys and values, on a CPU
GPU_SHARE = 0.25  # of its memory, for each of the three


class Process:
    """One engine in a process of its own."""

    def __init__(self, folder: Path, arm: Arm, arguments: dict[str, Any]) -> None:
        asked, asking = os.pipe()
        reading, writing = os.pipe()
        environment = os.environ | ENVIRONMENT | {"VLLM_CACHE_ROOT": str(folder / f"cache-{arm}")}
        if arguments["device"] == "cpu":
            environment = {"VLLM_CPU_KVCACHE_SPACE": "1"} | environment
        if arguments["settings"]["enforce_eager"]:
            environment = {"TORCHDYNAMO_DISABLE": "1"} | environment
        self._log = (folder / f"{arm}.log").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(  # noqa: S603 (this program itself)
            [sys.executable, "-m", "benchmarks.serving.vllm", str(writing)],
            stdin=asked,
            stdout=self._log,
            stderr=self._log,
            pass_fds=[writing],
            env=environment,
        )
        os.close(asked)
        os.close(writing)
        self._questions = os.fdopen(asking, "w", encoding="utf-8", buffering=1)
        self._answers = os.fdopen(reading, encoding="utf-8")
        self.ask(arguments)

    def ask(self, question: Any) -> Any:
        """Send one line and wait for the answer to it; NeuronGuardError if the process has ended."""
        try:
            print(json.dumps(question), file=self._questions)
        except BrokenPipeError:
            line = ""
        else:
            line = self._answers.readline()
        if not line:
            self._process.wait(timeout=60)  # its last words come after it has let go of the pipe
            self._log.seek(0)
            said = [text for text in self._log.read().splitlines() if "Error" in text]
            raise NeuronGuardError(f"vLLM has ended: {said[-1] if said else 'it did not say why'}")
        return json.loads(line)

    def close(self) -> None:
        """End the process and wait for it."""
        with suppress(BrokenPipeError):
            self._questions.close()
        self._process.wait(timeout=60)
        self._answers.close()
        self._log.close()


class ServedByVllm:
    """The three processes, with their model and specs in a folder that goes with them."""

    name = "vllm"

    def __init__(self, model: PreTrainedModel, size: Size, *, seed: int, largest: int, eager: bool) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        save(folder, size, model, seed=seed)
        settings: dict[str, Any] = {
            "model": str(folder / MODEL_FOLDER),
            "dtype": str(model.dtype).removeprefix("torch."),
            "max_model_len": CONTEXT,
            "max_num_seqs": largest,
            "enforce_eager": eager,
            "disable_log_stats": True,
        }
        device = model.device.type
        settings |= {"kv_cache_memory_bytes": CACHE_BYTES} if device == "cpu" else {"gpu_memory_utilization": GPU_SHARE}
        self._processes: dict[Arm, Process] = {}
        with ExitStack() as on_failure:
            on_failure.callback(self.close)
            for arm in ARMS:
                guarded = {} if arm == "absent" else _guarded(folder / f"{arm}.safetensors")
                self._processes[arm] = Process(folder, arm, {"settings": settings | guarded, "device": device})
            on_failure.pop_all()

    def round(self, arm: Arm, prompts: list[list[int]]) -> Timing:
        """See Served."""
        answer = self._processes[arm].ask(prompts)
        return Timing.of(answer["total"], answer["first"], answer["last"], NEW_TOKENS)

    def tokens(self, arm: Arm, prompts: list[list[int]]) -> list[list[int]]:
        """See Served."""
        tokens: list[list[int]] = self._processes[arm].ask(prompts)["tokens"]
        return tokens

    def close(self) -> None:
        """See Served."""
        for process in self._processes.values():
            process.close()
        self._folder.cleanup()


def _guarded(spec: Path) -> dict[str, Any]:
    return {"worker_cls": WORKER, "additional_config": additional_config(spec, allow_refuted=True)}


def answer_rounds(answers: int) -> None:
    """Start the engine that the first line of the input describes, then answer each further line."""
    from vllm import LLM

    with os.fdopen(answers, "w", encoding="utf-8", buffering=1) as out:
        llm = LLM(**json.loads(sys.stdin.readline())["settings"])
        print("{}", file=out)
        for line in sys.stdin:
            print(json.dumps(one_round(llm.llm_engine, json.loads(line))), file=out)


def one_round(engine: Any, prompts: list[list[int]]) -> dict[str, Any]:
    """Seconds of a round on an LLMEngine, of its requests' first and last tokens, and the tokens."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
    first, last = (np.zeros(len(prompts)) for _ in range(2))
    tokens: list[list[int]] = [[] for _ in prompts]
    started = time.perf_counter()
    for place, prompt in enumerate(prompts):
        engine.add_request(str(place), {"prompt_token_ids": prompt}, sampling)
    while engine.has_unfinished_requests():
        outputs, now = engine.step(), time.perf_counter() - started
        for output in outputs:
            place = int(output.request_id.partition("-")[0])
            first[place] = first[place] or now
            last[place] = now
            tokens[place] = list(output.outputs[0].token_ids)
    return {
        "total": time.perf_counter() - started,
        "first": first.tolist(),
        "last": last.tolist(),
        "tokens": tokens,
    }


if __name__ == "__main__":
    answer_rounds(int(sys.argv[1]))
