"""The command line of `neuron-guard bench robustness`. Importing this costs nothing: the rest comes when it runs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Attack(StrEnum):
    """What a guard is attacked by."""

    replay = "replay"
    prefill = "prefill"
    suffix = "suffix"
    fine_tuning = "fine-tuning"
    quantisation = "quantisation"


class ModelPrecision(StrEnum):
    """The floating-point type that the model runs in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


def robustness(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Path or hub name. Replay, prefill, quantisation alone.")
    ] = None,
    spec: Annotated[Path | None, typer.Option(dir_okay=False, help="The edit spec of the guard.")] = None,
    organism: Annotated[
        str | None, typer.Option(help="Instead of MODEL: one of the embedded organisms; all attacks are tried on it.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, help="A folder: figures and a table.")
    ] = Path("robustness"),
    attack: Annotated[list[Attack] | None, typer.Option(help="Only this attack. May be repeated.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer requests, steps and candidates: minutes.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(file_okay=False, exists=True, help="A folder with the field's sets and JailbreakBench's attacks."),
    ] = None,
    harmful: Annotated[
        list[str] | None, typer.Option(help="Ask MODEL these harmful requests, not the field's. May be repeated.")
    ] = None,
    calibrated_harmful: Annotated[
        list[str] | None, typer.Option(help="Harmful requests of the calibration, which are not asked.")
    ] = None,
    no_template: Annotated[bool, typer.Option("--no-template", help="Ask without the model's chat template.")] = False,
    device: Annotated[str, typer.Option(help="Torch device. auto: CUDA where there is one, else the CPU.")] = "auto",
    dtype: Annotated[
        ModelPrecision, typer.Option(help="auto: float32 on a CPU, the checkpoint's own type on a GPU.")
    ] = ModelPrecision.auto,
    seed: Annotated[int, typer.Option(min=0, help="Decides splits, samples and searches.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests answered together.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens generated for each answer.")] = 64,
    allow_refuted: Annotated[
        bool, typer.Option("--allow-refuted", help="Attack a spec that failed its held-out test all the same.")
    ] = False,
) -> None:
    """Attack a guarded model and say what breaks its guard: counts alone, no text and no suffix is shown or kept.

    Suffix search and fine-tuning would make a model more compliant: they run on the project's own organisms and on no
    other model. Interrupted, the same command goes on where it was.
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
            dtype=dtype.value,
            seed=seed,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            allow_refuted=allow_refuted,
        )
    )
