"""What is said of the op's figures: judged by what was asked for that device, empty where nothing was read."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.common.machine import Machine
from benchmarks.op import page as op_page
from benchmarks.op import plot as op_plot
from benchmarks.op.contenders import CLAMP, OURS, PLAIN, PLAIN_COMPILED
from benchmarks.op.page import page, read_reports, write_page
from benchmarks.op.peers import VLLM, VLLM_CLAMP
from benchmarks.op.report import Measurement, OpReport, Timing, in_words, met_in_words, table_of

RESULTS = Path(op_page.__file__).parents[1] / "results"


def machine(kind: str = "cpu") -> Machine:
    device = "NVIDIA H200" if kind == "cuda" else "a processor"
    driver, cuda = ("570.1", "12.8") if kind == "cuda" else (None, None)
    versions = {"torch": "2.13.0"}
    return Machine(device=device, kind=kind, driver=driver, cuda=cuda, python="3.11.7", versions=versions, threads=2,
                   processors=2, load_average=0.1)  # fmt: skip


def timing(contender: str, seconds: float, *, active: float | None = None, over: float = 1.0) -> Timing:
    edited = None if active is None else 0.01
    return Timing(contender=contender, active=active, edited=edited, seconds=seconds, low=seconds, high=seconds,
                  share_of_copy=0.5, over_unedited=over)  # fmt: skip


def report(kind: str, timings: Sequence[Timing], *, d_ff: int = 14336, tokens: int = 8192) -> OpReport:
    measured = Measurement(d_ff=d_ff, tokens=tokens, rounds=7, checked_rows=8, timings=tuple(timings))
    return OpReport(machine=machine(kind), dtype="bfloat16", seed=0, quick=False, seconds=1.0, memory_limit=10**9,
                    copied_bytes=2**20, copy_bandwidth=1e9, absent={VLLM: "not installed"}, measurements=(measured,),
                    skipped=())  # fmt: skip


def on_cpu(ours: float, *, clamp: float = 3e-3, over: float = 1.0) -> OpReport:
    return report("cpu", [timing(PLAIN, 2e-3), timing(PLAIN_COMPILED, 3e-3), timing(CLAMP, clamp, active=1.0),
                          timing(OURS, ours, active=1.0, over=over)])  # fmt: skip


def on_cuda(ours: float, *, tokens: int = 8192, best: float = 165e-6) -> OpReport:
    return report("cuda", [timing(PLAIN, 300e-6), timing(PLAIN_COMPILED, 170e-6), timing(VLLM, best),
                           timing(VLLM_CLAMP, 1e-6), timing(CLAMP, 600e-6, active=0.5),
                           timing(CLAMP, 500e-6, active=1.0), timing(OURS, ours, active=0.5),
                           timing(OURS, ours, active=1.0)], tokens=tokens)  # fmt: skip


def met(judged: OpReport) -> dict[tuple[str, float], bool]:
    return {(each.what, each.active): each.met for each in judged.judgements}


def test_a_cpu_is_judged_by_the_unedited_layer_and_the_dense_clamp() -> None:
    assert met(on_cpu(2e-3)) == {("time over unedited", 1.0): True, ("dense clamp over ours", 1.0): True}
    assert met(on_cpu(2e-3, over=1.06)) == {("time over unedited", 1.0): False, ("dense clamp over ours", 1.0): True}
    assert met(on_cpu(2e-3, clamp=2.9e-3))["dense clamp over ours", 1.0] is False


def test_many_tokens_on_cuda_are_judged_by_the_best_unedited_kernel_and_the_bytes() -> None:
    assert all(met(on_cuda(169e-6)).values())
    assert met(on_cuda(171e-6)) == {
        ("time over the best unedited", 0.5): False,
        ("time over the best unedited", 1.0): False,
        ("seconds", 0.5): True,
    }
    assert met(on_cuda(174e-6, best=174e-6))["seconds", 0.5] is False


def test_decoding_on_cuda_is_judged_by_what_the_edit_adds() -> None:
    what = "seconds above the best unedited"
    assert met(on_cuda(5.29e-6, tokens=8, best=5e-6)) == {(what, 0.5): True, (what, 1.0): True}
    assert not any(met(on_cuda(5.31e-6, tokens=8, best=5e-6)).values())


def test_the_best_unedited_is_none_that_clamps() -> None:
    assert on_cuda(1e-3).measurements[0].best_unedited.contender == VLLM


def test_a_dense_clamp_stands_beside_ours_with_a_mask_where_that_has_one() -> None:
    measured = on_cuda(1e-3).measurements[0]
    assert [measured.clamp_like(each).active for each in measured.ours] == [0.5, 1.0]


def test_what_is_met_is_counted() -> None:
    assert met_in_words(on_cpu(2e-3, over=1.06)) == [
        "time over unedited ≤ 1.05: met at 0 of 1", "dense clamp over ours ≥ 1.5: met at 1 of 1",
    ]  # fmt: skip


def test_the_page_is_empty_where_nothing_was_read() -> None:
    text = page([], [])
    assert text.count("not read: no CUDA device was at hand") == 2
    assert "|" not in text


def test_the_page_names_device_driver_and_versions() -> None:
    text = page([on_cuda(169e-6)], [])
    for part in ("NVIDIA H200", "driver: 570.1", "CUDA: 12.8", "torch 2.13.0", "169 µs", "vLLM (not installed)"):
        assert part in text
    assert text.count("not read: no CUDA device was at hand") == 1


@pytest.mark.parametrize("path", ["in C", None])
def test_the_page_and_the_table_say_how_edits_run_on_a_cpu(path: str | None) -> None:
    said = on_cpu(2e-3).model_copy(update={"machine": machine().model_copy(update={"edits_on_cpu": path})})
    assert f"- edits on the CPU: {path or 'unknown'}" in page([said], [])
    assert f"edits run {path or 'in an unknown way'}" in str(table_of(said).caption)
    assert "edits on the CPU" not in page([on_cuda(170e-6)], [])


def test_figures_of_a_cpu_do_not_stand_under_cuda() -> None:
    cuda, cpu = page([on_cpu(2e-3, over=1.23)], []).split("## A CPU: the op")
    assert "not read: no CUDA device was at hand" in cuda
    assert "1.23" in cpu
    assert "µs" not in cuda


def test_a_miss_is_on_the_page_with_its_value() -> None:
    assert "time over unedited at d_ff 14336, 8192 tokens, 100% active: 1.23 (≤ 1.05)" in page(
        [on_cpu(2e-3, over=1.23)], []
    )


def test_the_page_is_made_from_the_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "op-cpu.json").write_text(on_cpu(2e-3).model_dump_json(), encoding="utf-8")
    write_page(tmp_path / "op.md")
    assert (tmp_path / "op.md").read_text(encoding="utf-8") == page([on_cpu(2e-3)], [])


def test_the_page_in_the_repository_is_what_its_files_say() -> None:
    assert (RESULTS / "op.md").read_text(encoding="utf-8") == page(*read_reports(RESULTS))


@pytest.mark.parametrize(("seconds", "words"), [(3.25e-6, "3.25 µs"), (0.0123, "12.3 ms"), (1.5e-7, "0.15 µs")])
def test_seconds_are_told_in_a_unit_that_fits(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_figures_are_valid_plotly_and_carry_their_numbers_as_a_table() -> None:
    from plotly.graph_objects import Figure

    for plot in op_plot.draw(on_cuda(169e-6)):
        coloured = re.sub(r'"\$\w+"', '"#123456"', json.dumps({"data": plot.traces, "layout": plot.layout}))
        Figure(json.loads(coloured))
        assert plot.rows
        assert all(len(row) == len(plot.columns) for row in plot.rows)


def test_every_contender_has_a_style_of_its_own() -> None:
    assert len(set(op_plot.STYLES.values())) == len(op_plot.STYLES) == 9


def test_the_plot_fetches_nothing_and_escapes_what_it_shows() -> None:
    shown = on_cuda(169e-6)
    odd = shown.model_copy(update={"machine": shown.machine.model_copy(update={"device": "<b>odd</b>"})})
    text = op_plot.render(odd)
    assert "<b>odd</b>" not in text
    assert "src=" not in text.split("<script>")[0]
