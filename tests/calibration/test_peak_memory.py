"""Whether a limit to what is kept in memory bounds the memory that a process takes, as the system counts it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_with_a_limit_memory_rises_by_a_few_layers_instead_of_all(tmp_path: Path) -> None:
    limit = 8 * 2**20
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.calibration.peak_memory", str(limit), str(tmp_path / "kept")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    bounded, unbounded, whole, layer = json.loads(ran.stdout)
    assert unbounded > whole
    assert bounded < limit + 5 * layer < whole
