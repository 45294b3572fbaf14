"""The embedded engine killed while it streams: streams break off, none goes on unguarded."""

import os
import signal
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.server import Server
from benchmarks.common.streams import stream_all
from benchmarks.serving.soak import NEW_TOKENS, expected, gate_spec, is_guarded
from tests.serve.live import KEY, Live, live
from tests.serve.served import MODEL

pytestmark = pytest.mark.slow
ASKED, KILLED_AFTER = 100, 5


def server_of(running: Live) -> Server:
    process: Any = running.process
    return Server(process, running.url, KEY, running.log)


def test_a_killed_server_breaks_its_streams_off_and_none_goes_on_unguarded(tmp_path: Path) -> None:
    path = tmp_path / "guard.safetensors"
    gate_spec().save(path)
    right = expected(gate_spec(), 20)
    asked = list(islice(cycle(right), ASKED))
    with live(path, "--allow-refuted") as running:

        def kill(ended: int) -> None:
            if ended == KILLED_AFTER:
                os.kill(running.process.pid, signal.SIGKILL)

        answers, _ = stream_all(
            server_of(running),
            MODEL,
            [each.prompt for each in asked],
            concurrency=16,
            new_tokens=NEW_TOKENS,
            on_end=kill,
        )
    assert all(is_guarded(answer, each) for answer, each in zip(answers, asked, strict=True))
    assert KILLED_AFTER <= sum(answer.whole for answer in answers) < ASKED - 16
    assert all(answer.error for answer in answers if not answer.whole), "a stream just ended"
