"""What a worker is told through vLLM's additional configuration, and what it refuses to be told."""

import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from guard.errors import RefutedSpecError, SpecError
from guard.vllm import settings as vllm_settings
from guard.vllm.settings import KEY, additional_config, load_spec, main, settings_in
from tests.guard.specs import REFUTED, evidence_with, small_spec


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "guard.safetensors"
    small_spec().save(path)
    return path


def changed(config: Any, **entries: object) -> Any:
    return {KEY: {name: value for name, value in (config[KEY] | entries).items() if value is not None}}


def test_the_configuration_survives_json_and_names_the_spec(path: Path) -> None:
    settings = settings_in(json.loads(json.dumps(additional_config(path))))
    assert load_spec(settings) == small_spec()


def test_a_worker_in_another_folder_finds_the_spec(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    settings = settings_in(additional_config(path.name))
    monkeypatch.chdir(os.sep)
    assert load_spec(settings) == small_spec()


@pytest.mark.parametrize("config", [None, {}, {"other": 1}, {KEY: None}, "neuron_guard"])
def test_a_configuration_without_a_spec_is_an_error(config: object) -> None:
    with pytest.raises(SpecError, match="without a spec"):
        settings_in(config)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"digest": "0"}, "neuron_guard.digest: String should match pattern"),
        ({"digest": None}, "neuron_guard.digest: Field required"),
        ({"spec": 3}, "neuron_guard.spec: Input should be a valid string"),
        ({"off": True}, "neuron_guard.off: Extra inputs are not permitted"),
        ({"allow_refuted": "yes"}, "neuron_guard.allow_refuted: Input should be a valid boolean"),
        ({"version": "0.0.0"}, "set up by neuron-guard 0.0.0"),
    ],
)
def test_an_entry_that_is_not_as_it_should_be_is_an_error(path: Path, entries: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        settings_in(changed(additional_config(path), **entries))


def test_a_spec_that_was_replaced_is_refused(path: Path) -> None:
    settings = settings_in(additional_config(path))
    small_spec(trigger=None).save(path)
    with pytest.raises(SpecError, match="it was changed since vLLM was set up"):
        load_spec(settings)


def test_a_refuted_spec_is_served_only_when_allowed_by_name(path: Path) -> None:
    small_spec(evidence=evidence_with(verdict=REFUTED)).save(path)
    with pytest.raises(RefutedSpecError, match="failed its held-out test"):
        additional_config(path)
    allowed = additional_config(path, allow_refuted=True)
    assert load_spec(settings_in(allowed)).evidence.verdict == REFUTED
    with pytest.raises(RefutedSpecError):
        load_spec(settings_in(changed(allowed, allow_refuted=False)))


def test_a_spec_that_edits_nothing_is_refused(path: Path) -> None:
    small_spec(layers=(), trigger=None, evidence=evidence_with(verdict=REFUTED)).save(path)
    with pytest.raises(SpecError, match="there is no layer to edit"):
        additional_config(path, allow_refuted=True)


def test_the_command_prints_what_vllm_is_to_be_given(path: Path) -> None:
    assert json.loads(main([str(path)])) == additional_config(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: "),
        (["--allow-refuted"], "usage: "),
        (["a", "b"], "usage: "),
        (["--help"], "usage: "),
        (["none"], "none could not be read"),
    ],
)
def test_the_command_exits_with_one_line_where_there_is_nothing_to_serve(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message) as stopped:
        main(arguments)
    assert "\n" not in str(stopped.value)


def test_without_an_installed_package_there_is_no_version_to_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> str:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(SpecError, match="not installed as a package"):
        vllm_settings.version()
