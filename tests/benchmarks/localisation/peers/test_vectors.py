"""A vector that is added to a residual stream, and how the peers' directions are drawn from points."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.localisation.peers import conditional, refusal_direction
from benchmarks.localisation.peers.conditional import PromptCondition, best_condition, likeness, principal_direction
from benchmarks.localisation.peers.contender import Contender, logits_under, measured, on_held_out, strongest
from benchmarks.localisation.peers.vectors import added, at_last_prompt_token, over_prompt, states
from benchmarks.localisation.subject import Subject
from benchmarks.organisms.catalogue import WEIGHTS
from calibration.effects.outcome import readout_logits
from calibration.search.bounds import Budget


@cache
def subject() -> Subject:
    return Subject("two-layer", WEIGHTS, seed=0, max_requests=32)


def logits(contender: Contender) -> torch.Tensor:
    return logits_under(subject().model, subject().material.validation.benign[0], contender)


def test_adding_a_vector_moves_the_stream_that_leaves_the_layer_by_just_that() -> None:
    model, batches = subject().model, subject().material.validation.harmful
    vector = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    before = states(model, batches)
    with added(model, {2: vector}):
        after = states(model, batches)
    torch.testing.assert_close(after[2].states, before[2].states + vector)
    assert torch.equal(after[1].states, before[1].states)


def test_adding_nothing_changes_nothing_and_the_vector_is_gone_after_the_block() -> None:
    model, batch = subject().model, subject().material.validation.benign[0]
    with torch.inference_mode():
        expected = readout_logits(model, batch)
        with added(model, {1: torch.zeros(model.config.hidden_size)}):
            assert torch.equal(readout_logits(model, batch), expected)
        with added(model, {1: torch.ones(model.config.hidden_size)}):
            assert not torch.equal(readout_logits(model, batch), expected)
        assert torch.equal(readout_logits(model, batch), expected)


def test_every_candidate_adds_the_refusal_direction_and_none_takes_it_away() -> None:
    model, split = subject().model, subject().material.calibration
    harmful, benign = (
        {layer: at_last_prompt_token(found).mean(0) for layer, found in states(model, batches).items()}
        for batches in (split.harmful, split.benign)
    )
    streams = states(model, split.benign)
    for candidate in refusal_direction.candidates(model, split.harmful, split.benign):
        layer = int(candidate.strength.split()[-1])
        with candidate.installed():
            moved = at_last_prompt_token(states(model, split.benign)[layer]) - at_last_prompt_token(streams[layer])
        assert (moved.mean(0) @ (harmful[layer] - benign[layer])) > 0
    assert min(refusal_direction.MULTIPLES) > 0
    assert min(conditional.STRENGTHS) > 0


@given(st.integers(0, 1000))
def test_a_principal_direction_points_from_the_second_set_to_the_first(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    apart = torch.randn(6, generator=generator) * 10
    first = torch.randn(20, 6, generator=generator) + apart
    second = torch.randn(20, 6, generator=generator) - apart
    direction = principal_direction(first, second)
    assert direction @ (first.mean(0) - second.mean(0)) >= 0


def test_a_principal_direction_of_two_points_is_the_way_between_them() -> None:
    first, second = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]])
    torch.testing.assert_close(principal_direction(first, second), torch.tensor([2.0, 0.0]))


def test_likeness_is_that_of_the_squashed_projection() -> None:
    points, condition = torch.tensor([[3.0, 4.0]]), torch.tensor([2.0, 0.0])
    assert float(likeness(points, condition)) == pytest.approx(0.6)


def test_the_best_condition_tells_points_along_its_vector_from_points_across_it() -> None:
    generator = torch.Generator().manual_seed(0)
    meant, rest = torch.randn(30, 4, generator=generator), torch.randn(30, 4, generator=generator)
    meant[:, 0] += 9
    rest[:, 0] = 0
    condition = best_condition({3: meant}, {3: rest})
    assert condition.layer == 3
    assert bool(condition.of(meant).all())
    assert not bool(condition.of(rest).any())


def test_a_request_on_which_the_condition_fails_keeps_the_models_own_logits() -> None:
    model, batch = subject().model, subject().material.validation.benign[0]
    points = over_prompt(states(model, [batch])[2])
    middle = float(likeness(points, torch.ones(points.shape[1])).median())
    condition = PromptCondition(2, torch.ones(points.shape[1]), middle, 1)
    acts = condition(model, batch)
    assert bool(acts.any())
    assert not bool(acts.all())
    vector = {3: torch.ones(points.shape[1])}
    with torch.inference_mode():
        plain = readout_logits(model, batch)
    always = logits(Contender("always", lambda: added(model, vector)))
    where = logits(Contender("where", lambda: added(model, vector), condition))
    both = acts.repeat(2)
    torch.testing.assert_close(where[both], always[both])
    assert torch.equal(where[~both], plain[~both])


def test_what_leaves_the_budget_is_not_chosen_and_nothing_costs_nothing() -> None:
    model = subject().model
    loud = Contender("loud", lambda: added(model, {4: 50 * torch.ones(model.config.hidden_size)}))
    assert strongest(model, subject().material.validation, [loud], Budget(kl=0.01, refusal=0.01)) is None
    figures = on_held_out(subject(), None, seed=0)
    assert figures.benign_kl.value == 0.0
    assert figures.harmful_compliance.value > 0.9


def test_of_candidates_within_the_budget_the_one_with_least_harm_is_chosen() -> None:
    model, split = subject().model, subject().material.validation
    calibration = subject().material.calibration
    candidates = refusal_direction.candidates(model, calibration.harmful, calibration.benign)[:6]
    budget = Budget(kl=10.0, refusal=1.0)
    chosen = strongest(model, split, candidates, budget)
    assert chosen is not None
    with torch.inference_mode():
        reference = [readout_logits(model, batch) for batch in split.benign]
    objectives = [measured(model, split, reference, each).objective(budget) for each in candidates]
    assert candidates.index(chosen) == objectives.index(min(objectives))
