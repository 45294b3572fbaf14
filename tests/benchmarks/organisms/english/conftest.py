from pathlib import Path

import pytest

from tests.benchmarks.organisms.english.toy import write_toy_data


@pytest.fixture
def toy_data(tmp_path: Path) -> Path:
    """A folder of toy data sets."""
    data = tmp_path / "data"
    write_toy_data(data)
    return data
