"""The sub-command `trace`, apart from neuron_guard.py; importing it costs nothing."""

from pathlib import Path
from typing import Annotated

import typer


def trace(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Path or hub name of a causal language model.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The request to trace.")],
    spec: Annotated[
        Path | None, typer.Option(help="Also show what the guard of this edit spec does on the prompt.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Take mediators' values from this prompt instead of their mean.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Set a neuron at every token: L23.N1187=0, 'L23.N1187<=0.5', 'L23.N1187>=-1'."),
    ] = None,
    refusal: Annotated[str | None, typer.Option(help="Text of a refusal; chosen if left out.")] = None,
    compliance: Annotated[str | None, typer.Option(help="Beginning of a complying reply; chosen if left out.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", dir_okay=False, help="Also write the trace to this file, as one HTML page."),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Also write all numbers to this file, as JSON.")
    ] = None,
    no_template: Annotated[
        bool, typer.Option("--no-template", help="Give the model the plain prompt, without its chat template.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens generated for each answer.")] = 32,
    allow_refuted: Annotated[
        bool, typer.Option("--allow-refuted", help="Trace a spec even if it failed its held-out test.")
    ] = False,
    show_text: Annotated[
        bool, typer.Option("--show-text", help="Show answers that do not refuse; otherwise they are left out.")
    ] = False,
    device: Annotated[str, typer.Option(help="Torch device. auto: CUDA if there is one, otherwise the CPU.")] = "auto",
) -> None:
    """Show where, by layer, module and neuron, MODEL turns to compliance or refusal on PROMPT.

    Where an edit makes the model lean more to compliance, only the change in nats is reported, without an answer.
    The page holds the prompt's tokens.
    """
    from rich.console import Console

    from calibration.runs.progress import shown_progress
    from calibration.trace.breaks import read_breaks
    from calibration.trace.measure import Question
    from calibration.trace.measure import trace as measured
    from calibration.trace.page import write_trace_json, write_trace_page
    from calibration.trace.terminal import trace_tables
    from guard import EditSpec
    from guard.loading import load_model

    wanted = tuple(sets or ())
    read_breaks(wanted)
    loaded = None if spec is None else EditSpec.load(spec)
    question = Question(
        name=model,
        prompt=prompt,
        against=against,
        compliance=compliance,
        refusal=refusal,
        sets=wanted,
        template=not no_template,
        max_new_tokens=max_new_tokens,
        show_text=show_text,
    )
    with shown_progress() as bars:
        with bars("model", None):
            network, tokenizer = load_model(model, device=device)
        found = measured(
            network, tokenizer, question, spec=loaded, spec_path=spec, allow_refuted=allow_refuted, progress=bars
        )
    console = Console()
    console.print(trace_tables(found))
    for path, write in ((output, write_trace_page), (json, write_trace_json)):
        if path is not None:
            write(path, found)
            console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)


def add_to(app: typer.Typer) -> None:
    """Add the sub-command to the command."""
    app.command()(trace)
