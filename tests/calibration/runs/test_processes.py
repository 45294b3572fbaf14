"""Processes that share a calibration's prompts find what one finds alone."""

import json
import os
import socket
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from calibration.runs.launch import ProcessError, launched
from guard.loading import own_devices
from tests.calibration import two_processes

COUNT = 2


@cache
def results() -> list[list[Any]]:
    """What each of two processes printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(COUNT), "LOCAL_WORLD_SIZE": str(COUNT), "MASTER_ADDR": "127.0.0.1"}
    ran = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.calibration.two_processes"],
            env={**os.environ, **world, "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
            | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(COUNT)
    ]
    said = [process.communicate() for process in ran]
    assert [process.returncode for process in ran] == [0] * COUNT, [error[-1500:] for _, error in said]
    return [json.loads(out.strip().rpartition("\n")[2]) for out, _ in said]


def test_two_processes_find_what_one_finds() -> None:
    alone = two_processes.results()
    for shared, own, kept, _ in results():
        assert shared["values"] == pytest.approx(alone[0]["values"], abs=1e-6)
        assert shared["tokens"] == alone[0]["tokens"]
        assert own == alone[1]
        assert kept == alone[1]


def test_all_processes_have_the_results_and_one_is_the_first() -> None:
    both = results()
    assert both[0][:3] == both[1][:3]
    assert [first for *_, first in both] == [True, False]


def test_a_launcher_that_started_another_number_of_processes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with launched(4):
        pass
    with pytest.raises(ProcessError, match="4 processes already"), launched(2):
        pass


@pytest.mark.parametrize(("devices", "count"), [(8, 4), (8, 3), (2, 1), (1, 3)])
def test_the_processes_of_a_machine_divide_its_devices(
    devices: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: devices)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(count))
    parts = []
    for rank in range(count):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        parts.append(own_devices())
    assert all(parts)
    assert {device for part in parts for device in part} == set(range(devices))
    assert devices < count or sum(map(len, parts)) == devices
