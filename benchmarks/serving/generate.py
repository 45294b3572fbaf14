"""`neuron-guard bench generate`: what a guard costs in transformers' generate, on every family of Llama's layout.

One model with the guard off and on: a second one, even on the same weights, was up to 1 % slower or faster by where its
modules lie in memory. A round generates with both, in an order that alternates, so that each ratio is of two runs a
moment apart. That the edit is live is checked before anything is timed.
"""

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy import stats
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.common.machine import data_type, describe
from benchmarks.op.page import write_page
from benchmarks.serving.generate_models import FAMILIES, Size, edits, make_model, static_cache
from benchmarks.serving.generate_report import GenerateReport, Speed, table_of
from calibration.runs.layer_calls import cache_name
from guard.errors import EditNotAppliedError
from guard.hf import install_edits
from guard.loading import choose_device
from guard.spec import atomic_files as files
from guard.spec.edit_spec import Estimate, Trigger

Mode = Literal["eager", "compiled"]
MODES: tuple[Mode, ...] = ("eager", "compiled")
NEW_TOKENS = 16
SECONDS, QUICK_SECONDS = 14.0, 1.5  # of paired rounds, for each family and mode
FEWEST_ROUNDS, MOST_ROUNDS = 5, 400
RESAMPLES = 2_000
PROMPT = 5  # a token id

Generate = Callable[..., Any]
Guard = Callable[[], AbstractContextManager[object]]


def run(
    *,
    output: Path | None = None,
    page: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quick: bool = False,
    trigger: bool = False,
    seed: int = 0,
    families: Sequence[str] = tuple(FAMILIES),
    modes: Sequence[Mode] = MODES,
    size: Size | None = None,
    seconds: float | None = None,
    console: Console | None = None,
) -> GenerateReport:
    """Measure every family, print the table, write the report as JSON to `output` and the results page to `page`.

    `seconds` is the time for paired rounds of one family in one mode. Raises EditNotAppliedError where a guarded model
    says what the plain one does.
    """
    screen, chosen = console or Console(), choose_device(device)
    precision, shape = data_type(dtype, chosen), size or Size()
    machine, started = describe(chosen), time.perf_counter()
    budget = seconds or (QUICK_SECONDS if quick else SECONDS)
    speeds = []
    for family in track(families, "generating", console=screen, transient=True):
        model = make_model(family, shape, seed=seed, dtype=precision, device=chosen)
        guard = partial(install_edits, model, edits(shape, seed=seed), always_active(shape) if trigger else None)
        speeds += [speed(family, mode, model, guard, shape, budget, seed) for mode in modes]
    report = GenerateReport(
        machine=machine,
        dtype=str(precision).removeprefix("torch."),
        seed=seed,
        size=shape,
        new_tokens=NEW_TOKENS,
        trigger=trigger,
        seconds=time.perf_counter() - started,
        speeds=tuple(speeds),
    )
    screen.print(table_of(report))
    if output is not None:
        files.write(output, (report.model_dump_json(indent=1) + "\n").encode())
    if page is not None:
        write_page(page)
    return report


def always_active(size: Size) -> Trigger:
    """A trigger that reads layer 1 and is active at every token: what it costs does not depend on what it says."""
    direction = (1.0,) * size.d_model
    return Trigger(layer=1, direction=direction, threshold=-1e9, false_trigger_rate=1.0, calibration_size=1)


def speed(family: str, mode: Mode, model: PreTrainedModel, guard: Guard, size: Size, budget: float, seed: int) -> Speed:
    """Guarded over plain tokens per second of one family in one mode, in about `budget` seconds after warming up."""
    torch._dynamo.reset()
    generate = generation(model, mode, size)
    plain, guarded = Side(nullcontext, generate), Side(guard, generate)
    if torch.equal(plain.first_logits(), guarded.first_logits()):
        raise EditNotAppliedError(f"{family}, {mode}: the guarded model says what the plain one says.")
    seconds = paired_rounds((plain, guarded), budget)  # [rounds, 2]
    vars(model).pop("forward", None)  # the compiled one, if any
    each = NEW_TOKENS / np.median(seconds, axis=0)
    return Speed(
        family=family,
        mode=mode,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        rounds=len(seconds),
        plain_tokens_per_second=float(each[0]),
        guarded_tokens_per_second=float(each[1]),
        ratio=median_estimate(seconds[:, 0] / seconds[:, 1], seed=seed),
    )


def generation(model: PreTrainedModel, mode: Mode, size: Size) -> Generate:
    """A function that generates NEW_TOKENS greedily from one token; more options may be given to it.

    From one token, so that every forward pass has one shape and compiling makes one graph. Compiled models get a static
    cache, as they want it, and keep it.
    """
    speak: Generate = model.generate  # type: ignore[assignment]
    prompt = torch.tensor([[PROMPT]], device=model.device)
    more: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    if mode == "eager":
        return lambda **options: speak(prompt, **more, **options)
    cache = static_cache(model, size)
    more[cache_name(model)] = cache
    model.forward = torch.compile(model.forward)

    def generate(**options: Any) -> Any:
        cache.reset()  # type: ignore[no-untyped-call]
        return speak(prompt, **more, **options)

    return generate


@dataclass(frozen=True)
class Side:
    """One side of a comparison: what to install on the model, and the function that then generates."""

    install: Guard
    generate: Generate

    def seconds(self) -> float:
        """Wall-clock seconds of one run, until the device is done; installing is not counted."""
        with self.install():
            started = time.perf_counter()
            self.generate()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return time.perf_counter() - started

    def first_logits(self) -> Tensor:
        """The logits [1, V] of the first token that is generated."""
        with self.install():
            logits: Tensor = self.generate(return_dict_in_generate=True, output_logits=True).logits[0]
        return logits


def paired_rounds(sides: Sequence[Side], budget: float) -> NDArray[np.float64]:
    """Seconds of each side, [rounds, sides]; each round in the reverse order of the last, as many as fit."""
    started = time.perf_counter()
    for side in sides:
        side.seconds()
    length = time.perf_counter() - started
    rounds = min(max(FEWEST_ROUNDS, int(budget / length)), MOST_ROUNDS)
    seconds = np.zeros((rounds, len(sides)))
    gc.collect()
    gc.disable()  # a collection would fall on one of the two
    try:
        for place, row in enumerate(seconds):
            for which in range(len(sides))[:: 1 if place % 2 else -1]:
                row[which] = sides[which].seconds()
    finally:
        gc.enable()
    return seconds


def median_estimate(ratios: NDArray[np.float64], *, seed: int) -> Estimate:
    """The median of `ratios` [rounds] with its 95 % percentile bootstrap interval."""
    median = float(np.median(ratios))
    interval = stats.bootstrap(
        (ratios,), np.median, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Estimate(value=median, low=float(interval.low), high=float(interval.high), n=len(ratios))
