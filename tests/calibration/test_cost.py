"""The formulas of cost, against operations that torch counts."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from calibration.cost import (
    LARGE,
    LARGE_WORK,
    NODE,
    Machine,
    Shape,
    kept_bytes,
    mediation_flops,
    pass_flops,
    steps,
)
from calibration.effects.mediation import all_mediators, pair_effects
from calibration.effects.outcome import readout_logits
from calibration.runs.resume import record
from tests.calibration.late_models import random_batch
from tests.conftest import make_tiny_model


def counted(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    "sizes", [{}, {"layers": 5}, {"d_ff": 90}, {"d_model": 32, "heads": 8}, {"vocabulary": 200}], ids=str
)
def test_passes_and_mediation_take_the_operations_that_the_formulas_say(sizes: dict[str, int]) -> None:
    model = make_tiny_model(**sizes, attn_implementation="eager")  # type: ignore[arg-type]
    shape, batch, other = Shape.of(model.config), random_batch(1), random_batch(2)
    rows, columns = batch.input_ids.shape
    read = batch.continuation_width
    assert counted(lambda: readout_logits(model, batch)) == pass_flops(shape, rows, columns, read + 1)
    run = record(model, batch, 1)
    assert counted(run.readout_logits) == pass_flops(shape, rows, columns, read, shape.layers - 1)
    mediators = all_mediators(model)
    mediators += all_mediators(model, kinds=("layer",), tokens=("last_prompt", "response"))
    assert counted(lambda: pair_effects(model, batch, other, mediators)) == mediation_flops(shape, rows, columns, read)


def test_the_weights_of_a_model_are_counted() -> None:
    model = make_tiny_model()
    matrices = sum(weight.numel() for weight in model.parameters() if weight.dim() == 2)
    assert Shape.of(model.config).parameters == matrices


def test_a_large_model_has_the_parameters_and_hours_that_the_plan_says() -> None:
    assert 70e9 < LARGE.parameters < 72e9
    made = {step.name: step.hours(LARGE, NODE) for step in steps(LARGE, LARGE_WORK, batch=32)}
    assert sum(made.values()) < 24
    assert max(made, key=lambda name: made[name]) in ("mediation", "growing the gate")
    assert sum(kept_bytes(LARGE, LARGE_WORK).values()) > 100e9


def test_shared_steps_take_their_share_of_the_time() -> None:
    one = Machine(devices=2, flops=1e15, bandwidth=4.8e12, utilisation=0.4, devices_a_model=2)
    for step in steps(LARGE, LARGE_WORK, batch=32):
        ratio = step.hours(LARGE, one) / step.hours(LARGE, Machine(8, 1e15, 4.8e12, 0.4, 2))
        assert ratio == pytest.approx(4.0 if step.shared else 1.0)
