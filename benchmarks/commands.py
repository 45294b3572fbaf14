"""The sub-commands of `neuron-guard bench`, apart from neuron_guard.py so that neither file outgrows its reader.

Importing this costs nothing: what a sub-command needs, it imports when it runs.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.common.flags import (
    Device,
    JudgeClassifier,
    JudgeKey,
    JudgeModel,
    JudgePrompt,
    JudgeRefusedLabel,
    JudgeUrl,
    Output,
    Seed,
)
from benchmarks.robustness.command import robustness
from benchmarks.safety.command import safety

Page = Annotated[
    Path | None,
    typer.Option(dir_okay=False, help="Also write the results page to this file, from the JSON files beside it."),
]


class MeasuredPrecision(StrEnum):
    """The floating-point type that is measured."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Dtype = Annotated[MeasuredPrecision, typer.Option(help="auto: float32 on a CPU, bfloat16 on a GPU.")]


def localisation(
    seed: Seed = 0,
    output: Output = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            file_okay=False, exists=True, help="Use the organisms in this folder instead of the embedded ones."
        ),
    ] = None,
    organism: Annotated[
        list[str] | None, typer.Option(help="Only this organism; may be repeated. Default: all, in an hour.")
    ] = None,
) -> None:
    """Compare ways of finding a gate on every organism, by effect and remaining harm; compare claims with the truth."""
    from benchmarks.localisation.run import run

    run(seed=seed, output=output, folder=folder, organisms=tuple(organism or ()))


def claims(seed: Seed = 0, output: Output = None) -> None:
    """Test forty times that claims which are false of an organism by construction are not made."""
    from benchmarks.localisation.false_claims import run

    run(seed=seed, output=output)


def shuffled(seed: Seed = 0, output: Output = None) -> None:
    """Calibrate on shuffled labels twenty times; a gate that does not exist must not be found."""
    from benchmarks.localisation.shuffled import run

    run(seed=seed, output=output)


def effects(seed: Seed = 0, output: Output = None) -> None:
    """Compare exact neuron effects with hook-by-hook patching: the largest difference and the speed, in one run."""
    from benchmarks.scaling.effects import run

    run(seed=seed, output=output)


def calibration(
    output: Output = None,
    page: Page = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Three sizes of each, without the model of half a billion.")
    ] = False,
) -> None:
    """Measure how a calibration's seconds and memory grow with prompts, layers, d_ff and model size."""
    from benchmarks.scaling.run import run

    run(output, page, quick=quick)


def op(
    output: Output = None,
    plot: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Also plot them to this file, as one HTML page.")
    ] = None,
    page: Page = None,
    device: Device = "auto",
    dtype: Dtype = MeasuredPrecision.auto,
    quick: Annotated[bool, typer.Option("--quick", help="A few shapes, a few seconds of timing.")] = False,
    seed: Seed = 0,
) -> None:
    """Time the fused op against a dense clamp and against the layer without an edit, on this machine's device."""
    from benchmarks.op.run import run

    run(output=output, plot=plot, page=page, device=device, dtype=dtype.value, quick=quick, seed=seed)


def generate(
    output: Output = None,
    page: Page = None,
    device: Device = "auto",
    dtype: Dtype = MeasuredPrecision.auto,
    quick: Annotated[bool, typer.Option("--quick", help="A fifth of the time.")] = False,
    trigger: Annotated[bool, typer.Option("--trigger", help="Edit behind a trigger, whose cost is included.")] = False,
    seed: Seed = 0,
) -> None:
    """Compare tokens per second of guarded and plain models in transformers' generate, eager and compiled."""
    from benchmarks.serving.generate import run

    run(output=output, page=page, device=device, dtype=dtype.value, quick=quick, trigger=trigger, seed=seed)


class ServingEngine(StrEnum):
    """What runs the model that is served."""

    hf = "hf"
    vllm = "vllm"


def serving(
    engine: Annotated[ServingEngine, typer.Option(help="hf: the embedded engine. vllm: vLLM, if installed.")] = (
        ServingEngine.hf
    ),
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Requests at once; may be repeated. Default: 1, 16, 64 and 256.")
    ] = None,
    output: Output = None,
    page: Page = None,
    device: Device = "auto",
    dtype: Dtype = MeasuredPrecision.auto,
    eager: Annotated[
        bool | None,
        typer.Option("--eager/--compiled", help="Whether vLLM runs without compiling. Default: only on a CPU."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A twelfth of the time.")] = False,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="Seconds of rounds for each batch, at least three rounds. Default: 60.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Compare serving without a guard, with an idle and with an active one: throughput, first token, further tokens."""
    from benchmarks.serving.run import BATCHES, run

    run(
        engine=engine.value,
        batches=tuple(batch or BATCHES),
        output=output,
        page=page,
        device=device,
        dtype=dtype.value,
        eager=eager,
        quick=quick,
        seconds=seconds,
        seed=seed,
    )


def judges(
    xstest: Annotated[
        Path, typer.Option(file_okay=False, exists=True, help="The folder with XSTest's labelled completions.")
    ],
    output: Output = None,
    train: Annotated[
        bool, typer.Option("--train", help="Also retrain the wording judge on all of them, and overwrite it.")
    ] = False,
    judge_url: JudgeUrl = None,
    judge_model: JudgeModel = None,
    judge_key: JudgeKey = None,
    judge_classifier: JudgeClassifier = None,
    judge_prompt: JudgePrompt = None,
    judge_refused_label: JudgeRefusedLabel = None,
    device: Device = "auto",
) -> None:
    """Compare judges of refusal with human labels; the trained one is tested on models and requests left out."""
    from benchmarks.judges.agreement import run
    from benchmarks.judges.brought import judges_brought

    others = judges_brought(
        url=judge_url,
        model=judge_model,
        key=judge_key,
        classifier=judge_classifier,
        prompt=judge_prompt,
        refused_labels=tuple(judge_refused_label or ()),
        device=device,
    )
    run(xstest=xstest, output=output, train=train, others=others)


def soak(
    engine: Annotated[ServingEngine, typer.Option(help="hf: the embedded engine. vllm: vLLM, if installed.")] = (
        ServingEngine.hf
    ),
    requests: Annotated[int, typer.Option(min=10, help="Streams in all.")] = 1000,
    concurrency: Annotated[int, typer.Option(min=1, help="Streams at a time.")] = 64,
    warm_up: Annotated[
        int, typer.Option(min=10, help="Streams before the measurement, so that memory settles.")
    ] = 2000,
    eager: Annotated[
        bool | None,
        typer.Option("--eager/--compiled", help="Whether vLLM runs without compiling. Default: only on a CPU."),
    ] = None,
    output: Output = None,
) -> None:
    """Keep many streams open through a server and check that none is lost, all are guarded, and memory stays flat."""
    from benchmarks.serving.soak import run

    run(engine=engine.value, requests=requests, concurrency=concurrency, warm_up=warm_up, eager=eager, output=output)


def add_to(bench: typer.Typer) -> None:
    """Add the sub-commands to `neuron-guard bench`."""
    found = (localisation, claims, shuffled, effects)
    cost = (calibration, op, generate, serving, soak)
    worth = (safety, robustness, judges)
    for function in (*found, *cost, *worth):
        bench.command()(function)
