"""The sub-command `serve`. Importing this costs nothing: what it needs, it imports when it runs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from guard.load_options import Precision


class EngineChoice(StrEnum):
    """What runs the model."""

    auto = "auto"
    hf = "hf"
    vllm = "vllm"


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Path or hub name of a causal language model.")],
    spec: Annotated[Path, typer.Option(help="The edit spec to guard it with.")],
    engine: Annotated[
        EngineChoice, typer.Option(help="hf: the embedded engine. vllm: vLLM's own server. auto: vllm if installed.")
    ] = EngineChoice.auto,
    host: Annotated[str, typer.Option(help="Address to listen on; the default accepts this machine only.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="NEURON_GUARD_API_KEY",
            show_envvar=True,
            help="Key that clients must send; better set in the environment.",
        ),
    ] = None,
    served_model_name: Annotated[str | None, typer.Option(help="What clients call the model; default: MODEL.")] = None,
    device: Annotated[str, typer.Option(help="Torch device. auto: CUDA if there is one, otherwise the CPU.")] = "auto",
    dtype: Annotated[
        Precision, typer.Option(help="auto: float32 on a CPU, the checkpoint's own type on a GPU.")
    ] = "auto",
    completions: Annotated[
        bool,
        typer.Option(
            "--completions", help="Also serve plain prompts, which can begin an answer and so weaken the guard."
        ),
    ] = False,
    require_signature: Annotated[
        Path | None, typer.Option(metavar="PUBLIC", help="Serve only specs signed with this Ed25519 key, in PEM.")
    ] = None,
    allow_refuted: Annotated[
        bool, typer.Option("--allow-refuted", help="Serve a spec even if it failed its held-out test.")
    ] = False,
    max_batch: Annotated[
        int | None, typer.Option(min=1, help="Answers generated at once; default: 16, or what vLLM chooses.")
    ] = None,
    max_waiting: Annotated[int, typer.Option(min=1, help="Answers that may wait; more are refused with 429.")] = 256,
    max_context: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a prompt and its answer together; default: the model's limit.")
    ] = None,
    self_test_interval: Annotated[float, typer.Option(min=0.1, help="Seconds between self-tests of the guard.")] = 60.0,
) -> None:
    """Serve MODEL with its guard on, behind an OpenAI-compatible endpoint. Refuses to start if the guard would not act.

    With --engine vllm, options after -- go to vLLM as they are. If it does not start, it prints one line and
    exits with 2.
    """
    from pydantic import SecretStr

    from serve.settings import Settings
    from serve.start import serve as start

    start(
        Settings(
            model=model,
            spec=spec,
            engine=engine.value,
            host=host,
            port=port,
            api_key=None if api_key is None else SecretStr(api_key),
            served_model_name=served_model_name,
            device=device,
            dtype=dtype,
            completions=completions,
            require_signature=require_signature,
            allow_refuted=allow_refuted,
            max_batch=max_batch,
            max_waiting=max_waiting,
            max_context=max_context,
            self_test_interval=self_test_interval,
            engine_arguments=tuple(context.args),
        )
    )
