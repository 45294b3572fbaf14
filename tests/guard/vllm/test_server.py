"""vLLM's own server, whose engine is a process of its own, with a spec that it must not start with."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from guard.vllm_settings import KEY, additional_config
from tests.guard.vllm import models
from tests.guard.vllm.engine import EAGER, FAST, ROOT, WORKER

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.slow,
]
LONGEST_START = 300  # seconds


def test_a_server_whose_spec_was_changed_ends_and_says_why(tmp_path: Path) -> None:
    folder = models.save_model(tmp_path / "model")
    models.make_spec(folder).save(tmp_path / "guard.safetensors")
    config = {KEY: additional_config(tmp_path / "guard.safetensors")[KEY] | {"digest": "0" * 64}}
    arguments = {
        "--model": str(folder),
        "--worker-cls": WORKER,
        "--additional-config": json.dumps(config),
        "--host": "127.0.0.1",
        "--port": "0",
        "--dtype": "float32",
        "--max-model-len": "64",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
        + [part for pair in arguments.items() for part in pair],
        cwd=ROOT,
        env=os.environ
        | FAST
        | EAGER
        | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CACHE_ROOT": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=LONGEST_START,
        check=False,
    )
    assert ended.returncode != 0
    assert "guard.errors.SpecError: the spec at " in ended.stdout + ended.stderr
