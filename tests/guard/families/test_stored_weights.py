"""What a linear map stores: plain ones, and every way in which a library keeps quantised ones."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import quantize_dynamic
from torch.testing._internal.two_tensor import TwoTensor
from transformers.pytorch_utils import Conv1D

from guard.errors import UnsupportedModelError
from guard.families.stored_weights import stored_tensors


def names(linear: nn.Module) -> list[str]:
    return [name for name, _ in stored_tensors(linear)]


def test_a_plain_map_has_weight_and_bias() -> None:
    assert names(nn.Linear(3, 5)) == ["bias", "weight"]
    assert names(nn.Linear(3, 5, bias=False)) == ["weight"]
    assert names(Conv1D(5, 3)) == ["bias", "weight"]  # type: ignore[no-untyped-call]


def test_values_are_those_of_the_map() -> None:
    linear = nn.Linear(3, 5)
    stored = dict(stored_tensors(linear))
    assert torch.equal(stored["weight"], linear.weight)
    assert not stored["weight"].requires_grad


def test_buffers_count_where_a_map_has_no_parameters() -> None:
    class Packed(nn.Module):
        """As GPTQ's and AWQ's maps: nothing but buffers."""

        def __init__(self) -> None:
            super().__init__()
            for name in ("scales", "qzeros", "qweight", "g_idx"):
                self.register_buffer(name, torch.zeros(2, 3, dtype=torch.int32))

    assert names(Packed()) == ["g_idx", "qweight", "qzeros", "scales"]


def test_a_weight_that_is_made_of_tensors_is_taken_apart() -> None:
    integers, scales = torch.arange(6, dtype=torch.float32).view(2, 3), torch.full((2, 3), 0.5)
    linear = nn.Linear(3, 2, bias=False)
    linear.weight = nn.Parameter(TwoTensor(TwoTensor(integers, scales), TwoTensor(scales, integers)))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        stored = dict(stored_tensors(linear))
    assert list(stored) == ["weight.a.a", "weight.a.b", "weight.b.a", "weight.b.b"]
    assert torch.equal(stored["weight.a.a"], integers)
    assert torch.equal(stored["weight.b.a"], scales)


class State:
    """As bitsandbytes keeps it: some tensors, some settings, and another of its kind inside."""

    def __init__(self, nested: "State | None" = None) -> None:
        self.code, self.absmax, self.blocksize, self.state2 = torch.arange(16.0), torch.ones(4), 64, nested


class FourBit(nn.Module):
    """A map with 4-bit weights that may not be asked for a state_dict, and that counts how often it runs."""

    in_features, out_features, runs = 6, 2, 0

    def __init__(self, state: State) -> None:
        super().__init__()
        weight: Any = nn.Parameter(torch.zeros(6, 1, dtype=torch.uint8), requires_grad=False)
        weight.quant_state, self.weight = state, weight

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        assert x.shape == (1, 6)
        return x[:, :2]

    def state_dict(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("the state_dict was asked for")


def test_what_is_kept_beside_a_weight_counts_and_so_does_what_is_nested_in_it() -> None:
    linear = FourBit(State(nested=State()))
    beside = ["weight.quant_state.absmax", "weight.quant_state.code"]
    nested = ["weight.quant_state.state2.absmax", "weight.quant_state.state2.code"]
    assert names(linear) == ["weight", *beside, *nested]
    assert linear.runs == 1
    assert names(FourBit(State())) == ["weight", *beside]


def test_weights_packed_into_anything_but_tensors_are_refused_by_name() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear}, dtype=torch.qint8)  # type: ignore[no-untyped-call]
    with pytest.raises(UnsupportedModelError, match="not as tensors"):
        names(packed[0])
