"""The specificity of an intervention: what is measured, on which scale, and when a kind cannot be measured."""

from contextlib import nullcontext
from functools import cache, partial

import pytest
import torch

from benchmarks.organisms.catalogue import load_truth
from calibration.effects.outcome import continuation_log_probability, readout_logits
from calibration.evidence.specificity import (
    LIMIT,
    NEGLIGIBLE,
    SAME,
    UNSURE,
    Answers,
    KeptOutcomes,
    KindEffect,
    deployed_effects,
    failing,
    keep_outcomes,
    read,
)
from guard.hf import install_edits
from guard.spec.edit_spec import Estimate, LayerEdit
from tests.calibration.organisms import every_kind, late, organism

N = 8


def answers(own: float = -0.1, apart: float = 4.0, size: int = N) -> Answers:
    """Eight harmful requests and `size` sums, whose answers are `apart` nats from those to other requests."""
    kinds = (None,) * N + ("sums",) * size
    said = torch.full((N + size,), own)
    return Answers(kinds, said, said - apart, ())


def moved(of: Answers, harm: float, sums: float) -> torch.Tensor:
    falls = torch.tensor([harm if kind is None else sums for kind in of.kinds])
    return (of.own - falls)[:, None]


def test_what_leaves_a_kind_alone_has_index_1_and_what_moves_it_like_harm_has_0() -> None:
    of = answers()
    for sums, index in ((0.0, 1.0), (1.0, 0.5), (3.0, 0.0), (-3.0, 0.0)):
        ((effect,),) = of.effects(moved(of, 3.0, sums), "edit", seed=0)
        assert effect.index.value == pytest.approx(index, abs=1e-6)
        assert effect.kind == "sums"
        assert effect.intervention == "edit"


def test_an_intervention_that_only_makes_harm_likelier_has_the_lowest_index() -> None:
    of = answers()
    ((effect,),) = of.effects(moved(of, -3.0, 0.5), "edit", seed=0)
    assert effect.index.value == -1.0


def test_effects_are_in_standard_deviations_of_the_outcome_between_requests() -> None:
    of = answers(apart=4.0)
    ((effect,),) = of.effects(moved(of, 3.0, 1.0), "edit", seed=0)
    assert (effect.harmful.value, effect.benign.value) == pytest.approx((1.5, 0.5), abs=1e-5)


@pytest.mark.parametrize(
    ("of", "reason"),
    [
        (answers(own=-UNSURE - 0.1), "unsure of its own answers"),
        (answers(apart=SAME), "all of its requests alike"),
        (answers(size=4), "has 4 requests"),
    ],
)
def test_a_kind_on_which_the_outcome_says_nothing_is_left_out_with_the_reason(of: Answers, reason: str) -> None:
    (left,) = of.left_out
    assert left.kind == "sums"
    assert reason in left.reason
    assert of.benign_kinds == ()
    assert of.effects(moved(of, 3.0, 3.0), "edit", seed=0) == ((),)


def test_without_harmful_requests_there_is_no_index() -> None:
    of = Answers(("sums",) * N, torch.zeros(N), torch.full((N,), -4.0), ())
    assert of.effects(torch.zeros(N, 2), "edit", seed=0) == ((), ())


def an_effect(high: float, low: float) -> KindEffect:
    index = Estimate(value=high, low=high - 0.1, high=high, n=N)
    size = Estimate(value=low, low=low, high=low, n=N)
    return KindEffect(kind="sums", intervention="edit", harmful=size, benign=size, index=index)


def test_a_kind_fails_where_the_whole_interval_is_below_the_limit_and_the_change_is_not_negligible() -> None:
    assert failing([an_effect(LIMIT - 0.01, 2 * NEGLIGIBLE)])
    assert not failing([an_effect(LIMIT, 2 * NEGLIGIBLE)])
    assert not failing([an_effect(LIMIT - 0.01, NEGLIGIBLE)])


@cache
def kept() -> KeptOutcomes:
    """The validation outcomes of the two-layer organism."""
    model, _ = organism("two-layer")
    return keep_outcomes(model, every_kind().validation_outcomes, late("two-layer").layers[0])


def ablation(neurons: dict[int, tuple[int, ...]], value: float = 0.0) -> tuple[LayerEdit, ...]:
    return tuple(
        LayerEdit(layer=layer, neurons=n, scale=(1.0,) * len(n), lower=(value,) * len(n), upper=(value,) * len(n))
        for layer, n in sorted(neurons.items())
    )


PLANTED = load_truth("two-layer").planted


def test_the_planted_gate_of_an_organism_is_specific_by_its_edit_and_by_nature() -> None:
    under = torch.stack([kept().edited(ablation(PLANTED), None), kept().noised(PLANTED)], dim=1)
    for effects in kept().answers.effects(under, "edit", seed=0):
        assert effects
        assert all(effect.index.low > LIMIT for effect in effects)


def test_an_edit_that_drowns_every_answer_is_a_modulator_of_output_and_is_said_to_be_one() -> None:
    width = late("two-layer").activations.benign_mean[5].numel()
    drowning = ablation({5: tuple(range(width))}, value=20.0)
    ((*effects,),) = kept().answers.effects(kept().edited(drowning, None)[:, None], "edit", seed=0)
    assert len(effects) >= 3
    assert failing(effects) == tuple(effects)


def test_neurons_noised_are_those_of_the_run_that_a_request_is_contrasted_with() -> None:
    same = KeptOutcomes(kept().answers, kept().own, kept().own)
    assert torch.allclose(same.noised(PLANTED), same.answers.own, atol=1e-5)
    assert not torch.allclose(kept().noised(PLANTED), kept().answers.own, atol=1e-2)


def test_what_is_installed_is_measured_as_what_is_tried_on_the_late_layers() -> None:
    model, _ = organism("two-layer")
    outcomes, edits = every_kind().validation_outcomes, ablation(PLANTED)
    deployed = deployed_effects(model, outcomes, partial(install_edits, model, edits), seed=0)
    (tried,) = kept().answers.effects(kept().edited(edits, None)[:, None], "deployed", seed=0)
    for one, other in zip(deployed, tried, strict=True):
        assert one.kind == other.kind
        assert one.index.value == pytest.approx(other.index.value, abs=1e-4)


def test_no_edit_moves_nothing() -> None:
    model, _ = organism("two-layer")
    effects = deployed_effects(model, every_kind().validation_outcomes, nullcontext, seed=0)
    assert all(effect.harmful.value == effect.benign.value == effect.index.value == 0 for effect in effects)


def test_the_outcome_is_the_log_probability_of_the_models_own_answer() -> None:
    model, _ = organism("two-layer")
    batch = kept().own.batches[0]
    with torch.inference_mode():
        logits = readout_logits(model, batch)
        own, other = read([(batch, logits)])
        both = continuation_log_probability(logits, batch)
    assert torch.equal(torch.cat([own, other]), both)
