"""The command line of `neuron-guard bench robustness`. Importing this costs nothing: the rest comes when it runs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.common.flags import (
    AllowRefuted,
    BatchSize,
    CalibratedHarmful,
    Data,
    Device,
    Harmful,
    MaxNewTokens,
    ModelDtype,
    NoTemplate,
    Seed,
    Spec,
)


class Attack(StrEnum):
    """What a guard is attacked with."""

    replay = "replay"
    prefill = "prefill"
    suffix = "suffix"
    fine_tuning = "fine-tuning"
    quantisation = "quantisation"


def robustness(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Path or hub name; for replay, prefill and quantisation only."),
    ] = None,
    spec: Spec = None,
    organism: Annotated[
        str | None, typer.Option(help="Instead of MODEL: one of the embedded organisms, for all attacks.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, help="Write figures and a table to this folder.")
    ] = Path("robustness"),
    attack: Annotated[list[Attack] | None, typer.Option(help="Only this attack. May be repeated.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer requests, steps and candidates: minutes.")] = False,
    data: Data = None,
    harmful: Harmful = None,
    calibrated_harmful: CalibratedHarmful = None,
    no_template: NoTemplate = False,
    device: Device = "auto",
    dtype: ModelDtype = "auto",
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    max_new_tokens: MaxNewTokens = 64,
    allow_refuted: AllowRefuted = False,
) -> None:
    """Attack a guarded model and report what breaks its guard, as counts; no text and no suffix is shown or kept.

    Suffix search and fine-tuning would make a model more compliant, so they run only on the project's own organisms.
    After an interruption the same command resumes.
    """
    from benchmarks.robustness.options import Options
    from benchmarks.robustness.run import run

    run(
        Options(
            model=model,
            organism=organism,
            spec=spec,
            output=output,
            attacks=tuple(one.value for one in attack or ()),
            quick=quick,
            data=data,
            harmful=tuple(harmful or ()),
            calibrated_harmful=tuple(calibrated_harmful or ()),
            template=not no_template,
            device=device,
            dtype=dtype,
            seed=seed,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            allow_refuted=allow_refuted,
        )
    )
