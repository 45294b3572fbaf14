"""The benchmark of generation: the same model with the guard off and on, rounds are paired, the edit is live."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import PreTrainedModel

from benchmarks.op.page import page
from benchmarks.serving import generate
from benchmarks.serving.generate import Guard, Side, always_active, generation, median_estimate, paired_rounds, run
from benchmarks.serving.generate_models import FAMILIES, Size, edits, make_model, static_cache
from benchmarks.serving.generate_report import GenerateReport
from guard.errors import EditNotAppliedError
from guard.hf import install_edits

TINY = Size(d_model=16, d_ff=40, layers=3, heads=2, vocabulary=61, guarded_layers=(1, 2), edited=0.1)


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "NEW_TOKENS", 3)


def tiny(family: str = "llama") -> PreTrainedModel:
    return make_model(family, TINY, seed=0, dtype=torch.float32, device=torch.device("cpu"))


def guard_of(model: PreTrainedModel) -> Guard:
    return partial(install_edits, model, edits(TINY, seed=0))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_guarded_and_generates(family: str) -> None:
    model = tiny(family)
    generate_once = generation(model, "eager", TINY)
    plain, guarded = Side(nullcontext, generate_once), Side(guard_of(model), generate_once)
    assert not torch.equal(plain.first_logits(), guarded.first_logits())
    assert generate_once().shape == (1, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_static_cache_says_what_a_growing_one_does(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)
    model = tiny(family)
    growing, static = (generation(model, mode, TINY) for mode in ("eager", "compiled"))
    options: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True}
    for _ in range(2):
        for one, other in zip(growing(**options).logits, static(**options).logits, strict=True):
            torch.testing.assert_close(one, other)


def test_a_side_is_guarded_while_it_runs_and_not_after() -> None:
    model = tiny()
    seen: list[str] = []
    side = Side(guard_of(model), lambda: seen.append(type(model.model.layers[2].mlp.down_proj).__name__))
    assert side.seconds() > 0
    assert seen == ["GuardedDownProjection"]
    assert type(model.model.layers[2].mlp.down_proj) is torch.nn.Linear


def test_the_cache_is_there_before_the_first_token() -> None:
    assert all(getattr(layer, "is_initialized", False) for layer in static_cache(tiny(), TINY).layers)


def test_edits_are_of_the_share_and_the_layers_that_the_size_says() -> None:
    chosen = edits(TINY, seed=1)
    assert [edit.layer for edit in chosen] == [1, 2]
    assert {len(edit.neurons) for edit in chosen} == {4}
    assert chosen[0].neurons != chosen[1].neurons


def test_a_guard_that_does_nothing_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "install_edits", lambda *_: nullcontext())
    with pytest.raises(EditNotAppliedError, match="llama, eager"):
        run(families=("llama",), modes=("eager",), size=TINY, seconds=0.1, device="cpu")


def test_rounds_are_paired_and_their_order_alternates() -> None:
    order: list[str] = []
    sides = [Side(nullcontext, partial(order.append, name)) for name in ("plain", "guarded")]
    assert paired_rounds(sides, 0.0).shape == (generate.FEWEST_ROUNDS, 2)
    assert order[2:8] == ["guarded", "plain", "plain", "guarded", "guarded", "plain"]


def test_the_ratio_is_a_median_with_its_interval() -> None:
    ratios = np.array([0.9, 0.98, 1.0, 1.0, 1.02, 1.1])
    estimate = median_estimate(ratios, seed=0)
    assert estimate.value == 1.0
    assert 0.9 <= estimate.low < 1.0 < estimate.high <= 1.1
    assert estimate.n == 6


def test_a_run_writes_what_it_returns_and_the_page(tmp_path: Path) -> None:
    console = Console(record=True, width=200)
    report = run(
        families=("llama", "gemma2"), modes=("eager",), size=TINY, seconds=0.1, device="cpu", console=console,
        output=tmp_path / "generate-cpu.json", page=tmp_path / "op.md", trigger=True,
    )  # fmt: skip
    assert GenerateReport.model_validate_json((tmp_path / "generate-cpu.json").read_text()) == report
    assert [speed.family for speed in report.speeds] == ["llama", "gemma2"]
    assert (tmp_path / "op.md").read_text() == page([], [report])
    assert "by way of a trigger" in console.export_text()


def test_the_trigger_is_active_at_every_token() -> None:
    model = tiny()
    with install_edits(model, edits(TINY, seed=0), always_active(TINY)) as installation, torch.no_grad():
        readout = installation.readout
        assert readout is not None
        seen: list[torch.Tensor] = []
        readout.register_forward_hook(lambda _, __, active: seen.append(active))
        model(torch.arange(40)[None])
    assert seen[0].all()


@pytest.mark.slow
def test_compiling_makes_one_graph_with_the_guard_and_one_without() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model = tiny("gemma2")
    generate_once = generation(model, "compiled", TINY)
    for _ in range(3):
        for side in (Side(nullcontext, generate_once), Side(guard_of(model), generate_once)):
            side.seconds()
    assert counters["stats"]["unique_graphs"] == 2
