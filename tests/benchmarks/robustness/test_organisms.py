"""Only the project's own organisms, by name and weights, are ever attacked adaptively."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.organisms.catalogue import DEFINITIONS, load_organism
from benchmarks.robustness.attacks.fine_tuning import fine_tuning
from benchmarks.robustness.attacks.suffix import Budget
from benchmarks.robustness.attacks.suffix_attack import suffix
from benchmarks.robustness.options import ADAPTIVE, Options, RobustnessOptionsError
from benchmarks.robustness.organisms import (
    NotAnOrganismError,
    calibration_of,
    exact_weights_digest,
    known_digests,
    require_organism,
)
from benchmarks.robustness.subject import Subject
from tests.benchmarks.robustness.guarded import NAME, guarded_organism

OWN = guarded_organism()
AS_USERS = Subject(NAME, OWN.source, OWN.model, OWN.tokenizer, OWN.spec, OWN.requests, OWN.classify)


def test_the_known_digests_are_those_of_the_committed_weights() -> None:
    assert set(known_digests()) == set(DEFINITIONS)
    found = {name: exact_weights_digest(load_organism(name)[0]) for name in known_digests()}
    assert found == dict(known_digests()), "weights were built anew: write their digests to digests.json"


@pytest.mark.parametrize("which", ["model.embed_tokens.weight", "model.layers.2.self_attn.q_proj.weight"])
def test_one_other_weight_is_another_model(which: str) -> None:
    model = copy.deepcopy(OWN.model)
    with torch.no_grad():
        dict(model.named_parameters())[which].view(-1)[-1] += 1e-3
    with pytest.raises(NotAnOrganismError, match="none of the project's own"):
        replace(OWN, model=model)


def test_an_organism_under_another_name_is_refused() -> None:
    with pytest.raises(NotAnOrganismError):
        replace(OWN, name="natural")
    with pytest.raises(NotAnOrganismError, match="choose among"):
        calibration_of("/some/model", Path(), seed=0)


def test_adaptive_attacks_refuse_a_users_model() -> None:
    with pytest.raises(NotAnOrganismError, match="organisms alone"):
        require_organism(AS_USERS)
    with pytest.raises(NotAnOrganismError):
        suffix(AS_USERS, Budget(), seed=0)
    with pytest.raises(NotAnOrganismError):
        fine_tuning(AS_USERS, (1,), seed=0)


@pytest.mark.parametrize("attack", sorted(ADAPTIVE))
def test_no_option_points_an_adaptive_attack_at_a_model(attack: str, tmp_path: Path) -> None:
    spec = tmp_path / "guard.safetensors"
    with pytest.raises(RobustnessOptionsError, match="organisms alone"):
        Options(model="model", spec=spec, output=tmp_path, attacks=(attack,))  # type: ignore[arg-type]
    assert not ADAPTIVE & set(Options(model="model", spec=spec, output=tmp_path).chosen)
    assert set(Options(organism=NAME, output=tmp_path).chosen) >= ADAPTIVE
    with pytest.raises(RobustnessOptionsError, match="one model"):
        Options(model="model", organism=NAME, spec=spec, output=tmp_path)
    with pytest.raises(RobustnessOptionsError, match="--spec"):
        Options(model="model", output=tmp_path)


def test_what_is_tuned_on_is_not_attacked() -> None:
    attacked = {request.group for request in OWN.requests}
    assert attacked
    assert not attacked & {request.group for request in OWN.tuned_on}


def test_the_model_beside_refuses_what_the_organism_complies_with() -> None:
    plain, guarded = (OWN.says(target) for target in OWN.targets())
    beside = OWN.says(OWN.refusing)
    assert {one.value for one in plain} == {"complied"}
    assert {one.value for one in guarded} == {one.value for one in beside} == {"refused"}
