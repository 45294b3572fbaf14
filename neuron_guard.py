"""The command `neuron-guard`: one sub-command a function, each importing what it needs when it runs."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from guard.load_options import DeviceMap, Precision, WrittenPrecision

FAILED, REFUTED, INTERRUPTED = 2, 1, 130


class OneLineErrors(TyperGroup):
    """A group whose expected errors end in one line on stderr and exit code 2, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the sub-command."""
        try:
            return super().invoke(ctx)
        except expected_errors() as error:
            fail(str(error))


def expected_errors() -> tuple[type[BaseException], ...]:
    """The project's own errors; none before the package that defines them is imported, which takes seconds."""
    errors = sys.modules.get("guard.errors")
    return (errors.NeuronGuardError,) if errors else ()


def fail(reason: str) -> NoReturn:
    """Print what is wrong in red and exit with 2."""
    Console(stderr=True, soft_wrap=True).print(f"error: {reason}", style="red", markup=False, highlight=False)
    raise typer.Exit(FAILED)


class TriggerChoice(StrEnum):
    """Whether the edit waits for a trigger."""

    auto = "auto"
    always = "always"
    never = "never"


app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Find the late-layer MLP neurons through which a model starts to answer harmful requests, and clamp them.",
)
bench = typer.Typer(
    cls=OneLineErrors, no_args_is_help=True, help="Measure neuron-guard on models whose gates are known."
)
app.add_typer(bench, name="bench")


def add_commands() -> None:
    """Add the sub-commands that are defined in the folders; those files import as little as this one."""
    from benchmarks.commands import add_to as add_benchmarks
    from calibration.trace.command import add_to as add_trace
    from serve.commands import add_to

    add_trace(app)
    add_to(app)
    add_benchmarks(bench)


Model = Annotated[str, typer.Argument(metavar="MODEL", help="Path or hub name of a causal language model.")]
Device = Annotated[str, typer.Option(help="Torch device. auto: CUDA if there is one, otherwise the CPU.")]
Dtype = Annotated[Precision, typer.Option(help="auto: float32 on a CPU, the checkpoint's own type on a GPU.")]
Seed = Annotated[int, typer.Option(min=0, help="Decides splits, samples and searches.")]


def print_version(wanted: bool) -> None:
    """Print the version and exit, where it is wanted."""
    if wanted:
        from importlib.metadata import version

        typer.echo(version("neuron-guard"))
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Find the late-layer MLP neurons through which a model starts to answer harmful requests, and clamp them."""


@app.command()
def calibrate(
    model: Model,
    harmful: Annotated[str, typer.Option(help="Harmful requests: csv, json, jsonl, or a hub data set.")],
    benign: Annotated[str, typer.Option(help="Benign requests, as many as the harmful ones or more.")],
    jailbreak: Annotated[
        str | None,
        typer.Option(help="Jailbreaks: rows with `template` holding {prompt}, or rows with `goal` and `prompt`."),
    ] = None,
    trigger: Annotated[
        TriggerChoice,
        typer.Option(help="Edit only tokens that a read-out of an early layer picks. auto: if it is better."),
    ] = TriggerChoice.auto,
    output: Annotated[
        Path, typer.Option("--output", "-o", dir_okay=False, help="Write the edit spec to this file.")
    ] = Path("guard.safetensors"),
    report: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Also write the evidence to this file, as one HTML page.")
    ] = None,
    no_template: Annotated[
        bool, typer.Option("--no-template", help="Give the model plain prompts, without its chat template.")
    ] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    device_map: Annotated[
        DeviceMap | None, typer.Option(help="Spread a model that is too large for one device over several.")
    ] = None,
    max_memory: Annotated[
        float | None,
        typer.Option(min=0.001, help="GiB of activations kept in memory; the rest is kept in files."),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(min=1, help="Share the prompts among this many processes, each with its own copy of the model."),
    ] = 1,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests in one forward pass.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens generated per request.")] = 32,
    max_requests: Annotated[
        int | None, typer.Option(min=1, help="Use at most this many requests of each set, drawn by seed.")
    ] = None,
    budget_kl: Annotated[
        float, typer.Option(min=1e-9, help="Highest mean KL on benign requests, nats per token.")
    ] = 0.01,
    budget_refusal: Annotated[
        float, typer.Option(min=0, max=1, help="Highest rise of the benign refusal rate.")
    ] = 0.01,
    max_neurons: Annotated[int, typer.Option(min=1, help="Largest number of neurons edited.")] = 64,
    analyses: Annotated[
        str,
        typer.Option(
            help="Analyses of the gate for the report: all, none, or names separated by commas. An unknown name is "
            "answered with the list."
        ),
    ] = "all",
    show_text: Annotated[
        bool, typer.Option("--show-text", help="Show prompts and answers in the report; otherwise they are redacted.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also print the tables of the evidence, as inspect does.")
    ] = False,
) -> None:
    """Find a gate on MODEL, write it with its evidence, and report whether it works.

    Exits with 0 if the verdict is effective, 1 if it is refuted (the spec is written anyway), 2 on an error.
    After an interruption the same command resumes.
    """
    from calibration.closing import closing
    from calibration.options import CalibrationOptions
    from calibration.pipeline import calibrate as run
    from calibration.runs.launch import launched
    from calibration.runs.processes import is_first
    from calibration.summary import summary

    options = CalibrationOptions(
        model=model,
        harmful=harmful,
        benign=benign,
        jailbreak=jailbreak,
        trigger=trigger.value,
        output=output,
        report=report,
        template=not no_template,
        device=device,
        device_map=device_map,
        max_memory=max_memory,
        dtype=dtype,
        seed=seed,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        max_requests=max_requests,
        budget_kl=budget_kl,
        budget_refusal=budget_refusal,
        max_neurons=max_neurons,
        analyses=analyses,
        show_text=show_text,
    )
    try:
        with launched(processes):
            spec, speaks = run(options), is_first()
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted: run the same command again to resume", style="yellow")
        raise typer.Exit(INTERRUPTED) from None
    if not speaks:
        return
    if verbose:
        Console().print(summary(spec))
    typer.echo("\n".join(closing(spec, options)))
    if spec.evidence.verdict.outcome != "effective":
        raise typer.Exit(REFUTED)


@app.command()
def inspect(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="An edit spec, as calibrate writes it.")],
    model: Annotated[str | None, typer.Option(help="Also check whether the spec fits this model.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Show what SPEC edits, how strong its evidence is, the verdict, and whether it fits a model.

    Exits with 2 if the file is not a valid spec or does not fit the model.
    """
    from calibration.summary import summary
    from guard import EditSpec

    loaded = EditSpec.load(spec)
    console = Console()
    console.print(summary(loaded))
    if model is None:
        return
    from guard.loading import load_model
    from guard.spec.fingerprint import verify

    network, tokenizer = load_model(model, device=device, dtype=dtype)
    verify(loaded, network, tokenizer)
    console.print(f"fits {model}", style="green", highlight=False, markup=False, soft_wrap=True)


@app.command()
def fold(
    model: Model,
    spec: Annotated[Path, typer.Option(help="The edit spec whose edit is written into the weights.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, help="Write the model to this folder, new or empty.")
    ],
    allow_refuted: Annotated[
        bool, typer.Option("--allow-refuted", help="Fold a spec even if it failed its held-out test.")
    ] = False,
    device: Device = "auto",
    dtype: Annotated[
        WrittenPrecision, typer.Option(help="Type of the written weights; the spec must fit the model in this type.")
    ] = "checkpoint",
) -> None:
    """Write a copy of MODEL that has the edit of a spec in its weights, for servers that cannot run the guard.

    Scales and ablations can be folded. A clamp or a trigger cannot: it is refused, and the exit code is 2.
    """
    from guard import EditSpec
    from guard.loading import load_model
    from serve.fold import check_checkpoint, check_request, write_folded

    loaded = EditSpec.load(spec)
    check_request(loaded, output, allow_refuted=allow_refuted)
    check_checkpoint(model)
    network, tokenizer = load_model(model, device=device, dtype=dtype)
    record = write_folded(network, tokenizer, loaded, output, source=model, allow_refuted=allow_refuted)
    layers = ", ".join(map(str, record.layers))
    typer.echo(f"folded {record.neurons} neurons of layers {layers}")
    typer.echo(f"loaded again, its logits are within {record.logit_difference:.1g} of the guarded model's")
    if record.bias_entry is not None:
        typer.echo(f"{record.bias_entry} is switched on in its configuration: a server must read those biases")
    typer.echo(f"wrote {output}")


add_commands()


if __name__ == "__main__":
    app()
