"""The gradient that proposes suffixes, against finite differences in float64, through the guard too."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.robustness.attacks.suffix_objective import (
    NATS_PER_UNIT,
    Evading,
    Objective,
    Place,
    Value,
    answer,
    excess_of,
    lean,
    trigger_unit,
)
from calibration.runs.layer_calls import calls
from guard.families.architectures import architecture_of
from guard.hf import install_edits
from guard.spec.edit_spec import Trigger
from tests.calibration.late_models import in_float64
from tests.conftest import TinyModel
from tests.guard.by_hand import EDITS, make_trigger

PLACE = Place(before=(7, 8, 9), after=(3, 4), compliance=(11, 12, 13, 14), refusal=(21, 22))
SUFFIX = torch.tensor([30, 31, 32])
TRIGGER = make_trigger(threshold=-4.0)


def moved(model: Any, value: Value, place: int, token: int, step: float) -> float:
    """The objective with `step` times a token's embedding added at one place of the suffix."""
    embedding = architecture_of(model).embedding(model)
    (table,) = embedding.parameters()

    def add(_: Any, __: Any, embedded: Tensor) -> Tensor:
        changed = embedded.clone()
        changed[:, len(PLACE.before) + place] += step * table[token]
        return changed

    handle = embedding.register_forward_hook(add)
    with torch.no_grad():
        found = float(value(model, PLACE.batch(SUFFIX[None], pad_id=0)).sum())
    handle.remove()
    return found


@pytest.mark.parametrize("value", [lean, answer, Evading(TRIGGER, 0.7)], ids=["Y", "answer", "evading"])
@pytest.mark.parametrize("guard", [None, "edit", "trigger"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_the_gradient_agrees_with_finite_differences(
    tiny_model: TinyModel, model_type: str, guard: str | None, value: Value
) -> None:
    if guard is not None and isinstance(value, Evading):
        pytest.skip("this objective is of the model without a guard")
    model = in_float64(tiny_model(model_type))
    with install_edits(model, EDITS, TRIGGER if guard == "trigger" else None) if guard else nullcontext():
        slopes = Objective(model, value, 0).gradient(PLACE, SUFFIX)
        assert slopes.shape == (3, 61)
        for place, token in ((0, 5), (1, 40), (2, 60)):
            step = 1e-6
            difference = moved(model, value, place, token, step) - moved(model, value, place, token, -step)
            assert difference, "nothing moves: nothing is shown"
            torch.testing.assert_close(float(slopes[place, token]), difference / (2 * step), rtol=1e-4, atol=1e-7)


def test_scores_are_those_of_each_suffix_alone(tiny_model: TinyModel) -> None:
    model = in_float64(tiny_model())
    objective = Objective(model, lean, 0)
    suffixes = torch.randint(61, (150, 3), generator=torch.Generator().manual_seed(0))
    together = objective.scores(PLACE, suffixes)
    assert together.shape == (150,)
    for place in (0, 77, 149):
        torch.testing.assert_close(together[place], objective.scores(PLACE, suffixes[place : place + 1])[0])


def test_y_is_what_the_answer_weighs_less_what_the_refusal_does(tiny_model: TinyModel) -> None:
    model = in_float64(tiny_model())
    other = Place(PLACE.before, PLACE.after, PLACE.refusal, PLACE.compliance)
    of_answer, of_refusal = (Objective(model, answer, 0).scores(place, SUFFIX[None]) for place in (PLACE, other))
    torch.testing.assert_close(Objective(model, lean, 0).scores(PLACE, SUFFIX[None]), of_answer - of_refusal)


def scores_by_hand(model: Any, trigger: Trigger) -> Tensor:
    """The trigger's scores from the last prompt token on, of the row with the compliance."""
    batch, seen = PLACE.batch(SUFFIX[None], pad_id=0), []
    with calls(architecture_of(model).decoder_layers(model)[trigger.layer], lambda stream, _: seen.append(stream)):
        model(input_ids=batch.input_ids[:1])
    first = len(PLACE.before) + len(SUFFIX) + len(PLACE.after) - 1
    return (seen[0][0, first:] * torch.tensor(trigger.direction)).sum(-1)


@pytest.mark.parametrize("above", [True, False])
def test_only_a_score_above_the_threshold_is_held_against_a_suffix(tiny_model: TinyModel, above: bool) -> None:
    model = in_float64(tiny_model())
    highest = float(scores_by_hand(model, TRIGGER).detach().max())
    trigger = TRIGGER.model_copy(update={"threshold": highest + (-0.5 if above else 0.5)})
    leaning = Objective(model, lean, 0).scores(PLACE, SUFFIX[None])
    evading = Objective(model, Evading(trigger, 0.25), 0).scores(PLACE, SUFFIX[None])
    expected = leaning - (NATS_PER_UNIT * 0.5 / 0.25 if above else 0.0)
    torch.testing.assert_close(evading, expected, rtol=1e-4, atol=1e-4)


def test_the_unit_is_the_excess_without_a_suffix_and_never_nothing(tiny_model: TinyModel) -> None:
    model = in_float64(tiny_model())
    batch, seen = PLACE.batch(torch.zeros(1, 0, dtype=torch.int64), pad_id=0), []
    with calls(architecture_of(model).decoder_layers(model)[TRIGGER.layer], lambda stream, _: seen.append(stream)):
        model(**{name: getattr(batch, name) for name in ("input_ids", "attention_mask", "position_ids")})
    low = TRIGGER.model_copy(update={"threshold": -100.0})
    excess = float(excess_of(low, seen[0], batch).detach()[0])
    assert trigger_unit(model, low, batch) == pytest.approx(excess)
    high = TRIGGER.model_copy(update={"threshold": 1e6})
    assert trigger_unit(model, high, batch) > 0
