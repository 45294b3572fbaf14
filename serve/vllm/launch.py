"""Turns this process into vLLM's own server, with the guard's worker and the guard's gate in front of it.

vLLM is started as its users start it, by its own command line: nothing of it is patched, and what an operator adds to
that line reaches it untouched. What belongs to the guard stands last, where it wins. The spec is checked before vLLM is
started; that it fits the model, and acts, the worker checks (guard/vllm/worker.py) before vLLM answers anything.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from guard.vllm.settings import KEY, additional_config
from serve.http.errors import StartError
from serve.settings import Settings
from serve.signing import require_signature
from serve.vllm.gate import KEY_VARIABLE, SETTINGS_VARIABLE

MODULE = "serve.vllm.server"
# set here and nowhere else, or the server would not be guarded
OURS = ("--model", "--worker-cls", "--additional-config", "--served-model-name", "--api-key", "--host", "--port")
# how much memory vLLM takes
MEMORY = ("--kv-cache-memory-bytes", "--gpu-memory-utilization")
# from 0.33 on another HTTP server than Python's, before which no gate stands
NOT_GUARDED = ("VLLM_USE_RUST_FRONTEND", "VLLM_RUST_FRONTEND_PATH")


def launch(settings: Settings) -> NoReturn:
    """Serve with vLLM; NeuronGuardError, and nothing started, where the spec or an option is wrong."""
    key = settings.require_signature
    signed = None if key is None else require_signature(settings.spec, key).digest
    arguments = command(settings, signed)
    os.execve(sys.executable, arguments, environment(settings, os.environ))  # noqa: S606


def command(settings: Settings, signed: str | None = None) -> list[str]:
    """vLLM's command line; StartError for an option that would take the guard's place or that vLLM does not have.

    `signed` is the digest of the spec whose signature was checked: another one in its place by now is not served.
    """
    if settings.device != "auto":
        raise StartError("vLLM chooses its device when it is installed: leave --device out.")
    _check_not_ours(settings.engine_arguments)
    config = additional_config(settings.spec, allow_refuted=settings.allow_refuted)
    if signed not in (None, config[KEY]["digest"]):
        raise StartError(f"{settings.spec} is not the spec any more whose signature was checked: start again.")
    ours = {
        "--model": settings.model,
        "--served-model-name": settings.name,
        "--host": settings.host,
        "--port": str(settings.port),
        "--dtype": settings.dtype,
        "--max-num-seqs": settings.max_batch,
        "--max-model-len": settings.max_context,
        "--middleware": "serve.vllm.gate.VllmGate",
        "--worker-cls": "guard.vllm.worker.GuardedWorker",
        "--additional-config": json.dumps(config),
    }
    options = [text for name, value in ours.items() if value is not None for text in (name, str(value))]
    quiet = ["--enable-tokenizer-info-endpoint", "--disable-fastapi-docs", "--disable-uvicorn-access-log"]
    return [sys.executable, "-m", MODULE, *settings.engine_arguments, *quiet, *options]


def environment(settings: Settings, inherited: Mapping[str, str]) -> dict[str, str]:
    """The process's environment, and in it what the gate has to know; the API key apart from the rest."""
    key = settings.api_key
    shown = settings.model_copy(update={"api_key": None, "spec": settings.spec.resolve()})
    ours = {SETTINGS_VARIABLE: shown.model_dump_json()}
    if key is not None:
        ours[KEY_VARIABLE] = key.get_secret_value()
    passed = {name: value for name, value in inherited.items() if name not in NOT_GUARDED}
    return {**_cache_on_a_cpu(settings.engine_arguments), **passed, "VLLM_NO_USAGE_STATS": "1", **ours}


def _cache_on_a_cpu(arguments: Sequence[str]) -> dict[str, str]:
    """Room for keys and values on a CPU, where vLLM else asks for most of the memory, unless `arguments` say so."""
    if any(_name(argument) in MEMORY for argument in arguments):
        return {}  # the variable would win over the option
    return {"VLLM_CPU_KVCACHE_SPACE": "1"}  # GiB


def _check_not_ours(arguments: Sequence[str]) -> None:
    for argument in arguments:
        name = _name(argument)
        if name in OURS:
            raise StartError(f"{name} is set by neuron-guard serve: use its own option.")


def _name(argument: str) -> str:
    """The option that an argument names, as vLLM reads it."""
    return argument.partition("=")[0].replace("_", "-")
