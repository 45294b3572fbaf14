"""`neuron-guard bench op`: the fused op against what one would write instead and against the layer without an edit.

Every contender is compared with the reference first; a wrong one ends the run, since its time would mislead. How often
each is timed follows from a budget of seconds, shared out by the size of the shapes. What does not fit into memory, or
is not installed, is named in the report.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from benchmarks.common.machine import available_memory, data_type, describe
from benchmarks.common.stopwatch import Clock, CudaClock, ProcessorClock, Samples, copy_call, sample_in_rounds
from benchmarks.op.cases import ACTIVE, Shape, bytes_needed, grid, input_sets, make_case, settings
from benchmarks.op.contenders import COPY, PLAIN, Contender, check_all, contenders
from benchmarks.op.page import write_page
from benchmarks.op.peers import WANT_PACKED, Kernel, peers
from benchmarks.op.plot import write_plot
from benchmarks.op.report import Measurement, OpReport, Skipped, Timing, met_in_words, table_of
from guard.loading import choose_device
from guard.spec import atomic_files as files

BUDGET = {"cpu": 150.0, "cuda": 150.0}  # seconds of timing alone; checking and compiling take about as long again
QUICK_BUDGET = 15.0
FEWEST_ROUNDS, MOST_ROUNDS = 3, 100
COPIED = {"cpu": 2**26, "cuda": 2**28}  # bytes; several times the last cache
SMALLEST_SHARE = 2**20  # elements; smaller shapes get the budget of this many
PASSES = 3  # gate and up are read, the neurons written
RECOMPILATIONS = 64


@dataclass(frozen=True)
class Taken:
    """One shape as it was read, before the copy bandwidth of the whole run is known."""

    shape: Shape
    checked_rows: int
    samples: Samples[Contender]


def run(
    *,
    output: Path | None = None,
    plot: Path | None = None,
    page: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quick: bool = False,
    seed: int = 0,
    shapes: Sequence[Shape] | None = None,
    budget: float | None = None,
    memory_limit: int | None = None,
    console: Console | None = None,
) -> OpReport:
    """Measure, print the table, write the report as JSON to `output`, a plot to `plot` and the results page to `page`.

    `shapes`, `budget` (seconds) and `memory_limit` (bytes; half of what is free) override the defaults. Raises
    WrongResultError for a contender that does not compute what it is timed for.
    """
    chosen = choose_device(device)
    precision = data_type(dtype, chosen)
    screen = console or Console()
    machine, started = describe(chosen), time.perf_counter()
    limit = available_memory(chosen) // 2 if memory_limit is None else memory_limit
    kernels, absent = peers(chosen)
    planned, skipped = fitting(shapes or grid(quick), chosen, precision, limit, packed=packed_wanted(kernels))
    seconds = budget or (QUICK_BUDGET if quick else BUDGET[chosen.type])
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=RECOMPILATIONS):
        taken = measure_all(planned, chosen, precision, kernels, seconds, seed, screen)
    report = report_of(
        taken,
        precision,
        OpReport(
            machine=machine,
            dtype=str(precision).removeprefix("torch."),
            seed=seed,
            quick=quick,
            seconds=time.perf_counter() - started,
            memory_limit=limit,
            copied_bytes=COPIED[chosen.type],
            copy_bandwidth=bandwidth(taken, 2 * COPIED[chosen.type]),
            absent=absent,
            measurements=(),
            skipped=tuple(skipped),
        ),
    )
    screen.print(table_of(report))
    screen.print(*met_in_words(report), *(f"{name}: {reason}" for name, reason in absent.items()), sep="\n")
    if output is not None:
        files.write(output, (report.model_dump_json(indent=1) + "\n").encode())
    if plot is not None:
        write_plot(report, plot)
    if page is not None:
        write_page(page)
    return report


def packed_wanted(kernels: Mapping[str, Kernel]) -> bool:
    """Whether any of `kernels` takes gate and up as one tensor."""
    return any(name in kernels for name in WANT_PACKED)


def fitting(
    shapes: Sequence[Shape], device: torch.device, dtype: torch.dtype, limit: int, *, packed: bool
) -> tuple[list[Shape], list[Skipped]]:
    """The shapes that fit into `limit` bytes, and what has to be left out with its reason."""
    planned, skipped = [], []
    for shape in shapes:
        needed = bytes_needed(shape, dtype, input_sets(shape, device), packed=packed)
        if needed > limit:
            reason = f"needs {needed / 1e9:.1f} GB, more than the limit of {limit / 1e9:.1f} GB"
            skipped.append(Skipped(d_ff=shape.d_ff, tokens=shape.tokens, what="shape", reason=reason))
            continue
        planned.append(shape)
        possible = {setting.active for setting in settings(shape)}
        for share in ACTIVE:
            if share not in possible:
                reason = f"{share:.0%} of {shape.tokens} token cannot be active"
                skipped.append(Skipped(d_ff=shape.d_ff, tokens=shape.tokens, what="active share", reason=reason))
    return planned, skipped


def measure_all(
    shapes: Sequence[Shape],
    device: torch.device,
    dtype: torch.dtype,
    kernels: Mapping[str, Kernel],
    budget: float,
    seed: int,
    console: Console,
) -> list[Taken]:
    """Check and time every shape; each gets its part of `budget` seconds by its size."""
    random = np.random.default_rng(seed)
    copy, _ = copy_call(device, COPIED[device.type])
    sizes = {shape: max(shape.elements, SMALLEST_SHARE) for shape in shapes}
    taken: list[Taken] = []
    compiled_for = None
    for shape in track(shapes, "measuring", console=console, transient=True):
        if shape.d_ff != compiled_for:  # compiled functions are made for one width: drop those of the last
            torch._dynamo.reset()
            compiled_for = shape.d_ff
        case = make_case(shape, device, dtype, packed=packed_wanted(kernels), seed=seed)
        calls = contenders(case, kernels)
        checked = check_all(case, calls)
        copy(0)
        samples = sample_in_rounds(
            clock_for(device, len(case.inputs)),
            {**calls, Contender(COPY): copy},
            budget=budget * sizes[shape] / sum(sizes.values()),
            fewest=FEWEST_ROUNDS,
            most=MOST_ROUNDS,
            random=random,
        )
        taken.append(Taken(shape, checked, samples))
    return taken


def clock_for(device: torch.device, sets: int) -> Clock:
    """The clock of `device`."""
    return CudaClock(device, sets) if device.type == "cuda" else ProcessorClock()


def bandwidth(taken: Sequence[Taken], moved: int) -> float:
    """Bytes per second of the copies that were timed between all else; 0 where nothing was."""
    if not taken:
        return 0.0
    return moved / float(np.median(np.concatenate([each.samples.seconds[Contender(COPY)] for each in taken])))


def report_of(taken: Sequence[Taken], dtype: torch.dtype, heading: OpReport) -> OpReport:
    """`heading` with every timing, as shares of its copy bandwidth and over the unedited layer."""
    measurements = [
        Measurement(
            d_ff=each.shape.d_ff,
            tokens=each.shape.tokens,
            rounds=each.samples.rounds,
            checked_rows=each.checked_rows,
            timings=tuple(
                _timing(each, contender, PASSES * each.shape.elements * dtype.itemsize / heading.copy_bandwidth)
                for contender in each.samples.seconds
                if contender.name != COPY
            ),
        )
        for each in taken
    ]
    return heading.model_copy(update={"measurements": tuple(measurements)})


def _timing(taken: Taken, contender: Contender, at_copy_speed: float) -> Timing:
    """The figures of one contender; `at_copy_speed` is what moving its bytes once would take, in seconds."""
    low, median, high = taken.samples.quantiles(contender)
    setting = contender.setting
    return Timing(
        contender=contender.name,
        active=None if setting is None else setting.active,
        edited=None if setting is None else setting.edited,
        seconds=median,
        low=low,
        high=high,
        share_of_copy=at_copy_speed / median,
        over_unedited=taken.samples.ratio(contender, Contender(PLAIN)),
    )
