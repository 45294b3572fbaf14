"""The command: what it hands on, how it fails, what its exit codes mean."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from calibration.closing import closing
from calibration.options import CalibrationOptions
from guard.errors import NeuronGuardError
from guard.spec.edit_spec import EditSpec
from guard.spec.fingerprint import fingerprint
from neuron_guard import app
from tests.calibration.example_spec import example_spec
from tests.conftest import TinyModel

runner = CliRunner()
ARGUMENTS = ["calibrate", "model", "--harmful", "h.csv", "--benign", "b.csv"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[CalibrationOptions]:
    """The options of each calibration asked for; none is run, all come out effective."""
    return replace_pipeline(monkeypatch, lambda: example_spec())


def replace_pipeline(monkeypatch: pytest.MonkeyPatch, outcome: Any) -> list[CalibrationOptions]:
    seen: list[CalibrationOptions] = []
    pipeline: Any = ModuleType("calibration.pipeline")

    def calibrate(options: CalibrationOptions) -> EditSpec:
        seen.append(options)
        spec: EditSpec = outcome()
        return spec

    pipeline.calibrate = calibrate
    monkeypatch.setitem(sys.modules, "calibration.pipeline", pipeline)
    return seen


def raising(error: BaseException) -> Any:
    def outcome() -> EditSpec:
        raise error

    return outcome


def test_every_option_reaches_the_calibration(asked: list[CalibrationOptions]) -> None:
    more = ["--jailbreak", "j.json", "--trigger", "never", "-o", "o.safetensors", "--report", "r.html", "--no-template"]
    more += ["--device", "cpu", "--dtype", "bfloat16", "--seed", "7", "--batch-size", "3", "--max-new-tokens", "5"]
    more += ["--max-requests", "9", "--budget-kl", "0.5", "--budget-refusal", "0.25", "--max-neurons", "2"]
    assert runner.invoke(app, ARGUMENTS + more).exit_code == 0
    assert asked == [
        CalibrationOptions(
            model="model",
            harmful="h.csv",
            benign="b.csv",
            jailbreak="j.json",
            trigger="never",
            output=Path("o.safetensors"),
            report=Path("r.html"),
            template=False,
            device="cpu",
            dtype="bfloat16",
            seed=7,
            batch_size=3,
            max_new_tokens=5,
            max_requests=9,
            budget_kl=0.5,
            budget_refusal=0.25,
            max_neurons=2,
        )
    ]


def test_the_command_and_the_options_have_the_same_defaults(asked: list[CalibrationOptions]) -> None:
    runner.invoke(app, ARGUMENTS)
    assert asked == [CalibrationOptions(model="model", harmful="h.csv", benign="b.csv")]


def test_a_calibration_ends_with_the_five_lines_and_nothing_else(asked: list[CalibrationOptions]) -> None:
    output = runner.invoke(app, ARGUMENTS, env={"COLUMNS": "40"}).stdout
    assert output.splitlines() == list(closing(example_spec(), asked[0]))


@pytest.mark.parametrize("option", ["--verbose", "-v"])
def test_the_tables_come_before_the_five_lines_where_they_are_asked_for(
    option: str, asked: list[CalibrationOptions]
) -> None:
    lines = runner.invoke(app, [*ARGUMENTS, option]).stdout.splitlines()
    assert lines[-5:] == list(closing(example_spec(), asked[0]))
    tables = "\n".join(lines[:-5])
    assert all(title in tables for title in ("Edits", "Evidence by neuron", "Guard off and on", "Verdict"))


def test_a_refuted_spec_exits_with_one_and_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_pipeline(monkeypatch, lambda: example_spec(effective=False))
    outcome = runner.invoke(app, ARGUMENTS)
    assert outcome.exit_code == 1
    assert "refuted" in outcome.stdout
    assert "error" not in outcome.stderr


def test_an_expected_error_is_one_line_on_stderr_and_exits_with_two(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_pipeline(monkeypatch, raising(NeuronGuardError("h.csv, row 3: [bold]'prompt' is empty " + "x" * 200)))
    outcome = runner.invoke(app, ARGUMENTS)
    assert outcome.exit_code == 2
    assert outcome.stderr == "error: h.csv, row 3: [bold]'prompt' is empty " + "x" * 200 + "\n"
    assert outcome.stdout == ""


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_pipeline(monkeypatch, raising(ZeroDivisionError()))
    assert isinstance(runner.invoke(app, ARGUMENTS).exception, ZeroDivisionError)


def test_an_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_pipeline(monkeypatch, raising(KeyboardInterrupt()))
    outcome = runner.invoke(app, ARGUMENTS)
    assert outcome.exit_code == 130
    assert "run the same command again" in outcome.stderr


@pytest.mark.parametrize(
    "more",
    [
        ["--trigger", "maybe"],
        ["--batch-size", "0"],
        ["--budget-refusal", "2"],
        ["--budget-kl", "-1"],
        ["--dtype", "int8"],
    ],
)
def test_an_option_out_of_range_is_refused_before_anything_runs(
    more: list[str], asked: list[CalibrationOptions]
) -> None:
    assert runner.invoke(app, ARGUMENTS + more).exit_code == 2
    assert asked == []


@pytest.mark.parametrize(
    "command",
    [[], ["calibrate"], ["inspect"], ["fold"], ["bench"]]
    + [["bench", name] for name in ("localisation", "shuffled", "effects", "op", "generate")],
)
def test_every_command_and_each_of_its_options_is_explained(command: list[str]) -> None:
    outcome = runner.invoke(app, [*command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert outcome.exit_code == 0
    for line in outcome.output.splitlines():
        if line.strip("│ *").startswith("--"):
            assert len(line.strip("│ *").split()) > 4, line


def test_help_does_not_wait_for_torch() -> None:
    import subprocess

    light = "{'guard', 'guard.load_options'}"
    code = (
        "import sys, neuron_guard; assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules); "
        f"assert {{name for name in sys.modules if name.split('.')[0] == 'guard'}} <= {light}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


@pytest.fixture
def saved_model(tmp_path: Path, tiny_model: TinyModel) -> tuple[str, EditSpec]:
    """A tiny model on disk and a spec that was made on it."""
    model = tiny_model("llama", layers=6, d_model=16, d_ff=512, vocabulary=61)
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer(WordLevel({"<unk>": 0, "hi": 1}, "<unk>"))
    )
    tokenizer.chat_template = "{{ messages[0].content }}"
    folder = str(tmp_path / "model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    spec = example_spec()
    identity = fingerprint(model, [edit.layer for edit in spec.layers])
    return folder, spec.model_copy(update={"model": identity})


def test_inspect_shows_a_spec_and_that_it_fits(saved_model: tuple[str, EditSpec], tmp_path: Path) -> None:
    folder, spec = saved_model
    spec.save(tmp_path / "guard.safetensors")
    outcome = runner.invoke(app, ["inspect", str(tmp_path / "guard.safetensors"), "--model", folder])
    assert outcome.exit_code == 0, outcome.output
    assert f"fits {folder}" in outcome.output
    assert "effective" in outcome.output


def test_inspect_says_what_differs_on_another_model(saved_model: tuple[str, EditSpec], tmp_path: Path) -> None:
    folder, _ = saved_model
    example_spec().save(tmp_path / "guard.safetensors")
    outcome = runner.invoke(app, ["inspect", str(tmp_path / "guard.safetensors"), "--model", folder])
    assert outcome.exit_code == 2
    last = outcome.stderr.splitlines()[-1]
    assert last.startswith("error: the spec was made on another model: ")
    assert "vocab_size" in last


@pytest.mark.parametrize("content", [None, b"", b"not a spec", b"\xff" * 64])
def test_inspect_of_no_spec_is_one_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "guard.safetensors"
    if content is not None:
        path.write_bytes(content)
    outcome = runner.invoke(app, ["inspect", str(path)])
    assert outcome.exit_code == 2
    assert outcome.stderr.startswith("error: ")
    assert outcome.stderr.count("\n") == 1


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    example_spec().save(tmp_path / "guard.safetensors")
    (tmp_path / "empty").mkdir()
    outcome = runner.invoke(app, ["inspect", str(tmp_path / "guard.safetensors"), "--model", str(tmp_path / "empty")])
    assert outcome.exit_code == 2
    assert outcome.stderr.startswith("error: cannot load ")
    assert outcome.stderr.count("\n") == 1
