"""Mediated effects: their identities, and what each intervention must and must not move."""

from typing import Any

import pytest
import torch

from calibration.effects.mediation import all_mediators, controlled_effect, mediator_effects, pair_effects
from calibration.runs.interventions import TOKEN_GROUPS, Mediator, patched_outcome, recorded, token_columns
from guard.errors import NeuronGuardError
from guard.spec.edit_spec import LayerEdit
from tests.calibration.late_models import base_outcome, late_model, random_batch, shared_model
from tests.conftest import FAMILIES

LAYERS = 4


families = pytest.mark.parametrize("model_type", FAMILIES)


@families
def test_total_effect_is_natural_direct_plus_total_natural_indirect(model_type: str) -> None:
    model = shared_model(model_type)
    reference, harmful = random_batch(0), random_batch(1)
    mediators = all_mediators(model, [2], tokens=["edited", "last_prompt"])
    for effects in pair_effects(model, reference, harmful, mediators).values():
        torch.testing.assert_close(effects.total, effects.natural_direct + effects.total_natural_indirect)


@pytest.mark.parametrize("kind", ["layer", "attention", "mlp", "neurons"])
@pytest.mark.parametrize("tokens", [*TOKEN_GROUPS, (9, 10)])
@pytest.mark.parametrize("model_type", ["qwen2", "opt", "falcon"])
def test_effects_are_those_of_full_patched_runs(model_type: str, kind: Any, tokens: Any) -> None:
    model = shared_model(model_type)
    reference, harmful = random_batch(0), random_batch(1)
    mediator = Mediator(kind, 2, (1, 30) if kind == "neurons" else None, tokens)
    effects = pair_effects(model, reference, harmful, [mediator])[mediator]
    y_plain, plain = recorded(model, reference, [mediator])
    y_harm, harm = recorded(model, harmful, [mediator])
    torch.testing.assert_close(effects.total, y_harm - y_plain)
    torch.testing.assert_close(effects.natural_indirect, patched_outcome(model, reference, harm) - y_plain)
    torch.testing.assert_close(effects.total_natural_indirect, y_harm - patched_outcome(model, harmful, plain))


@families
def test_patching_a_run_with_its_own_values_changes_nothing(model_type: str) -> None:
    model, batch = shared_model(model_type), random_batch()
    for mediator in [*all_mediators(model, [2]), Mediator("neurons", 1)]:
        y, values = recorded(model, batch, [mediator])
        torch.testing.assert_close(patched_outcome(model, batch, values), y, rtol=0, atol=0)


@families
def test_the_last_layer_at_the_columns_read_out_carries_the_whole_effect(model_type: str) -> None:
    model = shared_model(model_type)
    reference, harmful = random_batch(0), random_batch(1)
    mediator = Mediator("layer", LAYERS - 1)
    effects = pair_effects(model, reference, harmful, [mediator])[mediator]
    torch.testing.assert_close(effects.natural_indirect, effects.total)
    torch.testing.assert_close(effects.natural_direct, torch.zeros_like(effects.total))
    assert effects.total.abs().amin() > 1e-4


@families
def test_all_neurons_of_a_layer_carry_what_its_mlp_carries(model_type: str) -> None:
    model = shared_model(model_type)
    reference, harmful = random_batch(0), random_batch(1)
    neurons, mlp = Mediator("neurons", 2), Mediator("mlp", 2)
    effects = pair_effects(model, reference, harmful, [neurons, mlp])
    torch.testing.assert_close(effects[neurons].natural_indirect, effects[mlp].natural_indirect)
    assert effects[mlp].natural_indirect.abs().amax() > 1e-3


def test_a_pair_of_equal_prompts_has_no_effects() -> None:
    model, batch = late_model(), random_batch()
    for effects in pair_effects(model, batch, batch, all_mediators(model)).values():
        torch.testing.assert_close(effects.natural_indirect, torch.zeros_like(effects.total), rtol=0, atol=1e-12)


def test_swapping_the_pair_turns_noising_into_denoising() -> None:
    model = late_model()
    reference, harmful = random_batch(0), random_batch(1)
    mediator = Mediator("mlp", 1)
    forward = pair_effects(model, reference, harmful, [mediator])[mediator]
    backward = pair_effects(model, harmful, reference, [mediator])[mediator]
    torch.testing.assert_close(forward.natural_indirect, -backward.total_natural_indirect)


def test_batches_are_concatenated_in_order() -> None:
    model = late_model()
    pairs = [(random_batch(0), random_batch(1)), (random_batch(2), random_batch(3))]
    mediators, done = all_mediators(model, layers=[3]), list[int]()
    together = mediator_effects(model, pairs, mediators, done.append)
    alone = pair_effects(model, *pairs[1], mediators)
    assert list(together) == mediators
    assert done == [3, 3]
    for mediator in mediators:
        torch.testing.assert_close(together[mediator].natural_indirect[3:], alone[mediator].natural_indirect)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_effects_come_in_float32_from_narrow_models(dtype: torch.dtype) -> None:
    model = late_model(dtype=dtype)
    effects = pair_effects(model, random_batch(0), random_batch(1), all_mediators(model))
    assert {each.natural_indirect.dtype for each in effects.values()} == {torch.float32}
    assert all(bool(each.total_natural_indirect.isfinite().all()) for each in effects.values())


def test_batches_that_do_not_line_up_are_refused() -> None:
    with pytest.raises(NeuronGuardError, match="line up"):
        pair_effects(late_model(), random_batch(0), random_batch(1, continuations=18), all_mediators(late_model()))


def test_token_groups_are_counted_from_the_end_of_the_prompt() -> None:
    batch = random_batch()  # 11 prompt columns, the last 2 of them common; continuations of up to 4 tokens
    columns = {group: token_columns(batch, group) for group in TOKEN_GROUPS}
    assert columns == {
        "edited": [9, 10, 11, 12, 13],
        "tail": [9, 10],
        "last_prompt": [10],
        "response": [11, 12, 13],
        "first_response": [11],
    }


def test_one_token_continuations_have_no_response_columns() -> None:
    batch = random_batch(lengths=((1, 1), (1, 1), (1, 1)))
    assert token_columns(batch, "response") == token_columns(batch, "first_response") == []
    mediator = Mediator("mlp", 1, tokens="first_response")
    effects = pair_effects(late_model(), batch, batch, [mediator])[mediator]
    assert effects.natural_indirect.tolist() == [0.0, 0.0, 0.0]


def test_the_controlled_effect_is_what_the_edit_takes_from_y() -> None:
    model, batch = late_model(), random_batch()
    edit = LayerEdit(layer=2, neurons=(0, 5), scale=(1.0, 1.0), lower=(0.3, 0.3), upper=(0.3, 0.3))
    constant = torch.full((), 0.3, dtype=torch.float32).double()
    everywhere = tuple(range(batch.input_ids.shape[1]))
    clamped = patched_outcome(model, batch, {Mediator("neurons", 2, (0, 5), everywhere): constant})
    torch.testing.assert_close(controlled_effect(model, batch, [edit]), base_outcome(model, batch) - clamped)
    nowhere = torch.zeros(batch.input_ids.shape, dtype=torch.bool)
    assert controlled_effect(model, batch, [edit], nowhere).tolist() == [0.0, 0.0, 0.0]
