"""An organism on one page: what it is asked was held out, and its own spec is taken up and never another's."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.localisation.run import UnknownOrganismError
from benchmarks.organisms.language import REFUSALS
from benchmarks.safety.conditions.condition import Calibrated
from benchmarks.safety.options import Options
from benchmarks.safety.organism import (
    SPEC,
    calibrated_organism,
    calibration_of,
    folder_of,
    further,
    held_out,
    seen_by,
)
from benchmarks.safety.prompt_sets import GOALS, PUBLISHED_ATTACKS
from benchmarks.safety.subject import SubjectError
from calibration.pipeline import read_sources
from calibration.prompts.request_sets import Request
from guard.spec.edit_spec import EditSpec, Provenance, Verdict
from tests.guard.specs import EFFECTIVE, REFUTED, evidence_with
from tests.serve.served import organism_spec


def options(folder: Path, organism: str = "two-layer", **more: Any) -> Options:
    return Options(organism=organism, output=folder, suite="full", **more)


@pytest.mark.parametrize("name", ["two-layer", "natural"])
def test_no_request_that_chose_the_gate_is_asked(name: str, tmp_path: Path) -> None:
    asked = options(tmp_path, name)
    sources, _ = read_sources(calibration_of(folder_of(name), asked))
    seen = seen_by(sources)
    known = {request.group for request in (*seen.harmful, *seen.benign)}
    for prompts in held_out(sources, asked):
        assert prompts.requests
        assert not known & {request.group for request in prompts.requests}


def test_where_jailbreaks_open_it_both_plain_and_wrapped_requests_are_asked(tmp_path: Path) -> None:
    asked = options(tmp_path, "natural")
    sources, _ = read_sources(calibration_of(folder_of("natural"), asked))
    plain, wrapped, _ = held_out(sources, asked)
    assert (plain.name, wrapped.name) == ("held-out harmful", "held-out jailbreaks")
    assert {one.group for one in plain.requests} == {one.group for one in wrapped.requests}
    assert not {one.prompt for one in plain.requests} & {one.prompt for one in wrapped.requests}


def kept_spec(folder: Path, asked: Options, seed: int = 0, verdict: Verdict = EFFECTIVE) -> EditSpec:
    """A spec of the organism in the output folder, as a calibration on its requests leaves it."""
    _, digests = read_sources(calibration_of(folder_of("two-layer"), asked))
    provenance = Provenance(versions={}, seed=seed, data=digests, arguments={})
    spec = organism_spec(provenance=provenance, evidence=evidence_with(neurons=(), mediators=(), verdict=verdict))
    spec.save(folder / SPEC)
    return spec


def test_a_spec_that_lies_there_is_taken_up(tmp_path: Path) -> None:
    asked = options(tmp_path)
    spec = kept_spec(tmp_path, asked)
    found = calibrated_organism(asked)
    assert found.spec == spec
    assert found.planted == {4: (5, 17, 70, 239), 5: (7, 89, 133, 170)}
    assert set(REFUSALS) < set(found.refusals)
    assert not found.english


def test_a_spec_of_another_seed_is_an_error(tmp_path: Path) -> None:
    asked = options(tmp_path)
    kept_spec(tmp_path, asked, seed=1)
    with pytest.raises(SubjectError, match="another seed"):
        calibrated_organism(asked)


def test_a_refuted_spec_is_left_out_and_said_to_be(tmp_path: Path) -> None:
    asked = options(tmp_path)
    kept_spec(tmp_path, asked, verdict=REFUTED)
    found = calibrated_organism(asked)
    assert found.spec is None
    assert any("refuted" in line for line in found.left_out)
    assert calibrated_organism(asked.model_copy(update={"allow_refuted": True})).spec is not None


def test_an_organism_that_is_nowhere_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UnknownOrganismError, match="'nobody'"):
        calibrated_organism(options(tmp_path, "nobody"))


def test_an_organism_beside_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match="leave MODEL"):
        calibrated_organism(options(tmp_path, model="other"))


def test_what_a_models_folder_holds_out_is_asked_by_kind_without_what_was_calibrated_on(tmp_path: Path) -> None:
    (tmp_path / "held_out").mkdir()
    for name in ("advbench_wrapped", "harmless_plain"):
        rows = [json.dumps({"prompt": f"{name} {number}", "goal": f"goal {number}"}) for number in range(3)]
        (tmp_path / "held_out" / f"{name}.jsonl").write_text("\n".join(rows))
    seen = Calibrated(harmful=(Request(prompt="goal 1"),), benign=())
    (harmful, harmless), left_out = further(tmp_path, options(tmp_path, data=tmp_path), seen)
    assert (harmful.kind, harmless.kind) == ("harmful", "harmless")
    assert [one.goal for one in harmful.requests] == ["goal 0", "goal 2"]
    assert harmful.overlapping == 1
    assert any("in their stead" in line for line in left_out)


def test_published_attacks_are_asked_on_goals_that_the_folder_holds_out_alone(tmp_path: Path) -> None:
    for folder in ("held_out", "jailbreakbench"):
        (tmp_path / folder).mkdir()
    (tmp_path / "held_out" / "jailbreakbench_plain.jsonl").write_text(json.dumps({"prompt": "goal 1"}))
    attacks = [{"goal": f"Goal {number}", "prompt": f"attack {number}"} for number in range(3)]
    (tmp_path / "jailbreakbench" / f"{GOALS}.json").write_text(json.dumps(attacks))
    (plain, attacked), _ = further(tmp_path, options(tmp_path, data=tmp_path), Calibrated(harmful=(), benign=()))
    assert plain.family is None
    assert attacked.family == PUBLISHED_ATTACKS
    assert [one.prompt for one in attacked.requests] == ["attack 1"]
