"""The benchmark of the op: wrong kernels are caught, figures are what they say, nothing is left out in silence."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from benchmarks.common.stopwatch import Samples
from benchmarks.op import contenders as op_contenders
from benchmarks.op import peers as op_peers
from benchmarks.op import run as op
from benchmarks.op.cases import Case, Inputs, Setting, Shape, WrongResultError, bytes_needed, grid, make_case, settings
from benchmarks.op.contenders import (
    CLAMP,
    COPY,
    OURS,
    OURS_COMPILED,
    PLAIN,
    Contender,
    check_all,
    clamped,
    contenders,
    ours,
    unedited,
)  # fmt: skip
from benchmarks.op.peers import Kernel
from benchmarks.op.report import OpReport
from guard.ops import EditTensors, edit_neurons

CPU = torch.device("cpu")
ONE = Shape(64, 5)
SMALL = [Shape(64, 1), Shape(64, 5)]


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled contenders run as they are: compiling takes longer than all tests together."""

    def as_it_is(function: Callable[..., Tensor], **_: object) -> Callable[..., Tensor]:
        return function

    monkeypatch.setattr(torch, "compile", as_it_is)


def case_of(shape: Shape = ONE, dtype: torch.dtype = torch.float32, *, packed: bool = False) -> Case:
    return make_case(shape, CPU, dtype, packed=packed, seed=3)


def checked(case: Case, peers: Mapping[str, Kernel] | None = None) -> int:
    return check_all(case, contenders(case, peers or {}))


def small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_limit: int | None = None) -> tuple[OpReport, str]:
    monkeypatch.setitem(op.COPIED, "cpu", 2**16)
    console = Console(record=True, width=200)
    report = op.run(
        shapes=SMALL, budget=0.05, device="cpu", output=tmp_path / "op.json", plot=tmp_path / "op.html",
        page=tmp_path / "op.md", console=console,
        memory_limit=memory_limit,
    )  # fmt: skip
    return report, console.export_text()


def test_the_grid_is_what_was_asked_for() -> None:
    assert len(grid(quick=False)) == 24
    assert set(grid(quick=True)) < set(grid(quick=False))
    assert {setting.active for setting in settings(Shape(8, 2))} == {0.0, 0.5, 1.0}
    assert {setting.edited for setting in settings(Shape(8, 2))} == {0.001, 0.01, 1.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [Shape(37, 1), Shape(37, 5), Shape(129, 300)])
def test_every_contender_computes_what_it_is_timed_for(shape: Shape, dtype: torch.dtype) -> None:
    assert checked(case_of(shape, dtype)) == min(shape.tokens, 256)


def without_the_edit(gate: Tensor, up: Tensor, edit: EditTensors, active: Tensor | None) -> Tensor:
    return unedited(gate, up)


def beside_the_edit(gate: Tensor, up: Tensor, edit: EditTensors, active: Tensor | None) -> Tensor:
    neurons = ((edit.neurons + 1) % gate.shape[-1]).sort().values.int()
    return edit_neurons(unedited(gate, up), neurons, *edit[1:4], active)


def at_every_token(gate: Tensor, up: Tensor, edit: EditTensors, active: Tensor | None) -> Tensor:
    return ours(gate, up, edit, None)


def before_the_last_row(gate: Tensor, up: Tensor, edit: EditTensors, active: Tensor | None) -> Tensor:
    h = ours(gate, up, edit, active)
    h[-1] = unedited(gate, up)[-1]
    return h


def of_another_type(gate: Tensor, up: Tensor, edit: EditTensors, active: Tensor | None) -> Tensor:
    return ours(gate, up, edit, active).double()


def not_a_number(gate: Tensor, up: Tensor, edit: EditTensors, active: Tensor | None) -> Tensor:
    h = ours(gate, up, edit, active)
    h[0, 0] = torch.nan
    return h


@pytest.mark.parametrize(
    "wrong", [without_the_edit, beside_the_edit, at_every_token, before_the_last_row, of_another_type, not_a_number]
)
def test_a_wrong_kernel_ends_the_run(wrong: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op_contenders, "ours", wrong)
    with pytest.raises(WrongResultError, match=OURS):
        checked(case_of())


def test_a_wrong_kernel_of_another_project_ends_the_run() -> None:
    def gate_and_up_mixed_up(inputs: Inputs) -> Tensor:
        return unedited(inputs.up, inputs.gate)

    with pytest.raises(WrongResultError, match="theirs"):
        checked(case_of(), {"theirs": gate_and_up_mixed_up})


def test_a_wrong_last_row_of_many_is_found() -> None:
    case = case_of(Shape(8, 999))

    def wrong(inputs: Inputs) -> Tensor:
        h = unedited(inputs.gate, inputs.up)
        h[-1, -1] += 1
        return h

    with pytest.raises(WrongResultError):
        checked(case, {"theirs": wrong})


def test_packed_inputs_are_gate_and_up_side_by_side() -> None:
    inputs = case_of(packed=True).inputs[0]
    assert inputs.packed is not None
    assert torch.equal(inputs.packed, torch.cat((inputs.gate, inputs.up), dim=-1))
    assert case_of().inputs[0].packed is None


def test_the_dense_clamp_is_the_same_edit() -> None:
    case, setting = case_of(), Setting(0.5, 0.01)
    inputs, edit, mask = case.inputs[0], case.edits[setting.edited], case.masks[setting.active]
    dense = clamped(inputs.gate, inputs.up, case.lower[setting.edited], case.upper[setting.edited], mask)
    assert torch.equal(dense, ours(inputs.gate, inputs.up, edit, mask))
    assert not torch.equal(dense, unedited(inputs.gate, inputs.up))


def test_figures_are_computed_from_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(1.0, 0.01)
    seconds = {
        Contender(PLAIN): np.array([2e-3, 2e-3, 4e-3]),
        Contender(OURS, setting): np.array([1e-3, 2e-3, 3e-3]),
        Contender(COPY): np.array([1e-3, 1e-3, 9e-3]),
    }
    taken = [op.Taken(Shape(1000, 10), 10, Samples(seconds))]
    heading, _ = small_run(tmp_path, monkeypatch)
    assert op.bandwidth(taken, 4000) == 4e6
    report = op.report_of(taken, torch.float32, heading.model_copy(update={"copy_bandwidth": 4e8}))
    (measured,) = report.measurements
    timing = measured.find(OURS, 1.0, 0.01)
    assert (timing.low, timing.seconds, timing.high) == pytest.approx((1.2e-3, 2e-3, 2.8e-3))
    assert timing.over_unedited == 0.75
    assert timing.share_of_copy == pytest.approx(3 * 1000 * 10 * 4 / 4e8 / 2e-3)
    assert measured.rounds == 3


def test_a_run_writes_what_it_returns_and_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, text = small_run(tmp_path, monkeypatch)
    assert OpReport.model_validate_json((tmp_path / "op.json").read_text()) == report
    assert [(each.d_ff, each.tokens) for each in report.measurements] == SMALL
    assert {each.contender for each in report.measurements[0].timings} >= {PLAIN, CLAMP, OURS, OURS_COMPILED}
    assert "neuron-guard" in (tmp_path / "op.html").read_text()
    assert "1 token cannot be active" in (tmp_path / "op.md").read_text()
    assert "64" in text


def without_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op_peers, "folder_of", lambda _: None)
    monkeypatch.setattr(op_peers, "registered", lambda: False)


def test_what_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_peers(monkeypatch)
    report, text = small_run(tmp_path, monkeypatch)
    assert report.absent == dict.fromkeys((op_peers.VLLM, op_peers.VLLM_CLAMP, op_peers.LIGER), "not installed")
    assert "vLLM: not installed" in text


def test_a_shape_beyond_the_memory_limit_is_skipped_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_peers(monkeypatch)
    limit = bytes_needed(SMALL[1], torch.float32, 1, packed=False) - 1
    report, text = small_run(tmp_path, monkeypatch, memory_limit=limit)
    assert [(each.d_ff, each.tokens) for each in report.measurements] == SMALL[:1]
    assert [(each.tokens, each.what) for each in report.skipped] == [(1, "active share"), (5, "shape")]
    assert "skipped: needs" in text
    assert "shape at d_ff 64, 5 tokens: needs" in (tmp_path / "op.md").read_text()
