"""A model's own layer on packed contexts, against what the recorded run had there."""

import pytest
import torch
from torch import Tensor

from calibration.effects.exact.late_trace import LateTrace, record_trace
from calibration.effects.exact.layer_replicas import LayerReplicas, PrefixCache, is_plain
from guard.families.architectures import architecture_of
from tests.calibration.late_models import Int8Linear, late_model, random_batch, shared_model
from tests.conftest import FAMILIES, MIXTURES

EVERY_REQUEST = slice(None)


def real(trace: LateTrace, packed: Tensor) -> Tensor:
    """The packed values [B, S, ...] that stand on tokens, not on padding."""
    return packed[trace.packing.gather(trace.packing.batch.attention_mask).bool()]


@pytest.mark.parametrize("model_type", [*FAMILIES, *MIXTURES])
def test_replicas_of_the_recorded_stream_leave_as_it_left(model_type: str) -> None:
    trace = record_trace(shared_model(model_type), random_batch(), 2)
    packing = trace.packing
    entering, left = packing.gather(trace.entering[2]), real(trace, packing.gather(trace.entering[3]))
    replicas = LayerReplicas(trace, 2)
    stream = entering[:, None].expand(-1, 3, -1, -1)
    with torch.inference_mode():
        again = replicas(stream, EVERY_REQUEST)
        set_to_their_own = replicas.with_neurons(stream, EVERY_REQUEST, trace.neurons[2][:, None].expand(-1, 3, -1, -1))
    for copy in range(3):
        torch.testing.assert_close(real(trace, again[:, copy]), left, rtol=0, atol=1e-12)
        torch.testing.assert_close(real(trace, set_to_their_own[:, copy]), left, rtol=0, atol=1e-12)


def test_some_requests_and_contexts_are_the_same_as_among_all() -> None:
    trace = record_trace(shared_model("bloom"), random_batch(), 2)
    stream = trace.packing.gather(trace.entering[2])[:, None].expand(-1, 2, -1, -1)
    replicas = LayerReplicas(trace, 2)
    with torch.inference_mode():
        whole = replicas(stream, EVERY_REQUEST)
        some = replicas(stream[1:2], slice(1, 2), slice(3, None))
    torch.testing.assert_close(some, whole[1:2, :, 3:], rtol=0, atol=1e-12)


def test_a_narrow_layer_is_copied_and_a_wide_or_quantised_one_is_the_models_own() -> None:
    batch = random_batch()
    dtypes = (torch.bfloat16, torch.float64, torch.bfloat16)
    narrow, wide, quantised = (late_model("gpt2", dtype=dtype) for dtype in dtypes)
    mlp = architecture_of(quantised).decoder_layers(quantised)[2].get_submodule("mlp")
    linear = torch.nn.Linear(37, 24, dtype=torch.bfloat16).requires_grad_(False)
    mlp.register_module("c_proj", Int8Linear(linear))
    kinds = []
    for model in (narrow, wide, quantised):
        replicas = LayerReplicas(record_trace(model, batch, 2), 2)
        own = architecture_of(model).decoder_layers(model)[2]
        kinds.append((replicas.layer is own, is_plain(own), replicas.dtype))
    assert kinds == [(False, True, torch.float32), (True, True, torch.float64), (True, False, torch.bfloat16)]
    assert {parameter.dtype for parameter in narrow.parameters()} == {torch.bfloat16}


def test_the_prefix_comes_before_new_keys_and_values_once_for_each_copy() -> None:
    prefix = PrefixCache()
    key, value = torch.randn(2, 4, 3, 6), torch.randn(2, 4, 3, 5)
    assert prefix.update(key, value, 7) == (key, value)
    new_key, new_value = torch.randn(4, 4, 2, 6), torch.randn(4, 4, 2, 5)
    keys, values = prefix.copies(slice(None), 2).update(new_key, new_value, 7)
    assert torch.equal(keys, torch.cat([key[[0, 0, 1, 1]], new_key], dim=2))
    assert torch.equal(values, torch.cat([value[[0, 0, 1, 1]], new_value], dim=2))


def test_without_a_prefix_keys_and_values_pass_as_they_are() -> None:
    key, value = torch.randn(4, 4, 2, 6), torch.randn(4, 4, 2, 6)
    assert PrefixCache().copies(slice(None), 2).update(key, value, 0) == (key, value)
