"""What the modules of tests share: processes of vLLM, which wait for jobs until the last module is through."""

from collections.abc import Iterator

import pytest

from tests.guard.vllm.engine import end_all


@pytest.fixture(scope="package", autouse=True)
def _ended() -> Iterator[None]:
    """Nothing runs on after the last test."""
    yield
    end_all()
