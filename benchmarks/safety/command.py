"""The command line of `neuron-guard bench safety`. Importing this costs nothing: the rest is imported when it runs."""

import signal
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

INTERRUPTED = 130


class Suite(StrEnum):
    """How much is asked."""

    quick = "quick"
    full = "full"


class ModelPrecision(StrEnum):
    """The floating-point type that the model runs in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


def safety(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Path or hub name; behind an endpoint its served name.")
    ] = None,
    spec: Annotated[
        Path | None, typer.Option(dir_okay=False, help="The edit spec of the guard that is measured.")
    ] = None,
    organism: Annotated[
        str | None,
        typer.Option(help="Instead of MODEL: an organism, calibrated here and asked what its calibration held out."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, help="A folder: every answer, figures, a table, a page.")
    ] = Path("safety"),
    suite: Annotated[Suite, typer.Option(help="quick: at most 100 requests of each set. full: all of them.")] = (
        Suite.quick
    ),
    data: Annotated[
        Path | None,
        typer.Option(file_okay=False, exists=True, help="A folder with the sets. Else they come by hub name."),
    ] = None,
    harmful: Annotated[
        list[str] | None, typer.Option(help="Ask these harmful requests, not the field's. May be repeated.")
    ] = None,
    harmless: Annotated[
        list[str] | None, typer.Option(help="Ask these harmless requests, not the field's. May be repeated.")
    ] = None,
    calibrated_harmful: Annotated[
        list[str] | None,
        typer.Option(help="Harmful requests of the calibration: baselines learn from them, nothing asks them."),
    ] = None,
    calibrated_benign: Annotated[list[str] | None, typer.Option(help="Benign requests of the calibration.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Ask an OpenAI-compatible endpoint at this URL, up to its /v1.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="NEURON_GUARD_API_KEY", help="The endpoint's key.", show_default=False)
    ] = None,
    no_template: Annotated[bool, typer.Option("--no-template", help="Ask without the model's chat template.")] = False,
    device: Annotated[str, typer.Option(help="Torch device. auto: CUDA where there is one, else the CPU.")] = "auto",
    dtype: Annotated[
        ModelPrecision, typer.Option(help="auto: float32 on a CPU, the checkpoint's own type on a GPU.")
    ] = ModelPrecision.auto,
    seed: Annotated[int, typer.Option(min=0, help="Decides splits, samples and random neurons.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests answered together.")] = 20,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens generated for each answer.")] = 64,
    allow_refuted: Annotated[
        bool, typer.Option("--allow-refuted", help="Measure a spec that failed its held-out test all the same.")
    ] = False,
    no_tasks: Annotated[bool, typer.Option("--no-tasks", help="Leave out lm-eval's tasks, which take long.")] = False,
    no_curve: Annotated[
        bool, typer.Option("--no-curve", help="Leave out the weaker strengths of the guard, a third of the answers.")
    ] = False,
    judge: Annotated[
        str | None, typer.Option(help="Whose rates head the tables; all judges' are kept. Else the wording judge's.")
    ] = None,
    judge_url: Annotated[
        str | None,
        typer.Option(help="A language model behind this URL, up to its /v1, judges too: of refusal, of harm."),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="That model's name.")] = None,
    judge_key: Annotated[
        str | None, typer.Option(envvar="NEURON_GUARD_JUDGE_KEY", help="That model's key.", show_default=False)
    ] = None,
    judge_classifier: Annotated[
        str | None, typer.Option(help="A classifier by path or hub name judges too: HarmBench's, Llama Guard, a head.")
    ] = None,
    judge_prompt: Annotated[
        Path | None, typer.Option(dir_okay=False, exists=True, help="The prompt that the classifier was trained on.")
    ] = None,
    judge_refused_label: Annotated[
        list[str] | None, typer.Option(help="A label of the classifier's head that is a refusal. May be repeated.")
    ] = None,
    show_text: Annotated[
        bool,
        typer.Option("--show-text", help="Keep answers to harmful requests too; a hash stands for them otherwise."),
    ] = False,
) -> None:
    """Ask a model what the field asks, with the guard and without: harm, over-refusal, quality, and baselines.

    Interrupted, the same command goes on where it was.
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
        dtype=dtype.value,
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
        typer.secho("interrupted: run the same command again to go on", fg="yellow", err=True)
        raise typer.Exit(INTERRUPTED) from None
    typer.echo(f"wrote {output}")
