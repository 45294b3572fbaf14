"""What is trained, what the fingerprint sees of it, and that it happens to copies."""

import copy

import pytest
import torch

from benchmarks.organisms.train import encode
from benchmarks.robustness.attacks.fine_tuning import (
    ALL,
    ATTENTION,
    TRAININGS,
    UNSEEN,
    answer_loss,
    fine_tuning,
    trained_parameters,
)
from benchmarks.robustness.organisms import exact_weights_digest
from benchmarks.robustness.result import AttackResult
from benchmarks.safety.conditions.catalogue import GUARDED
from guard.errors import ModelMismatchError
from guard.spec.fingerprint import verify
from tests.benchmarks.robustness.guarded import guarded_organism, is_bare

OWN = guarded_organism(4)
LAYERS = [edit.layer for edit in OWN.spec.layers]


@pytest.fixture(scope="module")
def result() -> AttackResult:
    return fine_tuning(OWN, (10,), seed=0)


def names(part: str) -> set[str]:
    model = copy.deepcopy(OWN.model)
    chosen = {id(parameter) for parameter in trained_parameters(model, part, LAYERS)}
    assert all(parameter.requires_grad == (id(parameter) in chosen) for parameter in model.parameters())
    return {name for name, parameter in model.named_parameters() if id(parameter) in chosen}


def test_the_fingerprint_sees_the_mlps_of_the_guarded_layers_and_nothing_else() -> None:
    unseen = names(UNSEEN)
    for name in names(ALL):
        model = copy.deepcopy(OWN.model)
        with torch.no_grad():
            dict(model.named_parameters())[name].view(-1)[0] += 0.5
        if name in unseen:
            verify(OWN.spec, model, OWN.tokenizer)
        else:
            with pytest.raises(ModelMismatchError, match="MLP weights"):
                verify(OWN.spec, model, OWN.tokenizer)


def test_attention_is_a_part_of_what_the_fingerprint_does_not_see() -> None:
    assert names(ATTENTION) < names(UNSEEN) < names(ALL)
    assert all(".self_attn." in name for name in names(ATTENTION))
    assert len(names(ATTENTION)) == 4 * 6


def test_the_guard_refuses_to_be_installed_where_all_weights_were_trained_and_only_there(result: AttackResult) -> None:
    guarded = [one for one in result.rows if one.condition == GUARDED]
    assert len(guarded) == 3 * 2
    assert {ALL in one.variant: one.installs for one in guarded} == {True: False, False: True}
    assert all(one.installs is None for one in result.rows if one.condition != GUARDED)


def test_training_around_the_guard_brings_compliance_and_training_without_it_does_not(result: AttackResult) -> None:
    after = {one.variant: one.after.complied.value for one in result.rows}
    assert after[f"10 steps on {UNSEEN}, guard on meanwhile"] == 1.0
    assert after[f"10 steps on {UNSEEN}, guard off meanwhile"] == 0.0


def test_the_organism_and_the_model_beside_it_are_as_they_were(result: AttackResult) -> None:
    assert result.rows
    fresh = guarded_organism.__wrapped__(4)
    assert exact_weights_digest(OWN.model) == exact_weights_digest(fresh.model)
    assert exact_weights_digest(OWN.refusing.model) == exact_weights_digest(fresh.refusing.model)
    assert is_bare(OWN.model)
    assert all(parameter.requires_grad for parameter in OWN.model.parameters())


def test_every_training_is_told_of() -> None:
    done: list[int] = []
    fine_tuning(OWN.first(2), (1,), seed=0, advance=done.append)
    assert sum(done) == TRAININGS


def test_the_loss_is_that_of_the_answer_alone() -> None:
    request = OWN.requests[0]
    ids, labels = encode(OWN.tokenizer, [(request.prompt, request.compliance or ""), ("Sums?", "It is 4.")])
    with torch.no_grad():
        loss = answer_loss(OWN.model, ids, labels)
        logits = OWN.model(input_ids=ids).logits.log_softmax(-1)
    said = [
        -float(logits[row, column - 1, ids[row, column]])
        for row in range(2)
        for column in range(ids.shape[1])
        if labels[row, column] != -100
    ]
    assert float(loss) == pytest.approx(sum(said) / len(said), rel=1e-5)
