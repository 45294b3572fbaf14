"""A server that must not start says why in one line and exits with 2; one that may, serves."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from guard.errors import SelfTestError
from guard.runtime import selftest
from guard.spec.edit_spec import EditSpec
from neuron_guard import app
from serve.settings import Settings
from tests.guard.specs import REFUTED, evidence_with
from tests.serve.served import ORGANISM, organism_spec

runner = CliRunner()
REFUTED_EVIDENCE = evidence_with(neurons=(), mediators=(), verdict=REFUTED)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Servers that were started; none of them runs."""
    servers: list[Any] = []
    monkeypatch.setattr("serve.start.write_json_lines", lambda: None)
    monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets: servers.append((server, sockets)))
    return servers


def refused(tmp_path: Path, spec: EditSpec | None, *more: str, model: str = str(ORGANISM)) -> str:
    """The one line that `serve` ends with."""
    path = tmp_path / "guard.safetensors"
    if spec is not None:
        spec.save(path)
    outcome = runner.invoke(app, ["serve", model, "--spec", str(path), "--engine", "hf", "--port", "0", *more])
    assert outcome.exit_code == 2, outcome.output
    assert outcome.stderr.count("\n") == 1, outcome.stderr
    return outcome.stderr


def test_it_starts_with_a_spec_that_fits(started: list[Any], tmp_path: Path) -> None:
    organism_spec().save(tmp_path / "guard.safetensors")
    arguments = ["serve", str(ORGANISM), "--spec", str(tmp_path / "guard.safetensors"), "--engine", "hf", "--port", "0"]
    outcome = runner.invoke(app, arguments)
    assert (outcome.exit_code, len(started)) == (0, 1)
    assert outcome.stdout.startswith(
        f"{ORGANISM}, guarded by guard-{organism_spec().digest[:16]}, at http://127.0.0.1:"
    )


def test_no_spec(started: list[Any], tmp_path: Path) -> None:
    assert "could not be read" in refused(tmp_path, None)
    assert not started


def test_a_damaged_spec(started: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "damaged.safetensors"
    organism_spec().save(path)
    path.write_bytes(path.read_bytes()[:-4])
    outcome = runner.invoke(app, ["serve", str(ORGANISM), "--spec", str(path), "--engine", "hf", "--port", "0"])
    assert (outcome.exit_code, not started) == (2, True)
    assert "is not a valid edit spec" in outcome.stderr


def test_a_refuted_verdict(started: list[Any], tmp_path: Path) -> None:
    assert "pass --allow-refuted" in refused(tmp_path, organism_spec(evidence=REFUTED_EVIDENCE))
    assert not started


def test_a_refuted_verdict_that_is_allowed_by_name(started: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "guard.safetensors"
    organism_spec(evidence=REFUTED_EVIDENCE).save(path)
    arguments = ["serve", str(ORGANISM), "--spec", str(path), "--engine", "hf", "--port", "0", "--allow-refuted"]
    assert runner.invoke(app, arguments).exit_code == 0
    assert len(started) == 1


def test_another_model(started: list[Any], tmp_path: Path) -> None:
    line = refused(tmp_path, organism_spec(), model=str(ORGANISM.parent / "redundant"))
    assert "made on another model" in line
    assert not started


def test_the_same_architecture_with_other_weights(started: list[Any], tmp_path: Path) -> None:
    spec = organism_spec()
    other = spec.model_copy(update={"model": spec.model.model_copy(update={"mlp_digest": "0" * 64})})
    assert "the MLP weights" in refused(tmp_path, other)
    assert not started


@pytest.mark.parametrize("digest", ["tokenizer_digest", "chat_template_digest"])
def test_another_tokenizer_or_chat_template(started: list[Any], tmp_path: Path, digest: str) -> None:
    spec = organism_spec()
    other = spec.model_copy(update={"model": spec.model.model_copy(update={digest: "0" * 64})})
    assert "made on another model" in refused(tmp_path, other)
    assert not started


def test_no_model(started: list[Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "cannot load" in refused(tmp_path, organism_spec(), model=str(tmp_path / "empty"))
    assert not started


def test_a_self_test_that_fails(started: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise SelfTestError("the edit does not act; nothing was installed.")

    monkeypatch.setattr(selftest, "check", fails)
    assert "the edit does not act" in refused(tmp_path, organism_spec())
    assert not started


def test_a_missing_signature(started: list[Any], tmp_path: Path) -> None:
    private = tmp_path / "key"
    assert runner.invoke(app, ["keygen", str(private)]).exit_code == 0
    assert "sign" in refused(tmp_path, organism_spec(), "--require-signature", f"{private}.pub")
    assert not started


def test_a_signed_spec_starts(started: list[Any], tmp_path: Path) -> None:
    private, path = tmp_path / "key", tmp_path / "guard.safetensors"
    organism_spec().save(path)
    assert runner.invoke(app, ["keygen", str(private)]).exit_code == 0
    assert runner.invoke(app, ["sign", str(path), "--key", str(private)]).exit_code == 0
    arguments = ["serve", str(ORGANISM), "--spec", str(path), "--engine", "hf", "--port", "0"]
    assert runner.invoke(app, [*arguments, "--require-signature", f"{private}.pub"]).exit_code == 0
    assert len(started) == 1


def test_a_port_in_use_is_found_before_the_model_is_loaded(started: list[Any], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        line = refused(tmp_path, organism_spec(), "--port", str(taken.getsockname()[1]), model="nowhere")
    assert "cannot be used" in line
    assert not started


def test_an_unknown_host(started: list[Any], tmp_path: Path) -> None:
    assert "cannot be used" in refused(tmp_path, organism_spec(), "--host", "no.such.host.invalid")


def test_an_unknown_device(started: list[Any], tmp_path: Path) -> None:
    assert "device" in refused(tmp_path, organism_spec(), "--device", "abacus")


def test_options_that_the_embedded_engine_does_not_have(started: list[Any], tmp_path: Path) -> None:
    assert "--max-num-seqs" in refused(tmp_path, organism_spec(), "--", "--max-num-seqs", "4")
    assert not started


def test_the_api_key_does_not_show_in_the_settings() -> None:
    settings = Settings(model="m", spec=Path("s"), api_key=SecretStr("secret"))
    assert "secret" not in repr(settings)


@pytest.mark.parametrize("engine", ["hf", "vllm"])
def test_a_model_folder_that_is_not_there_is_found_at_once(
    started: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert "there is no model folder" in refused(
        tmp_path, organism_spec(), "--engine", engine, model=str(tmp_path / "nowhere")
    )


def test_weights_that_are_cut_off(started: list[Any], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(ORGANISM, model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "as a path or hub name of a causal language model" in refused(tmp_path, organism_spec(), model=str(model))
    assert not started


def test_an_architecture_that_transformers_does_not_know(started: list[Any], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(ORGANISM, model)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps(config | {"model_type": "unheard-of"}), encoding="utf-8")
    assert "as a path or hub name of a causal language model" in refused(tmp_path, organism_spec(), model=str(model))
    assert not started
