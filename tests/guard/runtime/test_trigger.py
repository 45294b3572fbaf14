"""The read-out against sums in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guard.errors import EditNotAppliedError
from guard.runtime.trigger import TriggerReadout
from tests.guard.by_hand import make_trigger

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3), st.integers(1, 41), st.integers(0, 2**31))
def test_a_token_is_active_where_its_score_in_float64_is_above_the_threshold(
    dtype: torch.dtype, tokens: list[int], d_model: int, seed: int
) -> None:
    residual = torch.randn(*tokens, d_model, generator=torch.Generator().manual_seed(seed)).to(dtype)
    trigger = make_trigger(d_model, threshold=0.25)
    active = TriggerReadout(trigger, "cpu")(residual)
    assert active.dtype == torch.bool
    assert list(active.shape) == tokens
    for row, is_active in zip(residual.reshape(-1, d_model).tolist(), active.flatten().tolist(), strict=True):
        score = math.fsum(value * weight for value, weight in zip(row, trigger.direction, strict=True))
        assert is_active == (score > 0.25) or abs(score - 0.25) < 1e-5


def test_a_score_on_the_threshold_is_not_active() -> None:
    trigger = make_trigger(2).model_copy(update={"direction": (1.0, 2.0), "threshold": 5.0})
    readout = TriggerReadout(trigger, "cpu")
    assert readout(torch.tensor([[1.0, 2.0], [1.0, 2.5]])).tolist() == [False, True]


def test_a_token_s_score_does_not_depend_on_its_batch() -> None:
    residual = torch.randn(64, 40, generator=torch.Generator().manual_seed(1))
    readout = TriggerReadout(make_trigger(40), "cpu")
    together = (residual * readout.direction).sum(-1)
    for index, row in enumerate(residual):
        threshold = together[index]
        readout.threshold.copy_(threshold)
        assert not readout(row)
        readout.threshold.copy_(threshold.nextafter(torch.tensor(-torch.inf)))
        assert readout(row)


def test_autocast_does_not_coarsen_the_score() -> None:
    residual = torch.randn(200, 40, generator=torch.Generator().manual_seed(2))
    readout = TriggerReadout(make_trigger(40), "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = readout(residual)
    assert torch.equal(inside, readout(residual))


def test_casting_the_model_leaves_direction_and_threshold_in_float32() -> None:
    readout = TriggerReadout(make_trigger(threshold=1 / 3), "cpu")
    before = readout.direction.clone(), readout.threshold.clone()
    readout.to(torch.bfloat16)
    assert torch.equal(readout.direction, before[0])
    assert torch.equal(readout.threshold, before[1])


def test_a_residual_stream_of_another_width_is_refused() -> None:
    with pytest.raises(EditNotAppliedError, match="width 24, but one of width 25"):
        TriggerReadout(make_trigger(24), "cpu")(torch.zeros(3, 25))
