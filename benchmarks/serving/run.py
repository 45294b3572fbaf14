"""`neuron-guard bench serving`: what a guard costs a server, from one request at a time to 256.

All ways of serving take turns within each round, in an order drawn anew, on the same prompts: whatever else happens to
the machine falls on all of them, and ratios are of runs a moment apart. That the guard is live, and that an idle one
changes no token, is checked before anything is timed.
"""

import gc
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from benchmarks.common.machine import data_type, describe
from benchmarks.serving.generate import median_estimate
from benchmarks.serving.generate_models import Size, make_model
from benchmarks.serving.hf import ServedByTransformers
from benchmarks.serving.report import Load, Quantiles, ServingReport, Speed, table_of, write_page
from benchmarks.serving.setting import (
    ARMS,
    NEW_TOKENS,
    PROMPT_TOKENS,
    Arm,
    Served,
    Timing,
    prompts_for,
    size_for,
)
from benchmarks.serving.vllm import ServedByVllm
from guard.errors import EditNotAppliedError, NeuronGuardError
from guard.loading import choose_device
from guard.spec import atomic_files as files

BATCHES = (1, 16, 64, 256)
SECONDS, QUICK_SECONDS = 60.0, 5.0  # of rounds, for each batch
FEWEST_ROUNDS, MOST_ROUNDS = 3, 200


def run(
    *,
    engine: str = "hf",
    output: Path | None = None,
    page: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batches: Sequence[int] = BATCHES,
    quick: bool = False,
    eager: bool | None = None,
    seed: int = 0,
    size: Size | None = None,
    seconds: float | None = None,
    console: Console | None = None,
) -> ServingReport:
    """Measure every batch, print the table, write the report as JSON to `output` and the results page to `page`.

    `seconds` is the time for the rounds of one batch; `eager` keeps vLLM from compiling, by default on a CPU. Raises
    EditNotAppliedError where a guard that should change the answers does not, or the other way round.
    """
    if engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise NeuronGuardError("vLLM is not installed: install it, or use --engine hf.")
    screen, chosen = console or Console(), choose_device(device)
    precision, shape = data_type(dtype, chosen), size or size_for(chosen)
    machine, started = describe(chosen), time.perf_counter()
    without_graphs = eager if eager is not None else chosen.type == "cpu"
    model = make_model("llama", shape, seed=seed, dtype=precision, device=chosen)
    served: Served
    if engine == "vllm":
        served = ServedByVllm(model, shape, seed=seed, largest=max(batches), eager=without_graphs)
        del model
    else:
        served = ServedByTransformers(model, shape, seed=seed)
    try:
        check(served, shape, seed)
        budget = seconds or (QUICK_SECONDS if quick else SECONDS)
        loads = [
            load(served, batch, shape, budget, seed)
            for batch in track(batches, "serving", console=screen, transient=True)
        ]
    finally:
        served.close()
    report = ServingReport(
        machine=machine,
        engine=served.name,
        dtype=str(precision).removeprefix("torch."),
        seed=seed,
        size=shape,
        prompt_tokens=PROMPT_TOKENS,
        new_tokens=NEW_TOKENS,
        graphs=engine == "vllm" and chosen.type == "cuda" and not without_graphs,
        seconds=time.perf_counter() - started,
        loads=tuple(loads),
    )
    screen.print(table_of(report))
    if output is not None:
        files.write(output, (report.model_dump_json(indent=1) + "\n").encode())
    if page is not None:
        write_page(page)
    return report


def check(served: Served, size: Size, seed: int) -> None:
    """Raise EditNotAppliedError unless an active guard changes answers and an idle one changes none."""
    prompts = prompts_for(4, size, seed=seed)
    said = {arm: served.tokens(arm, prompts) for arm in ARMS}
    if said["active"] == said["absent"]:
        raise EditNotAppliedError(f"{served.name}: the guarded model says what the plain one says.")
    if said["idle"] != said["absent"]:
        raise EditNotAppliedError(f"{served.name}: a guard whose trigger never fires changes the answers.")


def load(served: Served, batch: int, size: Size, budget: float, seed: int) -> Load:
    """Rounds of one batch, for about `budget` seconds after warming up."""
    random = np.random.default_rng(seed)
    started = time.perf_counter()
    one_round(served, batch, size, seed, random)
    length = time.perf_counter() - started
    rounds = min(max(FEWEST_ROUNDS, int(budget / length)), MOST_ROUNDS)
    gc.collect()
    gc.disable()  # a collection would fall on one of the three
    try:
        timings = [one_round(served, batch, size, seed + place, random) for place in range(1, rounds + 1)]
    finally:
        gc.enable()
    totals = {arm: np.array([timing[arm].total for timing in timings]) for arm in ARMS}
    return Load(
        batch=batch,
        rounds=rounds,
        speeds={arm: speed_of([timing[arm] for timing in timings], batch) for arm in ARMS},
        idle_ratio=median_estimate(totals["absent"] / totals["idle"], seed=seed),
        active_ratio=median_estimate(totals["absent"] / totals["active"], seed=seed),
    )


def one_round(served: Served, batch: int, size: Size, seed: int, random: np.random.Generator) -> dict[Arm, Timing]:
    """Each way once, in an order drawn from `random`, on the same new prompts."""
    prompts = prompts_for(batch, size, seed=seed)
    return {ARMS[place]: served.round(ARMS[place], prompts) for place in random.permutation(len(ARMS))}


def speed_of(timings: Sequence[Timing], batch: int) -> Speed:
    """Quantiles over the rounds of one way."""
    total, first, each = (np.array(column) for column in zip(*timings, strict=True))
    return Speed(
        tokens_per_second=_quantiles(batch * NEW_TOKENS / total),
        first_token=_quantiles(first),
        per_token=_quantiles(each),
    )


def _quantiles(values: NDArray[np.float64]) -> Quantiles:
    low, median, high = (float(value) for value in np.quantile(values, (0.1, 0.5, 0.9)))
    return Quantiles(low=low, median=median, high=high)
