"""The command line of `neuron-guard bench safety`. Importing this costs nothing: the rest is imported when it runs."""

import signal
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
    JudgeClassifier,
    JudgeKey,
    JudgeModel,
    JudgePrompt,
    JudgeRefusedLabel,
    JudgeUrl,
    MaxNewTokens,
    ModelDtype,
    NoTemplate,
    Seed,
    Spec,
)

INTERRUPTED = 130


class Suite(StrEnum):
    """How much is asked."""

    quick = "quick"
    full = "full"


def safety(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Path or hub name; with --endpoint, the served name.")
    ] = None,
    spec: Spec = None,
    organism: Annotated[
        str | None,
        typer.Option(
            help="Instead of MODEL: an organism. It is calibrated first and asked what its calibration held out."
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", file_okay=False, help="Write every answer, figures, a table and a page to this folder."
        ),
    ] = Path("safety"),
    suite: Annotated[
        Suite, typer.Option(help="quick: at most 100 requests of each set, and of all published attacks. full: all.")
    ] = (Suite.quick),
    data: Data = None,
    harmful: Harmful = None,
    harmless: Annotated[
        list[str] | None, typer.Option(help="Ask these harmless requests instead of the field's. May be repeated.")
    ] = None,
    calibrated_harmful: CalibratedHarmful = None,
    calibrated_benign: Annotated[list[str] | None, typer.Option(help="Benign requests of the calibration.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Ask an OpenAI-compatible endpoint at this URL, up to its /v1.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="NEURON_GUARD_API_KEY", help="The endpoint's key.", show_default=False)
    ] = None,
    no_template: NoTemplate = False,
    device: Device = "auto",
    dtype: ModelDtype = "auto",
    seed: Seed = 0,
    batch_size: BatchSize = 20,
    max_new_tokens: MaxNewTokens = 64,
    allow_refuted: AllowRefuted = False,
    no_tasks: Annotated[bool, typer.Option("--no-tasks", help="Skip lm-eval's tasks, which take long.")] = False,
    no_curve: Annotated[
        bool, typer.Option("--no-curve", help="Skip the weaker strengths of the guard, a third of the answers.")
    ] = False,
    judge: Annotated[
        str | None,
        typer.Option(help="Show this judge's rates first; all judges' are kept. Default: the wording judge."),
    ] = None,
    judge_url: JudgeUrl = None,
    judge_model: JudgeModel = None,
    judge_key: JudgeKey = None,
    judge_classifier: JudgeClassifier = None,
    judge_prompt: JudgePrompt = None,
    judge_refused_label: JudgeRefusedLabel = None,
    show_text: Annotated[
        bool,
        typer.Option("--show-text", help="Keep answers to harmful requests too; otherwise a hash replaces them."),
    ] = False,
) -> None:
    """Measure a model on the field's prompt sets, with and without the guard: harm, over-refusal, quality, baselines.

    After an interruption the same command resumes.
    """
    from benchmarks.safety.options import Options
    from benchmarks.safety.run import run

    options = Options(
        model=model,
        organism=organism,
        spec=spec,
        output=output,
        suite=suite.value,
        data=data,
        harmful=tuple(harmful or ()),
        harmless=tuple(harmless or ()),
        calibrated_harmful=tuple(calibrated_harmful or ()),
        calibrated_benign=tuple(calibrated_benign or ()),
        endpoint=endpoint,
        key=api_key,
        template=not no_template,
        device=device,
        dtype=dtype,
        seed=seed,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        allow_refuted=allow_refuted,
        show_text=show_text,
        tasks=not no_tasks,
        curve=not no_curve,
        judge=judge,
        judge_url=judge_url,
        judge_model=judge_model,
        judge_key=judge_key,
        judge_classifier=judge_classifier,
        judge_prompt=judge_prompt,
        judge_refused_label=tuple(judge_refused_label or ()),
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is done is kept either way
    try:
        run(options)
    except KeyboardInterrupt:
        typer.secho("interrupted: run the same command again to resume", fg="yellow", err=True)
        raise typer.Exit(INTERRUPTED) from None
    typer.echo(f"wrote {output}")
