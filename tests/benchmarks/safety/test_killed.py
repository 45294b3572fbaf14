"""Real kills: a run whose process dies at random points, again and again, says in the end what a run in one go says."""

import json
import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.safety.options import Options
from tests.benchmarks.safety.asking import options_in, prepared
from tests.serve.served import ORGANISM

COUNT, KILLS, PATIENCE = 8, 4, 240


def work(options: dict[str, Any]) -> None:
    """What the process that is killed does."""
    from benchmarks.safety.run import run

    run(Options(**options))


@pytest.fixture(scope="module")
def start() -> Callable[[dict[str, Any]], Any]:
    """Starts a run in a process of its own, forked from one that has everything imported and nothing computed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.safety.run"])

    def started(options: dict[str, Any]) -> Any:
        process = context.Process(target=work, args=(options,))
        process.start()
        return process

    return started


def kept(folder: Path) -> int:
    """Bytes of what a run has kept so far: its progress."""
    files = [folder / "answers.jsonl", *(folder / "stages").glob("*.json")]
    return sum(path.stat().st_size for path in files if path.exists())


def said(folder: Path) -> dict[str, object]:
    """All that a run has written, but for where and when."""
    figures = json.loads((folder / "safety.json").read_text())
    assert figures.pop("run")["seconds"]
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {**{name: text for name, text in files.items() if not name.endswith((".html", ".json"))}, "figures": figures}


@pytest.mark.slow
def test_a_run_killed_at_random_points_and_gone_on_with_says_the_same(
    tmp_path: Path, start: Callable[[dict[str, Any]], Any]
) -> None:
    prepared(tmp_path, COUNT)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    asked = options_in(tmp_path, ORGANISM) | {"max_new_tokens": 12, "batch_size": 3, "curve": True}
    process = start(asked | {"output": whole})
    process.join(PATIENCE)
    assert process.exitcode == 0
    points = sorted(random.Random(0).sample(range(kept(whole)), KILLS))
    for point in points:
        process = start(asked | {"output": killed})
        deadline = time.monotonic() + PATIENCE
        while process.is_alive() and kept(killed) < point and time.monotonic() < deadline:
            time.sleep(0.002)
        assert process.is_alive(), "it ended before it was killed"
        process.kill()
        process.join(PATIENCE)
        assert process.exitcode == -9
        assert not (killed / "safety.json").exists()
    process = start(asked | {"output": killed})
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert json.loads((killed / "safety.json").read_text())["run"]["taken_up"] > 0
    assert said(killed) == said(whole)
