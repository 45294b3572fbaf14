"""Timing vLLM: what its engine hands out is timed by request, and a process that ends says why."""

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from benchmarks.serving import vllm as serving_vllm
from benchmarks.serving.setting import prompts_for
from benchmarks.serving.vllm import Process, one_round
from guard.errors import NeuronGuardError
from tests.benchmarks.serving.test_run import TINY

TOKENS = 4


class Engine:
    """Hands out one token of every request a step, each request beginning one step after the one before it."""

    def __init__(self) -> None:
        self.prompts: dict[str, list[int]] = {}
        self.steps = 0

    def add_request(self, name: str, prompt: dict[str, list[int]], _: Any) -> None:
        self.prompts[name] = prompt["prompt_token_ids"]

    def has_unfinished_requests(self) -> bool:
        return self.steps < TOKENS + len(self.prompts) - 1

    def step(self) -> list[Any]:
        self.steps += 1
        given = []
        for name in self.prompts:
            made = self.steps - int(name)
            if 0 < made <= TOKENS:
                tokens = list(range(made))
                given.append(SimpleNamespace(request_id=f"{name}-9", outputs=[SimpleNamespace(token_ids=tokens)]))
        return given


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine whose n-th step ends n seconds after the start, and a vLLM to import."""
    engine = Engine()
    fake: Any = ModuleType("vllm")
    fake.SamplingParams = lambda **settings: settings
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setattr(serving_vllm, "NEW_TOKENS", TOKENS)
    monkeypatch.setattr("time.perf_counter", lambda: float(engine.steps))
    return engine


def test_each_request_is_timed_from_the_start_to_its_own_first_and_last_token(clock: Engine) -> None:
    prompts = prompts_for(3, TINY, seed=0)
    answer = one_round(clock, prompts)
    assert list(clock.prompts.values()) == prompts
    assert answer["first"] == [1.0, 2.0, 3.0]
    assert answer["last"] == [4.0, 5.0, 6.0]
    assert answer["total"] == 6.0
    assert answer["tokens"] == [[0, 1, 2, 3]] * 3


def test_a_process_that_ends_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vllm.py").write_text("def LLM(**settings):\n    raise OSError(settings['model'])\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    arguments = {"settings": {"model": "none", "enforce_eager": True}, "device": "cpu"}
    with pytest.raises(NeuronGuardError, match="vLLM has ended: OSError: none"):
        Process(tmp_path, "absent", arguments)
