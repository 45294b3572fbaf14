"""The comparison of exact effects with hook-by-hook patching, on a model small enough for a test."""

from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from benchmarks.scaling import effects
from benchmarks.scaling.effects import Report, Subject, measure, run
from tests.calibration.late_models import late_model, random_batch


def tiny_subject(*, judged_on_speed: bool) -> Subject:
    model: nn.Module = late_model(dtype=torch.float32)
    return Subject("tiny", model, random_batch(), (3, 2), sampled_neurons=3, judged_on_speed=judged_on_speed)


def test_the_error_is_the_difference_from_hooked_runs() -> None:
    measured = measure(tiny_subject(judged_on_speed=False), 2, 2, torch.Generator().manual_seed(0))
    assert measured.largest_error <= effects.LARGEST_ERROR
    assert measured.largest_effect > 0.01
    assert measured.met
    assert (measured.layers_after, measured.neurons, measured.sampled_neurons) == (1, 37, 6)
    assert measured.hooked_seconds_extrapolated == pytest.approx(37 * measured.hooked_seconds_per_neuron)


def test_a_speed_that_is_not_reached_is_not_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects, "FASTER_LATE", 1e9)
    assert not measure(tiny_subject(judged_on_speed=True), 2, 1, torch.Generator().manual_seed(0)).met


def test_an_error_that_is_too_large_is_not_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects, "LARGEST_ERROR", -1.0)
    assert not measure(tiny_subject(judged_on_speed=False), 2, 1, torch.Generator().manual_seed(0)).met


def test_a_run_prints_a_table_and_writes_what_it_returns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(effects, "organism_subject", lambda: tiny_subject(judged_on_speed=False))
    monkeypatch.setattr(effects, "random_subject", lambda seed: tiny_subject(judged_on_speed=True))
    console = Console(record=True, width=200)
    report = run(seed=1, output=tmp_path / "effects.json", rounds=1, console=console)
    assert Report.model_validate_json((tmp_path / "effects.json").read_text()) == report
    assert [each.layer for each in report.measurements] == [3, 2, 3, 2]
    text = console.export_text()
    assert "extrapolated" in text
    assert "tiny" in text
