"""What the tests of tasks share: a few rows of each, an organism to score, and where scores are kept."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from benchmarks.safety.conditions.condition import Condition
from benchmarks.tasks.answering import ScoredModel
from benchmarks.tasks.scores import Scoring
from guard.loading import load_model
from tests.benchmarks.tasks import small_data
from tests.serve.served import ORGANISM


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data.write(tmp_path_factory.mktemp("tasks") / "data")


@pytest.fixture(scope="module")
def organism() -> ScoredModel:
    model, tokenizer = load_model(str(ORGANISM), device="cpu", dtype="float32")
    return ScoredModel(model, tokenizer, Condition("no guard", nullcontext), batch_size=3)


@pytest.fixture
def scoring(data: Path, tmp_path: Path) -> Scoring:
    return Scoring(tmp_path / "out", data, limit=4, seed=1, of={"model": "organism"})
