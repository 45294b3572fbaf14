"""The same hundred prompts to a guarded model in this process, behind our own engine, behind vLLM: the same rates."""

import importlib.util
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from benchmarks.organisms.widen import save_widened
from benchmarks.safety.options import Options
from benchmarks.safety.record import Answer
from benchmarks.safety.report import Report
from benchmarks.safety.run import run
from benchmarks.server import Server, serving
from tests.benchmarks.safety.asking import options_in, prepared
from tests.serve.live import live_vllm
from tests.serve.served import MODEL

PROMPTS_OF_EACH_KIND, ORGANISM = 50, "two-layer"
pytestmark = pytest.mark.slow
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("parity")
    prepared(made, PROMPTS_OF_EACH_KIND)
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The organism in the shape that vLLM takes on a CPU; all three run this one."""
    return save_widened(ORGANISM, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def ours(folder: Path, model: Path) -> Report:
    return run(Options(output=folder / "in-process", **options_in(folder, model, dtype="float32")))


def live_hf(model: Path, spec: Path) -> AbstractContextManager[Server]:
    """Our own engine's server of `model`."""
    options = ["--engine", "hf", "--served-model-name", MODEL, "--dtype", "float32"]
    return serving(model, spec, spec.with_name("hf.txt"), options, {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module", params=["hf", pytest.param("vllm", marks=needs_vllm)])
def served(request: pytest.FixtureRequest, folder: Path, model: Path) -> Iterator[tuple[Report, Path]]:
    live = live_hf if request.param == "hf" else live_vllm
    output = folder / request.param
    with live(model, folder / "spec.safetensors") as server:
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
