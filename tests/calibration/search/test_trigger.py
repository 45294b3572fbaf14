"""The trigger: its threshold's guarantee by simulation, its direction on made-up states, its mask on the guard's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from calibration.runs.stage import keep
from calibration.runs.trial import edit_transforms, transformed
from calibration.search.trigger import (
    TokenStates,
    activity,
    conformal_threshold,
    entering_states,
    fit_direction,
    fit_trigger,
)
from guard.errors import NeuronGuardError
from guard.hf import install_edits
from guard.runtime.trigger import TriggerReadout
from guard.spec.edit_spec import LayerEdit, Trigger
from tests.calibration.late_models import random_batch
from tests.conftest import FAMILIES, MIXTURES, TinyModel

D_MODEL, PROMPT, WIDTH = 12, 5, 9


def token_states(seed: int, rows: int, *, shift: float = 0.0, everywhere: bool = False) -> TokenStates:
    """Noise of WIDTH tokens a row, padded on both sides; from the last prompt token on, moved along the first axis."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, WIDTH, D_MODEL, generator=generator)
    states[:, 0 if everywhere else PROMPT - 1 :, 0] += shift
    mask = torch.ones(rows, WIDTH, dtype=torch.bool)
    mask[::3, 0] = False
    mask[::2, -1] = False
    return TokenStates(states, mask, torch.full((rows,), PROMPT - 1))


@pytest.mark.parametrize(("n", "alpha"), [(99, 0.01), (120, 0.05), (37, 0.1), (19, 0.05), (12, 0.5)])
def test_the_false_trigger_rate_over_many_draws_keeps_the_guarantee(n: int, alpha: float) -> None:
    draws, random = 4000, np.random.default_rng(7)
    rates = []
    for highest in random.random((draws, n)):
        threshold, guaranteed = conformal_threshold(torch.from_numpy(highest), alpha)
        rates.append(1 - threshold)  # a fresh uniform score exceeds it so often
    error = 4 * float(np.std(rates)) / math.sqrt(draws)
    assert guaranteed == alpha
    assert np.mean(rates) <= alpha + error
    assert np.mean(rates) >= alpha - 1 / (n + 1) - error


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40), st.sampled_from([0.01, 0.05, 0.1, 0.3]))
def test_the_threshold_is_the_conformal_order_statistic_and_few_of_its_own_exceed_it(
    scores: list[int], alpha: float
) -> None:
    n = len(scores)
    threshold, guaranteed = conformal_threshold(torch.tensor(scores).float(), alpha)
    rank = next((k for k in range(1, n + 1) if k >= (n + 1) * (1 - alpha) - 1e-9), n)
    assert threshold in (sorted(scores)[rank - 1], sorted(scores)[min(n, rank + 1) - 1])  # a rounding error is safe
    assert sum(score > threshold for score in scores) <= alpha * (n + 1)
    assert guaranteed >= alpha


@pytest.mark.parametrize("n", [1, 5, 50, 98])
def test_too_few_requests_give_the_largest_score_and_own_up_to_a_weaker_guarantee(n: int) -> None:
    highest = torch.linspace(-1, 1, n)
    threshold, guaranteed = conformal_threshold(highest, 0.01)
    assert threshold == float(highest.max())
    assert guaranteed == pytest.approx(1 / (n + 1))
    assert guaranteed > 0.01


def test_a_request_s_highest_score_ignores_its_padding() -> None:
    states = torch.zeros(2, 3, 1)
    states[:, :, 0] = torch.tensor([[9.0, 1.0, 2.0], [-5.0, -6.0, 7.0]])
    mask = torch.tensor([[False, True, True], [True, True, False]])
    rows = TokenStates(states, mask, torch.tensor([1, 1]))
    assert rows.highest(torch.ones(1)).tolist() == [2.0, -5.0]
    assert rows.scores(torch.ones(1))[~mask].tolist() == [-math.inf, -math.inf]


@given(st.integers(0, 6), st.integers(0, 4))
def test_the_reach_counts_real_tokens_from_the_last_of_the_prompt(column: int, reach: int) -> None:
    mask = torch.ones(1, 7, dtype=torch.bool)
    mask[0, 5] = False
    rows = TokenStates(torch.zeros(1, 7, 1), mask, torch.tensor([column]))
    expected = [place for place in range(column, min(7, column + reach + 1)) if place != 5]
    assert rows.from_decisive(reach)[0].nonzero().flatten().tolist() == expected


def test_the_halves_part_the_rows() -> None:
    rows = token_states(0, 7)
    first, second = rows.half(0), rows.half(1)
    assert torch.equal(first.states, rows.states[0::2])
    assert torch.equal(second.mask, rows.mask[1::2])
    assert len(first.decisive) + len(second.decisive) == 7


def test_the_direction_points_from_benign_to_harmful_tokens() -> None:
    direction = fit_direction(token_states(1, 40, shift=6.0), token_states(2, 40), 2)
    assert direction.dtype == torch.float32
    assert direction.shape == (D_MODEL,)
    assert float(direction[0] / direction.norm()) > 0.9


def test_activity_is_the_share_of_meant_tokens_above_the_threshold() -> None:
    states = torch.tensor([[0.0, 3.0, 1.0], [0.0, 0.5, 9.0]])[..., None]
    mask = torch.tensor([[True, True, True], [True, True, False]])
    rows = TokenStates(states, mask, torch.tensor([1, 1]))
    assert activity(rows, torch.ones(1), 0.9, 0) == pytest.approx(1 / 2)
    assert activity(rows, torch.ones(1), 0.9, 1) == pytest.approx(2 / 3)


def test_a_trigger_on_separable_states_fires_on_fresh_harm_and_not_on_fresh_benign_requests() -> None:
    noise, signal = {1: 0.0, 2: 0.0, 3: 0.0}, {1: 0.0, 2: 12.0, 3: 2.0}

    def by_layer(seed: int, shifts: dict[int, float]) -> dict[int, TokenStates]:
        return {layer: token_states(seed + layer, 60, shift=shift) for layer, shift in shifts.items()}

    fitted = fit_trigger(
        by_layer(10, signal), by_layer(20, noise), by_layer(30, signal), by_layer(40, noise), alpha=0.05
    )
    assert fitted.trigger.layer == 2
    assert fitted.trigger.calibration_size == 60
    assert fitted.trigger.false_trigger_rate == 0.05
    assert fitted.at_decision == 1.0
    assert fitted.over_response > 0.95
    direction = torch.tensor(fitted.trigger.direction)
    never_seen = token_states(99, 200).highest(direction)
    assert float((never_seen > fitted.trigger.threshold).float().mean()) <= 0.1


def test_a_trigger_keeps_its_guarantee_where_nothing_separates() -> None:
    rates = []
    for seed in range(12):
        harmful, benign, fresh_harmful, fresh_benign, unseen = (
            {1: token_states(100 * seed + part, 40)} for part in range(5)
        )
        trigger = fit_trigger(harmful, benign, fresh_harmful, fresh_benign, alpha=0.1).trigger
        highest = unseen[1].highest(torch.tensor(trigger.direction))
        rates.append(float((highest > trigger.threshold).float().mean()))
    assert np.mean(rates) <= 0.1 + 4 * np.std(rates) / math.sqrt(len(rates))


def test_a_trigger_needs_a_layer_before_the_gate() -> None:
    with pytest.raises(NeuronGuardError, match="layer before"):
        fit_trigger({}, {}, {}, {}, alpha=0.01)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_entering_states_are_the_residual_streams_of_the_compliance_rows(
    model_type: str, tiny_model: TinyModel
) -> None:
    model = tiny_model(model_type, layers=4)
    batches = [random_batch(0), random_batch(1, lengths=((5, 1), (2, 2), (1, 6)))]
    found = entering_states(model, batches, [1, 3])
    width = max(batch.input_ids.shape[1] for batch in batches)
    with torch.inference_mode():
        for place, batch in enumerate(batches):
            hidden = model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                output_hidden_states=True,
            ).hidden_states
            rows, columns = slice(3 * place, 3 * place + 3), batch.input_ids.shape[1]
            for layer in (1, 3):
                assert found[layer].states.shape == (6, width, 24)
                torch.testing.assert_close(found[layer].states[rows, :columns], hidden[layer][:3])
                assert torch.equal(found[layer].mask[rows, :columns], batch.attention_mask[:3].bool())
                assert not found[layer].mask[rows, columns:].any()
                assert found[layer].decisive[rows].tolist() == [batch.prompt_width - 1] * 3


def trigger_between(scores: Tensor, direction: Tensor, layer: int) -> Trigger:
    """A trigger whose threshold lies in the middle of the widest gap among the middle scores."""
    ordered = scores.flatten().sort().values
    middle = ordered[len(ordered) // 4 : -len(ordered) // 4]
    place = int((middle[1:] - middle[:-1]).argmax())
    return Trigger(
        layer=layer,
        threshold=float((middle[place] + middle[place + 1]) / 2),
        direction=tuple(direction.tolist()),
        false_trigger_rate=0.01,
        calibration_size=100,
    )


@pytest.mark.parametrize("model_type", [*FAMILIES, *MIXTURES])
@pytest.mark.parametrize("layer", [1, 2])
def test_the_trigger_s_mask_is_the_one_that_the_installed_guard_computes(
    model_type: str, layer: int, tiny_model: TinyModel
) -> None:
    model, batch = tiny_model(model_type, layers=4), random_batch()
    direction = torch.randn(24, generator=torch.Generator().manual_seed(1))
    states = entering_states(model, [batch], [layer], compliance_only=False)[layer]
    trigger = trigger_between(states.states @ direction, direction, layer)
    (active,) = keep(model, [batch], 2).where(trigger).active
    assert active is not None
    assert torch.equal(active, TriggerReadout(trigger, "cpu")(states.states))
    assert active.any()
    assert not active.all()
    edit = LayerEdit(layer=2, neurons=(3, 8), scale=(1.0, 1.0), lower=(4.0, -4.0), upper=(4.0, -4.0))
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
    with torch.inference_mode():
        plain = model(**inputs).logits
        with transformed(model, edit_transforms([edit], torch.device("cpu"), active)):
            tried = model(**inputs).logits
        with install_edits(model, [edit], trigger):
            installed = model(**inputs).logits
    assert torch.equal(tried, installed)
    assert not torch.equal(installed, plain)
