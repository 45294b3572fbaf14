"""Recorded arguments laid out for packed contexts: what sees what, entry by entry, and what is refused."""

import pytest
import torch
from torch import Tensor

from calibration.effects.exact.late_trace import LateTrace, record_trace
from calibration.effects.exact.packed_arguments import pack_arguments, packed_mask, recorded_mask
from calibration.effects.exact.suffix import traced_effects
from guard.errors import UnsupportedModelError
from tests.calibration.late_models import random_batch, shared_model
from tests.conftest import make_tiny_model


def traced(model_type: str, **settings: object) -> LateTrace:
    return record_trace(shared_model(model_type, **settings), random_batch(), 2)


def biases(trace: LateTrace) -> Tensor:
    """A made-up mask with another number in each entry."""
    batch = trace.packing.batch
    columns = batch.input_ids.shape[1]
    return torch.arange(2 * batch.size * columns**2, dtype=torch.float64).view(-1, 1, columns, columns)


def test_a_packed_context_sees_what_its_column_saw_in_its_row_and_nothing_of_the_other_branch() -> None:
    trace = traced("gpt2")
    packing, mask = trace.packing, biases(trace)
    batch = packing.batch
    tail, response, before = batch.tail, batch.continuation_width - 1, batch.edited.start
    branch = [0] * tail + [1] * response + [2] * response
    packed = packed_mask(packing, mask)
    assert packed.shape == (batch.size, 1, packing.width, before + packing.width)
    for request in range(batch.size):
        for query in range(packing.width):
            own = mask[packing.rows[request, query], 0, packing.columns[query]]
            assert torch.equal(packed[request, 0, query, :before], own[:before])
            for key in range(packing.width):
                seen = float(packed[request, 0, query, before + key])
                if branch[key] in (0, branch[query]):
                    assert seen == float(own[packing.columns[key]])
                else:
                    assert seen == torch.finfo(torch.float64).min


@pytest.mark.parametrize("as_bias", [False, True])
def test_a_context_that_sees_nothing_sees_itself(as_bias: bool) -> None:
    trace = traced("gpt2")
    nothing = torch.zeros(2 * trace.packing.batch.size, 1, 15, 15, dtype=torch.bool)
    mask = torch.zeros(nothing.shape).masked_fill(~nothing, torch.finfo(torch.float32).min) if as_bias else nothing
    packed = packed_mask(trace.packing, mask)
    visible = packed == 0 if as_bias else packed
    itself = torch.eye(trace.packing.width, dtype=torch.bool)
    assert torch.equal(visible[:, 0, :, trace.packing.batch.edited.start :], itself.expand(3, -1, -1))
    assert not visible[..., : trace.packing.batch.edited.start].any()


def test_without_a_recorded_mask_columns_see_those_before_them_and_themselves() -> None:
    trace = record_trace(shared_model("gpt2"), random_batch(prompts=(6, 6), lengths=((3, 3), (3, 3))), 2)
    assert trace.arguments[2]["attention_mask"] is None
    assert torch.equal(recorded_mask(trace, 2)[3, 0] == 0, torch.ones(11, 11, dtype=torch.bool).tril())


def test_positions_and_biases_by_key_follow_their_columns() -> None:
    falcon = traced("falcon", alibi=True)
    packing, batch = falcon.packing, falcon.packing.batch
    arguments = pack_arguments(falcon, 3, torch.float64)
    prefix, packed = arguments.prefix["alibi"], arguments.packed["alibi"]
    recorded = falcon.arguments[3]["alibi"].reshape(2 * batch.size, 4, -1)
    assert torch.equal(prefix[:, :, 0], recorded[: batch.size, :, : batch.edited.start].double())
    assert torch.equal(packed[:, :, 0, batch.edited.start :].transpose(1, 2), packing.gather(recorded.transpose(1, 2)))
    gptj = pack_arguments(traced("gptj"), 3, torch.float64)
    assert torch.equal(gptj.packed["position_ids"], packing.gather(batch.position_ids))


def test_copies_of_a_request_stand_in_a_row() -> None:
    arguments = pack_arguments(traced("gptj"), 3, torch.float64)
    given = arguments.of(slice(1, 3), 2)["position_ids"]
    assert torch.equal(given, arguments.packed["position_ids"][[1, 1, 2, 2]])


def test_attention_that_takes_no_mask_by_query_and_key_is_refused() -> None:
    model, batch = make_tiny_model("gpt2"), random_batch()
    trace = record_trace(model, batch, 1)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedModelError, match="attn_implementation='sdpa'"):
        traced_effects(trace, 1, None, torch.zeros(37))


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_mask_that_is_not_by_query_and_key_is_refused(model_type: str) -> None:
    trace = traced(model_type)
    for arguments in trace.arguments.values():
        arguments["attention_mask"] = random_batch().attention_mask
    with pytest.raises(UnsupportedModelError, match="by query and key"):
        traced_effects(trace, 2, None, torch.zeros(37))


def test_an_argument_that_nobody_has_looked_at_is_refused() -> None:
    trace = traced("gpt2")
    trace.arguments[3]["token_types"] = torch.zeros(6, 15)
    with pytest.raises(UnsupportedModelError, match="layer 3 is given token_types"):
        traced_effects(trace, 2, None, torch.zeros(37))
