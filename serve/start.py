"""Starts a server, or says in one sentence why it must not start.

Everything that can be wrong is found before the port answers: the spec, its verdict, the model, the fit of the two,
whether the guard can be installed, whether it acts.
"""

import importlib.util
import socket
from pathlib import Path

import typer
import uvicorn
from transformers.utils.logging import disable_progress_bar

from serve.hf.engine import DEFAULT_BATCH, HfEngine
from serve.http.app import create_app
from serve.http.errors import StartError
from serve.loading import load_guarded
from serve.logs import write_json_lines
from serve.settings import Settings
from serve.vllm.launch import launch


def serve(settings: Settings) -> None:
    """Serve until the process is told to end; NeuronGuardError, and no server, where something is wrong."""
    has_vllm = importlib.util.find_spec("vllm") is not None
    if settings.engine == "vllm" and not has_vllm:
        raise StartError("vLLM is not installed: install it, or use --engine hf.")
    _check_folder(settings.model)
    if settings.engine == "vllm" or (settings.engine == "auto" and has_vllm):
        launch(settings.model_copy(update={"port": _free_port(settings)}))
    if settings.engine_arguments:
        raise StartError(f"{' '.join(settings.engine_arguments)}: the embedded engine takes no further options.")
    # stderr is for whoever runs the server: one line if it does not start
    disable_progress_bar()  # type: ignore[no-untyped-call]
    with bound_socket(settings.host, settings.port) as listener:
        engine = HfEngine(
            lambda: load_guarded(settings),
            max_batch=settings.max_batch or DEFAULT_BATCH,
            max_waiting=settings.max_waiting,
            self_test_interval=settings.self_test_interval,
            max_context=settings.max_context,
        )
        try:
            app = create_app(engine, settings)
            write_json_lines()
            server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
            typer.echo(f"{settings.name}, guarded by {engine.status.fingerprint}, at {address_of(listener)}")
            server.run(sockets=[listener])
        finally:
            engine.close()  # also where the application never began, or its thread would keep the process alive


def address_of(listener: socket.socket) -> str:
    """The URL that a bound socket answers at."""
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


def _check_folder(model: str) -> None:
    """StartError for a path at which there is nothing; anything else may be a hub name."""
    if model.startswith(("/", "./", "../", "~")) and not Path(model).expanduser().exists():
        raise StartError(f"there is no model folder {model}.")


def _free_port(settings: Settings) -> int:
    """The port for vLLM, which binds it itself; StartError if it is in use, before vLLM is loaded for nothing."""
    with bound_socket(settings.host, settings.port) as listener:
        return int(listener.getsockname()[1])


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that holds `host` and `port`, so that a port in use is found before a model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise StartError(f"{host}:{port} cannot be used: {error.strerror or error}.") from error
    return listener
