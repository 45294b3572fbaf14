"""What stands in for a model's own modules: how the mask is handed on, and what the trigger's layer may be given."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from guard.errors import EditNotAppliedError
from guard.runtime.trigger import TriggerReadout
from guard.runtime.wrappers import ActiveMask, TriggeredEntry
from tests.guard.by_hand import make_trigger


def handed(active: Tensor) -> ActiveMask:
    mask = ActiveMask()
    mask.give(active)
    return mask


@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**31))
def test_a_mask_is_flattened_row_by_row_for_an_mlp_that_sees_all_tokens_in_one_dimension(
    rows: int, tokens: int, seed: int
) -> None:
    active = torch.rand(rows, tokens, generator=torch.Generator().manual_seed(seed)) < 0.5
    flat = handed(active).take((rows * tokens,))
    assert flat.tolist() == [bool(value) for row in active.tolist() for value in row]
    assert torch.equal(handed(active).take((rows, tokens)), active)


@pytest.mark.parametrize(
    ("given_shape", "asked"),
    [
        ((2, 4), (4, 2)),
        ((2, 4), (7,)),
        ((2, 4), (9,)),
        ((2, 4), (1, 8)),
        ((2, 4), (2, 2, 2)),
        ((2, 4), ()),
        ((8,), (2, 4)),
        ((8,), (1, 8)),
        ((2, 2, 2), (8,)),
        ((1, 2, 4), (2, 4)),
        ((2, 1), (1, 2)),
        ((1,), ()),
    ],
)
def test_no_other_change_of_shape_passes(given_shape: tuple[int, ...], asked: tuple[int, ...]) -> None:
    with pytest.raises(EditNotAppliedError, match=r"the trigger saw tokens of shape"):
        handed(torch.ones(given_shape, dtype=torch.bool)).take(asked)


def test_a_mask_is_taken_once() -> None:
    mask = handed(torch.ones(2, 4, dtype=torch.bool))
    mask.take((8,))
    with pytest.raises(EditNotAppliedError, match="without its trigger"):
        mask.take((8,))


class Attention(nn.Module):
    """Returns a tuple, as attention does, and is handed the stream by name, by position, or not at all."""

    def forward(self, hidden_states: Tensor | None = None, scale: float = 1.0, **_: Any) -> tuple[Any, str]:
        return (None if hidden_states is None else hidden_states * scale), "weights"


@pytest.mark.parametrize("by_name", [False, True])
def test_an_entry_is_called_as_it_was_and_the_stream_read_however_it_is_handed_over(by_name: bool) -> None:
    stream = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(4))
    mask, readout = ActiveMask(), TriggerReadout(make_trigger(), "cpu")
    entry = TriggeredEntry(Attention(), readout, (mask,))
    output, weights = entry(hidden_states=stream, scale=2.0) if by_name else entry(stream, scale=2.0)
    assert torch.equal(output, stream * 2)
    assert weights == "weights"
    assert torch.equal(mask.take((2, 5)), readout(stream))


@pytest.mark.parametrize("arguments", [(), ("tokens",)])
def test_an_entry_without_a_stream_is_refused_before_anything_runs(arguments: tuple[Any, ...]) -> None:
    mask = ActiveMask()
    entry = TriggeredEntry(Attention(), TriggerReadout(make_trigger(), "cpu"), (mask,))
    with pytest.raises(EditNotAppliedError, match="without a residual stream"):
        entry(*arguments, positions=torch.zeros(2, 5))
    assert mask.hand.active is None
