"""The serving benchmark: three ways on the same prompts, the guard live in one of them, figures from what was read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.serving import hf as serving_hf
from benchmarks.serving import run as serving
from benchmarks.serving import setting as serving_setting
from benchmarks.serving.generate_models import Size, make_model
from benchmarks.serving.hf import ServedByTransformers
from benchmarks.serving.report import ASKED, ServingReport, page, write_page
from benchmarks.serving.run import check, load, run
from benchmarks.serving.setting import ARMS, Arm, Timing, prompts_for, save, spec_for
from guard.errors import EditNotAppliedError, RefutedSpecError
from guard.hf import install
from guard.loading import load_model
from guard.spec.edit_spec import EditSpec, Estimate
from neuron_guard import app
from serve.hf import batch as hf_batch

TINY = Size(d_model=16, d_ff=40, layers=3, heads=2, vocabulary=61, guarded_layers=(1, 2), edited=0.1)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (serving, serving_hf, serving_setting):
        monkeypatch.setattr(module, "NEW_TOKENS", 5)


@pytest.fixture
def served() -> ServedByTransformers:
    model = make_model("llama", TINY, seed=0, dtype=torch.float32, device=CPU)
    return ServedByTransformers(model, TINY, seed=0)


class Scripted:
    """An engine whose rounds take as long as they are told to."""

    name = "scripted"

    def __init__(self, seconds: dict[Arm, float]) -> None:
        self.seconds = seconds
        self.rounds: list[tuple[Arm, list[list[int]]]] = []

    def round(self, arm: Arm, prompts: list[list[int]]) -> Timing:
        self.rounds.append((arm, prompts))
        return Timing(self.seconds[arm], 0.1, 0.01)

    def tokens(self, arm: Arm, prompts: list[list[int]]) -> list[list[int]]:
        return [[ARMS.index(arm)] for _ in prompts]

    def close(self) -> None:
        """Nothing to let go of."""


def test_an_active_guard_changes_answers_and_an_idle_one_none(served: ServedByTransformers) -> None:
    check(served, TINY, seed=0)


@pytest.mark.parametrize(("broken", "reason"), [("active", "says what the plain one says"), ("idle", "never fires")])
def test_a_guard_that_is_not_what_it_should_be_is_not_timed(broken: Arm, reason: str) -> None:
    engine: Any = Scripted(dict.fromkeys(ARMS, 1.0))
    said: dict[str, dict[Arm, int]] = {
        "active": {"absent": 0, "idle": 0, "active": 0},
        "idle": {"absent": 0, "idle": 1, "active": 1},
    }
    engine.tokens = lambda arm, _: [[said[broken][arm]]]
    with pytest.raises(EditNotAppliedError, match=reason):
        check(engine, TINY, seed=0)


def test_every_request_is_answered_and_timed(served: ServedByTransformers) -> None:
    prompts = prompts_for(3, TINY, seed=1)
    for arm in ARMS:
        assert [len(answer) for answer in served.tokens(arm, prompts)] == [5, 5, 5]
        timing = served.round(arm, prompts)
        assert 0 < timing.first_token < timing.total
        assert timing.first_token + 4 * timing.per_token == pytest.approx(timing.total, rel=0.5)


def test_the_model_is_plain_after_every_round(served: ServedByTransformers) -> None:
    for arm in ARMS:
        served.round(arm, prompts_for(2, TINY, seed=1))
        assert type(served._model.model.layers[2].mlp.down_proj) is torch.nn.Linear


def test_a_guarded_round_is_counted_as_it_is_when_served(served: ServedByTransformers) -> None:
    prompts = prompts_for(2, TINY, seed=1)
    for arm, active in (("idle", False), ("active", True)):
        with served._guarded(arm) as counts:  # type: ignore[arg-type]
            hf_batch.generate(
                served._model,
                serving_hf.rows_for(prompts, [serving_hf.Recorder() for _ in prompts]),
                serving_hf.never,
                counts,
                serving_hf.unread,
            )
        totals = counts.totals()
        assert totals.tokens == 2 * (serving_setting.PROMPT_TOKENS + 4)
        assert totals.active == (totals.tokens if active else 0)
        assert (sum(totals.clips) > 0) == active


def test_each_round_has_all_ways_on_the_same_new_prompts_and_ratios_are_of_rounds() -> None:
    engine = Scripted({"absent": 1.0, "idle": 1.0, "active": 1.25})
    found = load(engine, 4, TINY, budget=0.0, seed=0)
    assert found.rounds == serving.FEWEST_ROUNDS
    rounds = [engine.rounds[place : place + 3] for place in range(0, len(engine.rounds), 3)]
    assert len(rounds) == found.rounds + 1  # one to warm up
    for one in rounds:
        assert {arm for arm, _ in one} == set(ARMS)
        assert one[0][1] == one[1][1] == one[2][1]
    assert len({str(one[0][1]) for one in rounds}) == len(rounds)
    assert len({tuple(arm for arm, _ in one) for one in rounds}) > 1
    assert found.active_ratio.value == pytest.approx(0.8)
    assert found.idle_ratio.value == pytest.approx(1.0)
    assert found.speeds["active"].tokens_per_second.median == pytest.approx(4 * 5 / 1.25)


def test_times_per_token_are_gaps_after_the_first() -> None:
    timing = Timing.of(9.0, [1.0, 2.0, 3.0], [5.0, 8.0, 7.0], tokens=5)
    assert timing == (9.0, 2.0, 1.0)
    assert np.isfinite(timing).all()


def test_a_run_is_written_whole_and_read_again(tmp_path: Path) -> None:
    report = run(
        batches=(1, 2),
        size=TINY,
        seconds=0.01,
        output=tmp_path / "serving.json",
        page=tmp_path / "serving.md",
        device="cpu",
        console=Console(quiet=True),
    )
    assert ServingReport.model_validate_json((tmp_path / "serving.json").read_text()) == report
    assert [load.batch for load in report.loads] == [1, 2]
    text = (tmp_path / "serving.md").read_text()
    assert text == page([report])
    assert "not read: no CUDA device was at hand" in text
    assert f"at batch {ASKED['cpu'][0]} active ≥ {ASKED['cpu'][1]} of absent: not read" in text


def test_the_verdict_is_of_the_batch_and_the_share_that_were_asked() -> None:
    engine = Scripted(dict.fromkeys(ARMS, 1.0))
    report = run_with(engine)
    (only,) = report.loads
    for value, word in ((0.981, "met"), (0.979, "missed")):
        ratio = Estimate(value=value, low=value, high=value, n=3)
        loads = (only.model_copy(update={"batch": 64, "active_ratio": ratio}),)
        assert report.model_copy(update={"loads": loads}).verdict.endswith(word)


def run_with(engine: Any) -> ServingReport:
    patch = pytest.MonkeyPatch()
    patch.setattr(serving, "ServedByTransformers", lambda *_, **__: engine)
    patch.setattr(serving, "check", lambda *_: None)
    try:
        return run(batches=(2,), size=TINY, seconds=0.01, device="cpu", console=Console(quiet=True))
    finally:
        patch.undo()


def test_an_empty_page_says_that_nothing_was_read(tmp_path: Path) -> None:
    write_page(tmp_path / "serving.md")
    assert (tmp_path / "serving.md").read_text().count("not read") == 2


def test_specs_for_timing_fit_their_model_and_are_served_by_name_alone(tmp_path: Path) -> None:
    model = make_model("llama", TINY, seed=0, dtype=torch.float32, device=CPU)
    save(tmp_path, TINY, model, seed=0)
    again, _ = load_model(str(tmp_path / "model"), device="cpu", dtype="float32")
    for arm in ("idle", "active"):
        spec = EditSpec.load(tmp_path / f"{arm}.safetensors")
        assert spec == spec_for(arm, TINY, model, seed=0)
        with pytest.raises(RefutedSpecError):
            install(again, spec)
        install(again, spec, allow_refuted=True).remove()


def test_the_command_says_when_vllm_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    outcome = CliRunner().invoke(app, ["bench", "serving", "--engine", "vllm"])
    assert outcome.exit_code == 2
    assert "vLLM is not installed" in outcome.output
