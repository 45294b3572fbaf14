"""Neurons that carry refusal: scaled up, or held up where they would be silent."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from calibration.runs.stage import keep
from calibration.search.bounds import OVERSHOOT, Activations, Bounds, Budget, build_edits, search_bounds
from calibration.search.selection import Member, Requests
from guard.families.architectures import architecture_of
from tests.calibration.gates_at_random import BOUNDS, activations_of_two_layers, gates, held
from tests.calibration.late_models import random_batch
from tests.conftest import make_tiny_model

SILENT = 6


@given(gates(), activations_of_two_layers(), BOUNDS)
def test_neurons_that_carry_refusal_are_only_ever_scaled_up_or_held_further_from_zero(
    members: list[Member], activations: Activations, bounds: Bounds
) -> None:
    found = held(build_edits(members, activations, bounds))
    for member in members:
        scale, lower, upper = found[member.layer, member.neuron]
        if member.carries == "refusal" and scale == bounds.amplification:
            assert scale >= 1.0
            assert math.isinf(lower)
            assert math.isinf(upper)
        elif member.carries == "refusal":
            assert bounds.family == "hold"
            assert scale == 1.0
        if member.carries == "refusal" and not (math.isinf(lower) and math.isinf(upper)):
            silent = float(activations.harmful_mean[member.layer][member.neuron])
            assert (lower >= silent >= 0 and upper == math.inf) or (upper <= silent <= 0 and lower == -math.inf)


@given(gates(), activations_of_two_layers(), st.floats(0.0, OVERSHOOT, width=32))
def test_a_neuron_is_held_up_on_one_side_towards_what_it_says_where_the_model_refuses(
    members: list[Member], activations: Activations, strength: float
) -> None:
    found = held(build_edits(members, activations, Bounds(family="hold", strength=strength, amplification=1.0)))
    for member in members:
        if member.carries == "compliance":
            scale, lower, upper = found[member.layer, member.neuron]
            silent, spoken = (
                of[member.layer][member.neuron] for of in (activations.harmful_mean, activations.reference_mean)
            )
            bound = float(torch.lerp(silent, spoken, strength))
            assert scale == 1.0
            assert (lower, upper) == ((bound, math.inf) if spoken >= silent else (-math.inf, bound))


def requests_with_a_silent_neuron() -> tuple[Requests, Requests]:
    """Harmful and benign requests to a tiny model with a neuron that writes refusal and is never active.

    A trigger keeps every edit off the benign ones.
    """
    model = make_tiny_model(layers=4, seed=3)
    batch = random_batch(1)
    first = batch.targets[:, 0]
    with torch.no_grad():
        layer = architecture_of(model).decoder_layers(model)[3]
        layer.mlp.up_proj.weight[SILENT] = 0.0  # type: ignore[union-attr, operator]
        unembedding = model.get_parameter("lm_head.weight")  # [vocabulary, d_model]
        column = (unembedding[first[batch.size :]] - unembedding[first[: batch.size]]).mean(0)
        layer.mlp.down_proj.weight[:, SILENT] = column  # type: ignore[union-attr, operator]
    runs = keep(model, [batch], 3).runs
    everywhere = torch.ones_like(batch.attention_mask, dtype=torch.bool)
    return Requests(runs, (everywhere,)), Requests(runs, (~everywhere,))


def test_a_silent_neuron_that_carries_refusal_is_held_up_since_scaling_it_up_does_nothing() -> None:
    harmful, benign = requests_with_a_silent_neuron()
    column = {3: torch.zeros(37)}
    spoken = {3: torch.zeros(37).index_fill(0, torch.tensor(SILENT), 4.0)}
    activations = Activations(column, column, column, column, spoken, column)
    member = Member(layer=3, neuron=SILENT, carries="refusal", effect=-1.0)
    found = search_bounds([member], activations, harmful, benign, Budget(kl=0.01, refusal=1.0), seed=0)
    assert found.bounds.family == "hold"
    ((lower,), (upper,)) = (found.edits[0].lower, found.edits[0].upper)
    assert 0.0 < lower < upper == math.inf
    scaled = [trial.harmful_outcome for trial in found.trials if trial.family != "hold"]
    assert max(scaled) - min(scaled) < 1e-6
    assert found.measured.harmful_outcome < min(scaled) - 0.1
