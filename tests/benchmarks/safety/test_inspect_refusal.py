"""inspect-ai's own count of our judge's classes is our rates, and nothing it writes holds a text."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.judges.judge import Exchange, classify
from benchmarks.judges.keywords import KEYWORD_JUDGES
from benchmarks.safety.conditions.respondents import Endpoint, InProcess, Respondent
from benchmarks.safety.prompt_sets import Prompts
from calibration.judging.behaviour import Behaviour
from calibration.prompts.request_sets import load_requests
from guard.hf import install
from guard.loading import load_model
from tests.serve.live import KEY, live
from tests.serve.served import MODEL, ORGANISM, organism_spec

inspect_refusal = pytest.importorskip("benchmarks.safety.inspect_refusal")

TOKENS = 12
JUDGE = KEYWORD_JUDGES[2]


def prompts(count: int) -> Prompts:
    folder = ORGANISM.parents[1] / "prompts"
    harmful, benign = (load_requests(str(folder / f"{kind}.jsonl")).requests[:count] for kind in ("harmful", "benign"))
    return Prompts("mixed", "harmful", "0", harmful + benign)


def our_rates(asked: Prompts, respondent: Respondent) -> dict[Behaviour, float]:
    said = respondent.answer([request.prompt for request in asked.requests])
    exchanges = [Exchange(request.prompt, text) for request, text in zip(asked.requests, said, strict=True)]
    counts = Counter(classify(JUDGE, exchanges))
    return {behaviour: counts[behaviour] / len(exchanges) for behaviour in Behaviour}


def test_in_process_it_counts_what_we_count(tmp_path: Path) -> None:
    model, tokenizer = load_model(str(ORGANISM), device="cpu", dtype="float32")
    respondent, asked = InProcess(model, tokenizer, max_new_tokens=TOKENS), prompts(5)
    with install(model, organism_spec()):
        found = inspect_refusal.measured(
            asked, inspect_refusal.in_process(respondent), JUDGE, max_new_tokens=TOKENS, log_folder=tmp_path
        )
        assert found == our_rates(asked, respondent)
    assert found == {Behaviour.REFUSED: 0.5, Behaviour.COMPLIED: 0.5, Behaviour.GARBLED: 0.0}


class Marked:
    """Answers with a mark that no log may hold."""

    def __init__(self, answer: str) -> None:
        self.said = answer

    def answer(self, prompts: Sequence[str]) -> list[str]:
        return [self.said for _ in prompts]


def test_garbled_answers_are_a_class_of_their_own() -> None:
    found = inspect_refusal.measured(prompts(2), inspect_refusal.in_process(Marked("!!!")), JUDGE, max_new_tokens=4)
    assert found == {Behaviour.REFUSED: 0.0, Behaviour.COMPLIED: 0.0, Behaviour.GARBLED: 1.0}


def written(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_nothing_that_it_writes_holds_a_request_or_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, logs = tmp_path / "home", tmp_path / "logs"
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "TMPDIR"):
        (home / name).mkdir(parents=True)
        monkeypatch.setenv(name, str(home / name))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(home)
    mark = "zyxwv answered"
    asked = prompts(3)
    api = inspect_refusal.in_process(Marked(mark))
    inspect_refusal.measured(asked, api, JUDGE, max_new_tokens=TOKENS, log_folder=logs)
    everything = written(logs) + written(home)
    assert b'"complied"' in everything  # the log is there, and can be read
    assert mark.encode() not in everything
    assert not any(request.prompt.encode() in everything for request in asked.requests)


def test_without_a_folder_no_log_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inspect_refusal.measured(prompts(1), inspect_refusal.in_process(Marked("a b c")), JUDGE, max_new_tokens=4)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_at_an_endpoint_it_counts_what_we_count(tmp_path: Path) -> None:
    spec, asked = tmp_path / "guard.safetensors", prompts(4)
    organism_spec().save(spec)
    with live(spec) as server:
        url = f"{server.url}/v1"
        found = inspect_refusal.measured(asked, inspect_refusal.served(url, MODEL, KEY), JUDGE, max_new_tokens=TOKENS)
        assert found == our_rates(asked, Endpoint(url, model=MODEL, key=KEY, max_new_tokens=TOKENS))
    assert found == {Behaviour.REFUSED: 0.5, Behaviour.COMPLIED: 0.5, Behaviour.GARBLED: 0.0}
