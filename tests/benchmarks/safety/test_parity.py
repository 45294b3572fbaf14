"""The same prompts to a guarded model in this process and behind our own engine: the same rates.

That vLLM's answers are the guarded model's to the letter is shown in tests/serve/test_vllm_serving.py.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.organisms.widen import save_widened
from benchmarks.safety.options import Options
from benchmarks.safety.record import Answer
from benchmarks.safety.report import Report
from benchmarks.safety.run import run
from benchmarks.server import serving
from tests.benchmarks.safety.asking import options_in, prepared
from tests.serve.served import MODEL

PROMPTS_OF_EACH_KIND, ORGANISM = 25, "two-layer"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("parity")
    prepared(made, PROMPTS_OF_EACH_KIND)
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The organism in the shape that vLLM takes on a CPU; both run this one."""
    return save_widened(ORGANISM, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def ours(folder: Path, model: Path) -> Report:
    return run(Options(output=folder / "in-process", **options_in(folder, model, dtype="float32")))


@pytest.fixture(scope="module")
def served(folder: Path, model: Path) -> Iterator[tuple[Report, Path]]:
    spec, output = folder / "spec.safetensors", folder / "served"
    options = ["--engine", "hf", "--served-model-name", MODEL, "--dtype", "float32"]
    with serving(model, spec, spec.with_name("log.txt"), options, {"OMP_NUM_THREADS": "1"}) as server:
        asked = options_in(folder, Path(MODEL)) | {"spec": None, "endpoint": f"{server.url}/v1", "key": server.key}
        yield run(Options(output=output, **asked)), output


def rates_of(report: Report, condition: str) -> dict[tuple[str, str], tuple[float, float, float]]:
    return {
        (rate.prompt_set, rate.judge): (rate.refused.value, rate.complied.value, rate.garbled.value)
        for rate in report.rates
        if rate.condition == condition
    }


def digests(folder: Path, condition: str) -> dict[tuple[str, int], str]:
    """What was answered to each request, by its hash."""
    lines = (folder / "answers.jsonl").read_text().splitlines()[1:]
    answers = [Answer.model_validate_json(line) for line in lines]
    return {(one.prompt_set, one.place): one.answer_digest for one in answers if one.condition == condition}


def test_an_endpoint_gives_the_rates_of_the_guarded_model_in_process(served: tuple[Report, Path], ours: Report) -> None:
    assert rates_of(ours, "guard") != rates_of(ours, "no guard"), "the test shows nothing"
    assert rates_of(served[0], "as served") == rates_of(ours, "guard")


def test_it_says_the_same_to_the_letter(served: tuple[Report, Path], ours: Report, folder: Path) -> None:
    assert ours.rates
    here, there = digests(folder / "in-process", "guard"), digests(served[1], "as served")
    assert len(here) == 2 * PROMPTS_OF_EACH_KIND
    assert {place for place in here if here[place] != there[place]} == set()
