"""Completion: exact effects, first in and last in, of a shortlist."""

import pytest
import torch

from calibration.effects.outcome import outcome, readout_logits
from calibration.runs.interventions import Mediator, patched_outcome
from calibration.runs.stage import keep
from calibration.runs.trial import edit_transforms, transformed
from calibration.search.completion import REQUESTS, exact_weights, first_requests
from calibration.search.selection import Member
from guard.families.architectures import architecture_of
from guard.spec.edit_spec import LayerEdit
from tests.calibration.late_models import random_batch, shared_model
from tests.calibration.organisms import late as late_of

MEMBER = Member(layer=5, neuron=7, carries="compliance", effect=1.0)


def test_the_first_requests_of_a_batch_keep_both_rows_of_each() -> None:
    batch = late_of("cancelling").validation["harmful"].batches[0]
    few = first_requests(batch, 3)
    assert few.size == 3
    assert torch.equal(few.input_ids[:3], batch.input_ids[:3])
    assert torch.equal(few.input_ids[3:], batch.input_ids[batch.size : batch.size + 3])


def test_a_weight_is_the_mean_of_the_effects_alone_and_with_the_members_removed() -> None:
    late = late_of("cancelling")
    harmful = late.calibration["harmful"].where(None)
    values = {layer: torch.zeros_like(mean) for layer, mean in late.activations.benign_mean.items()}
    shortlist = torch.zeros(len(late.layers), len(values[5]), dtype=torch.bool)
    shortlist[-1, 226] = True
    found = exact_weights(harmful, [MEMBER], values, shortlist)
    model, batch = harmful.runs[0].model, first_requests(harmful.runs[0].batch, REQUESTS)

    def mean_outcome(*neurons: int) -> float:
        zeros, chosen = (0.0,) * len(neurons), tuple(sorted(neurons))
        edit = LayerEdit(layer=5, neurons=chosen, scale=(1.0,) * len(neurons), lower=zeros, upper=zeros)
        with torch.no_grad(), transformed(model, edit_transforms([edit], batch.input_ids.device)):
            return float(outcome(readout_logits(model, batch), batch).mean())

    with torch.no_grad():
        unedited = float(outcome(readout_logits(model, batch), batch).mean())
    alone = unedited - mean_outcome(226)
    with_member_removed = mean_outcome(7) - mean_outcome(7, 226)
    assert float(found[-1, 226]) == pytest.approx((alone + with_member_removed) / 2, abs=1e-4)
    assert float(found.abs().sum()) == pytest.approx(abs(float(found[-1, 226])))


@pytest.mark.parametrize("model_type", ["gemma2", "opt", "qwen2_moe"])
def test_weights_of_other_families_are_the_mean_of_both_effects_too(model_type: str) -> None:
    model, batch = shared_model(model_type), random_batch()
    harmful = keep(model, [batch], 2).where(None)
    d_ff = architecture_of(model).d_ff(model)
    values = {layer: torch.full((d_ff,), 0.3) for layer in (2, 3)}
    members = [Member(layer=3, neuron=5, carries="compliance", effect=1.0)]
    shortlist = torch.zeros(2, d_ff, dtype=torch.bool)
    shortlist[0, 9] = shortlist[1, 30] = True
    found = exact_weights(harmful, members, values, shortlist)

    def held(*neurons: tuple[int, int]) -> float:
        value = torch.full((), 0.3)
        mediators = {Mediator("neurons", layer, (neuron,)): value for layer, neuron in neurons}
        return float(patched_outcome(model, batch, mediators).mean())

    for place, candidate in ((0, (2, 9)), (1, (3, 30))):
        expected = (held() - held(candidate) + held((3, 5)) - held((3, 5), candidate)) / 2
        assert float(found[place, candidate[1]]) == pytest.approx(expected, abs=3e-5)
    assert int((found != 0).sum()) == 2
