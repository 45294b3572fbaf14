"""vLLM's command line: the guard's part of it is there, last, and cannot be taken away."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from guard.spec.edit_spec import EditSpec
from neuron_guard import app
from serve.http.errors import StartError
from serve.settings import Settings
from serve.signing import make_keys, require_signature, sign
from serve.vllm.launch import command, environment, launch
from tests.guard.specs import REFUTED, evidence_with, small_spec
from tests.serve.served import ORGANISM

runner = CliRunner()


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "guard.safetensors"
    small_spec().save(path)
    return path


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What this process would have become."""
    became: list[tuple[Any, ...]] = []

    def become(*arguments: Any) -> None:
        became.append(arguments)
        raise SystemExit(0)

    monkeypatch.setattr("os.execve", become)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    return became


def option(line: list[str], name: str) -> str:
    return line[line.index(name) + 1]


def test_the_guard_is_on_vllms_line(spec: Path) -> None:
    line = command(Settings(model="folder", spec=spec, port=1234, served_model_name="name"))
    assert line[:3] == [sys.executable, "-m", "serve.vllm.server"]
    assert option(line, "--worker-cls") == "guard.vllm.worker.GuardedWorker"
    assert option(line, "--middleware") == "serve.vllm.gate.VllmGate"
    guard = json.loads(option(line, "--additional-config"))["neuron_guard"]
    assert (guard["spec"], guard["digest"]) == (str(spec), small_spec().digest)
    assert (option(line, "--port"), option(line, "--served-model-name")) == ("1234", "name")


def test_vllms_own_options_reach_it_before_ours(spec: Path) -> None:
    more = ("--tensor-parallel-size", "2", "--enforce-eager")
    line = command(Settings(model="folder", spec=spec, engine_arguments=more))
    assert line[3:6] == list(more)
    assert line.index("--worker-cls") > 5


@pytest.mark.parametrize("name", ["--worker-cls", "--worker_cls", "--additional-config=x", "--model", "--api-key"])
def test_an_option_that_would_take_the_guards_place_is_refused(spec: Path, name: str) -> None:
    with pytest.raises(StartError, match="set by neuron-guard serve"):
        command(Settings(model="folder", spec=spec, engine_arguments=(name, "x")))


def test_the_command_becomes_vllm(spec: Path, executed: list[tuple[Any, ...]]) -> None:
    arguments = ["serve", "folder", "--spec", str(spec), "--engine", "vllm", "--port", "0", "--api-key", "secret"]
    outcome = runner.invoke(app, [*arguments, "--", "--enforce-eager"])
    assert outcome.exit_code == 0, outcome.output
    ((program, line, environment),) = executed
    assert program == sys.executable
    assert "--enforce-eager" in line
    assert "secret" not in " ".join(line), "the key shows in the list of processes"
    assert environment["NEURON_GUARD_API_KEY"] == "secret"


@pytest.mark.parametrize("more", [["--engine", "vllm"], ["--engine", "auto"]])
def test_a_refuted_spec_never_gets_there(tmp_path: Path, executed: list[tuple[Any, ...]], more: list[str]) -> None:
    small_spec(evidence=evidence_with(verdict=REFUTED)).save(tmp_path / "refuted")
    outcome = runner.invoke(app, ["serve", "folder", "--spec", str(tmp_path / "refuted"), *more])
    assert (outcome.exit_code, executed) == (2, [])
    assert outcome.stderr.count("\n") == 1
    assert "failed its held-out test" in outcome.stderr


def test_a_port_in_use_is_found_before_vllm_is_loaded(spec: Path, executed: list[tuple[Any, ...]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        outcome = runner.invoke(app, ["serve", "folder", "--spec", str(spec), "--engine", "vllm", "--port", port])
    assert (outcome.exit_code, executed) == (2, [])
    assert "cannot be used" in outcome.stderr


def test_a_newcomer_on_a_cpu_need_not_divide_the_memory_and_an_operator_may(spec: Path) -> None:
    def cache(*more: str, **inherited: str) -> str | None:
        settings = Settings(model="folder", spec=spec, engine_arguments=more)
        return environment(settings, inherited).get("VLLM_CPU_KVCACHE_SPACE")

    assert cache() == "1"
    assert cache(VLLM_CPU_KVCACHE_SPACE="7") == "7"
    assert cache("--kv_cache_memory_bytes=1") is None
    assert cache("--gpu-memory-utilization", "0.5") is None


def test_a_server_that_is_not_pythons_cannot_be_asked_for(spec: Path) -> None:
    inherited = {"VLLM_USE_RUST_FRONTEND": "1", "VLLM_RUST_FRONTEND_PATH": "auto", "HOME": "kept"}
    passed = environment(Settings(model="folder", spec=spec), inherited)
    assert set(passed) & set(inherited) == {"HOME"}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_what_vllms_worker_finds_wrong_is_one_line(spec: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "neuron_guard", "serve", str(ORGANISM), "--spec", str(spec), "--engine", "vllm"]
    ours = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp_path)}
    ours |= {"VLLM_RPC_BASE_PATH": tempfile.gettempdir()}  # its sockets: their paths must be short
    outcome = subprocess.run(
        [*command, "--port", "0", "--", "--enforce-eager"],
        env=os.environ | ours,
        capture_output=True,
        text=True,
        cwd=ORGANISM.parents[3],
    )
    assert outcome.returncode == 2
    assert outcome.stderr.count("\n") == 1, outcome.stderr
    assert outcome.stderr.startswith("error: vLLM did not start: the spec was made on another model"), outcome.stderr


def test_without_vllm_it_is_refused(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = runner.invoke(app, ["serve", "folder", "--spec", str(spec), "--engine", "vllm"])
    assert outcome.exit_code == 2
    assert "vLLM is not installed" in outcome.stderr


def test_a_spec_exchanged_after_its_signature_was_checked_is_not_served(
    spec: Path, executed: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = spec.with_name("key")
    make_keys(key, public := spec.with_name("key.pub"))
    sign(spec, key)
    settings = Settings(model="folder", spec=spec, require_signature=public)
    with pytest.raises(SystemExit):
        launch(settings)
    assert len(executed) == 1

    def exchanging(*arguments: Any) -> EditSpec:
        signed = require_signature(*arguments)
        small_spec(trigger=None).save(spec)
        return signed

    monkeypatch.setattr("serve.vllm.launch.require_signature", exchanging)
    with pytest.raises(StartError, match="is not the spec any more whose signature was checked"):
        launch(settings)
    assert len(executed) == 1
