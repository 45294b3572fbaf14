"""Calibration from end to end on organisms: what is written, what survives interruptions, what never leaks."""

import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from benchmarks.organisms.catalogue import load_truth
from calibration import pipeline
from calibration.analyses.registry import ANALYSES, NAMES
from calibration.judging.behaviour import generate
from calibration.options import CalibrationOptions
from calibration.pipeline import calibrate
from calibration.prompts import material as making
from calibration.prompts.request_sets import OverlapError
from calibration.prompts.rows import PromptFileError
from calibration.runs.identity import weights_digest
from calibration.runs.store import OutputError, Store, alone_in
from calibration.search import findings as finding
from calibration.search import gate as searching
from guard import EditSpec, NeuronGuardError, install
from guard.errors import RefutedSpecError, SpecError
from guard.spec.claim import Claim
from tests.calibration.organisms import BENIGN, HARMFUL, organism, organism_path, prompts, requests
from tests.conftest import make_tiny_model

COUNT = 60


def options_for(name: str, folder: Path, **changed: Any) -> CalibrationOptions:
    usual: dict[str, Any] = {
        "model": organism_path(name),
        "harmful": HARMFUL,
        "benign": BENIGN,
        "output": folder / "guard.safetensors",
        "report": folder / "report.html",
        "max_requests": COUNT,
        "max_new_tokens": 16,
    }
    return CalibrationOptions(**usual | changed)


@dataclass(frozen=True)
class Done:
    options: CalibrationOptions
    spec: EditSpec
    left: list[str] = field(default_factory=list)


def done(name: str, folder: Path, **changed: Any) -> Done:
    options = options_for(name, folder, **changed)
    spec = calibrate(options)
    return Done(options, spec, sorted(path.name for path in folder.iterdir()))


@pytest.fixture(scope="module")
def effective(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A whole calibration of the two-layer organism, without interruption."""
    return done("two-layer", tmp_path_factory.mktemp("effective"))


@pytest.fixture(scope="module")
def refuted(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A whole calibration of the organism that has no gate."""
    return done("no-refusal", tmp_path_factory.mktemp("refuted"), max_requests=36)


def test_the_gate_of_an_organism_is_found_and_effective(effective: Done) -> None:
    assert effective.spec.evidence.verdict.outcome == "effective"
    planted = {(layer, n) for layer, neurons in load_truth("two-layer").planted.items() for n in neurons}
    found = {(edit.layer, neuron) for edit in effective.spec.layers for neuron in edit.neurons}
    assert len(planted & found) >= 4


def test_the_written_spec_is_the_one_returned_and_the_work_folder_is_gone(effective: Done) -> None:
    assert EditSpec.load(effective.options.output) == effective.spec
    assert effective.left == ["guard.safetensors", "report.html"]


def test_the_written_spec_has_the_numbers_of_every_analysis_and_the_claims_that_they_make(effective: Done) -> None:
    analyses = EditSpec.load(effective.options.output).evidence.analyses
    assert analyses is not None
    assert set(analyses.numbers) == set(NAMES)
    made: list[Claim] = []
    for analysis in ANALYSES:
        measured = analysis.read(analyses)
        assert measured is not None
        assert {claim.name for claim in measured.claims} <= set(analysis.claims)
        made += measured.claims
    assert tuple(made) == analyses.claims


def test_the_written_spec_makes_the_model_refuse_fresh_harm_and_answer_as_before(effective: Done) -> None:
    model, tokenizer = organism("two-layer")
    harmful, benign = prompts(HARMFUL, 256)[-16:], prompts(BENIGN, 400)[-16:]

    def said(asked: tuple[tuple[int, ...], ...]) -> tuple[str, ...]:
        return generate(model, tokenizer, asked, max_new_tokens=20, batch_size=16).texts

    before = said(harmful), said(benign)
    with install(model, EditSpec.load(effective.options.output), tokenizer=tokenizer):
        after = said(harmful), said(benign)
    assert all(text.startswith("Sure") for text in before[0])
    refusals = {request.refusal for request in requests(HARMFUL)}
    assert sum(text in refusals for text in after[0]) >= 15
    assert sum(one == other for one, other in zip(before[1], after[1], strict=True)) >= 15
    assert said(harmful) == before[0]


def test_the_spec_tells_where_it_comes_from(effective: Done) -> None:
    provenance = effective.spec.provenance
    assert set(provenance.data) == {"harmful", "benign"}
    assert set(provenance.versions) == {"python", *pipeline.PACKAGES}
    assert provenance.arguments["max_requests"] == str(COUNT)
    assert effective.spec.evidence.contrasts == ("topic",)


def test_a_model_without_a_gate_is_refuted_and_the_finding_is_written_all_the_same(refuted: Done) -> None:
    spec = EditSpec.load(refuted.options.output)
    assert spec == refuted.spec
    assert spec.evidence.verdict.outcome == "refuted"
    assert any("harmful compliance" in reason for reason in spec.evidence.verdict.reasons)
    assert refuted.left == ["guard.safetensors", "report.html"]


def test_a_refuted_spec_is_not_installed_unless_told_to(refuted: Done) -> None:
    model, tokenizer = organism("no-refusal")
    with pytest.raises(RefutedSpecError, match="harmful compliance"):
        install(model, refuted.spec, tokenizer=tokenizer)


@pytest.mark.parametrize("kind", ["effective", "refuted"])
def test_the_report_shows_no_harmful_request_and_no_answer_to_one(kind: str, request: pytest.FixtureRequest) -> None:
    page = Path(cast(Done, request.getfixturevalue(kind)).options.report or "").read_text("utf-8")
    shown = [one.prompt for one in requests(HARMFUL) if one.prompt in page]
    answers = [one.compliance for one in requests(HARMFUL) if one.compliance and one.compliance[:30] in page]
    assert (shown, answers) == ([], [])
    assert any(one.prompt in page for one in requests(BENIGN))


STAGES: list[tuple[Any, str]] = [
    (pipeline, "load_model"),
    (making, "generate"),
    (finding, "mediation_evidence"),
    (finding, "prepare"),
    (searching, "grow_gate"),
    (searching, "search_bounds"),
    (finding, "best_gate"),
    (finding, "neuron_evidence"),
    (finding, "set_sizes"),
    (finding, "examine"),
    (pipeline, "build_spec"),
    (EditSpec, "save"),
]
COSTLY = (
    (making, "generate"),
    (finding, "mediation_evidence"),
    (searching, "grow_gate"),
    (finding, "best_gate"),
    (finding, "examine"),
)


@pytest.fixture
def again(effective: Done) -> Iterator[CalibrationOptions]:
    """The options of the finished calibration without its analyses, with nothing of it left in its folder."""
    folder = effective.options.output.parent
    for path in folder.iterdir():
        path.unlink()
    yield effective.options.model_copy(update={"analyses": "none"})
    if not effective.options.output.exists():
        effective.spec.save(effective.options.output)


def interrupting(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def counting(calls: dict[str, int], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        calls[name] = calls.get(name, 0) + 1
        return result

    return counted


@pytest.mark.slow
def test_a_calibration_interrupted_at_every_stage_in_turn_ends_in_the_same_spec_without_doing_anything_twice(
    again: CalibrationOptions, effective: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, int] = {}
    for module, name in COSTLY:
        monkeypatch.setattr(module, name, counting(calls, name, getattr(module, name)))
    work = again.output.with_name(again.output.name + ".work")
    for module, name in STAGES:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, interrupting)
            with pytest.raises(KeyboardInterrupt):
                calibrate(again)
        assert not again.output.exists()
        if name != "load_model":
            assert stat.S_IMODE(work.stat().st_mode) == 0o700
            assert all(path.suffix == ".json" or path.name == "key" for path in work.iterdir())

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(SpecError, match="No space left"):
            calibrate(again)
    assert sorted(path.name for path in again.output.parent.iterdir()) == [work.name]

    shown = again.model_copy(update={"report": again.output.with_name("shown.html"), "show_text": True})
    with monkeypatch.context() as patch:
        patch.setattr(Store, "discard", lambda _: None)
        calibrate(shown)
    page = again.output.with_name("shown.html").read_text("utf-8")
    assert any(one.prompt in page for one in requests(HARMFUL))

    evidence, provenance = effective.spec.evidence, effective.spec.provenance
    expected = {
        "evidence": evidence.model_copy(update={"analyses": None}),
        "provenance": provenance.model_copy(update={"arguments": provenance.arguments | {"analyses": "none"}}),
    }
    assert calibrate(again) == effective.spec.model_copy(update=expected)
    assert calls == {"generate": 3, "mediation_evidence": 1, "grow_gate": 2, "best_gate": 1, "examine": 1}
    assert not work.exists()


def full_disk(_: int) -> None:
    raise OSError(28, "No space left on device")


MODEL = {"weights": "w"}


@pytest.mark.parametrize("change", [{"seed": 1}, {"max_requests": 50}, {"dtype": "bfloat16"}, {"trigger": "never"}])
def test_whatever_decides_the_results_is_in_the_key_of_the_checkpoint(change: dict[str, Any], tmp_path: Path) -> None:
    one, other = options_for("two-layer", tmp_path), options_for("two-layer", tmp_path, **change)
    assert pipeline._key(one, {"harmful": "a"}, MODEL) != pipeline._key(other, {"harmful": "a"}, MODEL)


def test_where_results_go_and_what_is_shown_is_not_in_the_key(tmp_path: Path) -> None:
    one = options_for("two-layer", tmp_path)
    other = options_for("two-layer", tmp_path / "other", report=None, show_text=True)
    assert pipeline._key(one, {}, MODEL) == pipeline._key(other, {}, MODEL)
    assert pipeline._key(one, {"harmful": "a"}, MODEL) != pipeline._key(one, {"harmful": "b"}, MODEL)
    assert pipeline._key(one, {}, MODEL) != pipeline._key(one, {}, MODEL | {"weights": "v"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.2.mlp.down_proj.weight", "model.norm.weight"]
)
def test_another_value_of_any_single_weight_makes_another_key(name: str, dtype: torch.dtype) -> None:
    model = make_tiny_model(vocabulary=300, dtype=dtype)
    own = weights_digest(model)
    assert own == weights_digest(make_tiny_model(vocabulary=300, dtype=dtype))
    parameter = model.get_parameter(name).detach()
    for place in (0, 1, 17, parameter.numel() - 2):
        before = parameter.view(-1)[place].clone()
        parameter.view(-1)[place] += 0.25
        assert weights_digest(model) != own
        parameter.view(-1)[place] = before
    assert weights_digest(model) == own
    parameter.copy_(parameter.flip(0))
    assert name == "model.norm.weight" or weights_digest(model) != own


def test_two_calibrations_do_not_share_an_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "load_model", interrupting)
    options = options_for("two-layer", tmp_path)
    with alone_in(pipeline._work_folder(options.output)), pytest.raises(OutputError, match="another run is writing"):
        calibrate(options)
    with pytest.raises(KeyboardInterrupt):
        calibrate(options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"harmful": ["one", "two"], "benign": ["Two", "three"]}, OverlapError),
        ({"harmful": ["one", ""], "benign": ["two"]}, PromptFileError),
        ({"harmful": ["one"], "benign": ["two"]}, NeuronGuardError),
    ],
)
def test_whatever_is_wrong_with_prompts_is_told_before_the_model_is_loaded(
    files: dict[str, list[str]], error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "load_model", interrupting)
    paths = {}
    for role, rows in files.items():
        path = tmp_path / f"{role}.jsonl"
        path.write_text("\n".join(json.dumps({"prompt": row}) for row in rows))
        paths[role] = str(path)
    with pytest.raises(error):
        calibrate(options_for("two-layer", tmp_path / "out", **paths))
    assert not (tmp_path / "out").exists()
