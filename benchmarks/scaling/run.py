"""What a calibration costs as it grows: processor seconds and peak memory against prompts, layers, d_ff and model size.

Every case runs in a process of its own (`calibration_case.py`). One thing grows at a time, the rest stays; exponents
are those of a power law, fitted by least squares on logarithms, with their 95 % interval. Fixed costs pull an exponent
down, so what is asked is only that none is above what the design says. Models have random weights: cost depends on
shapes. The last case has the shape of Qwen2.5-0.5B; of its layers only the last two are mediated.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table
from scipy import stats

from benchmarks.common.machine import Machine, describe
from benchmarks.scaling.case import Case, Reading
from guard.spec import atomic_files as files

USUAL = Case()
ALONG: dict[str, tuple[tuple[float, Case], ...]] = {
    "prompts": tuple((n, USUAL.model_copy(update={"prompts": n})) for n in (16, 32, 64, 128)),
    "layers": tuple((n, USUAL.model_copy(update={"layers": n})) for n in (4, 8, 16, 32)),
    "d_ff": tuple((n, USUAL.model_copy(update={"d_ff": n})) for n in (512, 1024, 2048, 4096)),
    "model size": tuple(
        (n, USUAL.model_copy(update={"d_model": n, "d_ff": 4 * n, "prompts": 8})) for n in (128, 256, 512, 768)
    ),
}
QWEN = Case(
    prompts=4, layers=24, d_model=896, d_ff=4864, vocabulary=151936, heads=14, key_value_heads=2, mediated=2
)  # Qwen2.5-0.5B
# Each layer's mediators are run from that layer on, so mediation grows with the square of the layers.
DESIGNED = {("layers", "mediation"): 2.0}
MEMORY = "peak memory"
ROUNDING = 1e-6


class Point(BaseModel):
    """One case and what was read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    along: str
    size: float
    case: Case
    reading: Reading


class Growth(BaseModel):
    """The exponent of one quantity along one axis, its interval, the exponent designed, and whether it is kept.

    `kept` is False where the interval lies above the designed exponent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    along: str
    quantity: str
    exponent: float
    low: float
    high: float
    designed: float
    kept: bool


class Report(BaseModel):
    """All cases, the exponents, and what they were read on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: Machine
    points: tuple[Point, ...]
    growth: tuple[Growth, ...]


def fitted(along: str, quantity: str, sizes: Sequence[float], values: Sequence[float]) -> Growth:
    """The power law through `values` at `sizes`, at least three of them, with Student's interval for the exponent."""
    line = stats.linregress(np.log(sizes), np.log(values))
    spread = 0.0 if np.ptp(values) == 0 else float(line.stderr)  # a constant has no correlation to divide by
    margin = float(stats.t.ppf(0.975, len(sizes) - 2)) * spread
    designed = DESIGNED.get((along, quantity), 1.0)
    low = float(line.slope) - margin
    return Growth(
        along=along,
        quantity=quantity,
        exponent=float(line.slope),
        low=low,
        high=float(line.slope) + margin,
        designed=designed,
        kept=low <= designed + ROUNDING,
    )


def growth_of(points: Sequence[Point]) -> tuple[Growth, ...]:
    """The exponents of each stage's seconds and of the peak memory beyond what was loaded, along each axis.

    Along model size, the size is the number of weights.
    """
    found = []
    for along in dict.fromkeys(point.along for point in points):
        own = [point for point in points if point.along == along]
        if len(own) < 3:
            continue
        sizes = [point.reading.parameters if along == "model size" else point.size for point in own]
        found += [
            fitted(along, stage, sizes, [point.reading.seconds[stage] for point in own])
            for stage in own[0].reading.seconds
        ]
        found.append(fitted(along, MEMORY, sizes, [float(point.reading.peak_bytes) for point in own]))
    return tuple(found)


def in_a_process(case: Case) -> Reading:
    """Read one case in a process of its own."""
    ran = subprocess.run(  # noqa: S603 - our own module
        [sys.executable, "-m", "benchmarks.scaling.case", case.model_dump_json()],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    return Reading.model_validate_json(ran.stdout.strip().rpartition("\n")[2])


def table_of(report: Report) -> Table:
    """The exponents as a table."""
    table = Table(title="How a calibration grows", caption="Exponents of power laws with their 95 % intervals.")
    for heading in ("along", "of", "exponent", "designed", "kept"):
        table.add_column(heading)
    for each in report.growth:
        interval = f"{each.exponent:.2f} ({each.low:.2f} to {each.high:.2f})"
        table.add_row(each.along, each.quantity, interval, f"{each.designed:.0f}", "yes" if each.kept else "no")
    return table


def page(report: Report) -> str:
    """The results as Markdown."""
    machine = report.machine
    lines = [
        "# How a calibration grows",
        "",
        f"Written by `neuron-guard bench calibration`, on {machine.device} at load {machine.load_average:.1f}. "
        "Processor seconds of one run of each stage on one thread, each case in a process of its own; "
        f"{MEMORY} is that of the process.",
        "",
        "| along | of | exponent | designed, at most | kept |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {each.along} | {each.quantity} | {each.exponent:.2f} ({each.low:.2f} to {each.high:.2f}) | "
        f"{each.designed:.0f} | {'yes' if each.kept else 'no'} |"
        for each in report.growth
    ]
    stages = list(report.points[0].reading.seconds)
    lines += ["", f"| along | size | weights | {' | '.join(stages)} | {MEMORY} |", "| --- " * (len(stages) + 4) + "|"]
    for point in report.points:
        seconds = " | ".join(f"{point.reading.seconds[stage]:.2f} s" for stage in stages)
        lines.append(
            f"| {point.along} | {point.size:g} | {point.reading.parameters / 1e6:.1f} M | {seconds} | "
            f"{point.reading.peak_bytes / 2**30:.2f} GiB |"
        )
    return "\n".join(lines) + "\n"


def run(
    output: Path | None = None,
    page_path: Path | None = None,
    *,
    quick: bool = False,
    console: Console | None = None,
    read: Callable[[Case], Reading] = in_a_process,
) -> Report:
    """Read every case (`quick`: the three smallest of each axis, without the last), print the table, and return all."""
    screen = console or Console()
    machine = describe(torch.device("cpu"))
    cases = [(along, *each) for along, several in ALONG.items() for each in (several[:3] if quick else several)]
    if not quick:
        cases.append(("Qwen2.5-0.5B", QWEN.prompts, QWEN))
    points = []
    for along, size, case in cases:
        with screen.status(f"{along}: {size:g}"):
            points.append(Point(along=along, size=size, case=case, reading=read(case)))
    report = Report(machine=machine, points=tuple(points), growth=growth_of(points))
    screen.print(table_of(report))
    if output is not None:
        files.write(output, (report.model_dump_json(indent=2) + "\n").encode())
    if page_path is not None:
        files.write(page_path, page(report).encode())
    return report
