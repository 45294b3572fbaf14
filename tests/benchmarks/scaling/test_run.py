"""The benchmark of calibration: its fits, and one small case in a process of its own."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.scaling.case import Case, Reading
from benchmarks.scaling.run import ALONG, MEMORY, QWEN, Report, fitted, in_a_process, run


def modelled(case: Case) -> Reading:
    """What a machine of power laws would read: mediation with layers squared and prompts, the rest with prompts."""
    parameters = case.layers * 12 * case.d_model**2
    return Reading(
        seconds={"mediation": case.prompts * case.layers**2 * 1e-3, "late layers": case.prompts**1.5 * 1e-3},
        peak_bytes=10**6 + parameters,
        loaded_bytes=1,
        parameters=parameters,
    )


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found_and_too_high_a_one_is_told(exponent: float) -> None:
    noise = np.exp(np.random.default_rng(0).normal(0, 0.01, 5))
    sizes = [1.0, 2.0, 4.0, 8.0, 16.0]
    found = fitted("prompts", "late layers", sizes, 3 * np.power(sizes, exponent) * noise)
    assert found.low < found.exponent < found.high
    assert found.exponent == pytest.approx(exponent, abs=0.03)
    assert found.kept == (exponent <= 1)


def test_a_run_tells_growth_that_the_design_does_not_have_and_writes_what_it_returns(tmp_path: Path) -> None:
    console = Console(record=True, width=160)
    report = run(tmp_path / "calibration.json", tmp_path / "calibration.md", console=console, read=modelled)
    assert Report.model_validate_json((tmp_path / "calibration.json").read_text()) == report
    kept = {(each.along, each.quantity): each.kept for each in report.growth}
    assert kept["layers", "mediation"]
    assert kept["prompts", "mediation"]
    assert not kept["prompts", "late layers"]
    assert {along for along, _ in kept} == set(ALONG)
    assert (tmp_path / "calibration.md").read_text().count("| no |") == sum(not each.kept for each in report.growth)
    assert MEMORY in console.export_text()
    assert report.points[-1].case == QWEN


def test_a_case_is_read_in_a_process_of_its_own() -> None:
    reading = in_a_process(Case(prompts=2, layers=2, d_model=16, d_ff=24, vocabulary=64))
    assert set(reading.seconds) == {"mediation", "late layers", "a round of the gate", "a trial of bounds"}
    assert reading.peak_bytes >= reading.loaded_bytes > 10**6
    assert reading.parameters > 64 * 16
