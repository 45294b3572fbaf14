"""Tensors on a shelf: the same bits, whether they are in memory or in a file."""

import gc
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from calibration.runs.shelf import Shelf, taken
from calibration.search.gate import SplitBatches, prepare
from calibration.search.trigger import entering_states
from guard.errors import NeuronGuardError
from tests.calibration.late_models import random_batch
from tests.conftest import make_tiny_model

DTYPES = (torch.float32, torch.bfloat16, torch.bool, torch.int64)


def some(count: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(count)).to(dtype)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=9), st.integers(0, 400), st.sampled_from(DTYPES))
def test_whatever_is_put_on_a_shelf_comes_back_and_the_limit_is_kept(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], limit: int, dtype: torch.dtype
) -> None:
    shelf, tensors = Shelf(limit, tmp_path_factory.mktemp("shelf")), [some(count, dtype) for count in counts]
    shelved = [shelf.put(tensor) for tensor in tensors]
    assert shelf.peak <= limit
    assert shelf.in_memory + shelf.in_files == sum(tensor.nbytes for tensor in tensors)
    assert all(torch.equal(one.tensor(), tensor) for one, tensor in zip(shelved, tensors, strict=True))


def test_what_nobody_asks_for_any_more_makes_room_and_leaves_no_file(tmp_path: Path) -> None:
    shelf = Shelf(100, tmp_path)
    first, second = shelf.put(torch.ones(25)), shelf.put(torch.ones(25))
    assert (shelf.in_memory, shelf.in_files, len(list(tmp_path.iterdir()))) == (100, 100, 1)
    del first, second
    gc.collect()
    assert (shelf.in_memory, shelf.in_files, list(tmp_path.iterdir())) == (0, 0, [])


def test_a_view_is_kept_without_what_it_is_a_view_of() -> None:
    shelf, large = Shelf(), torch.ones(1000)
    kept = shelf.put(large[3:5])
    assert kept.tensor().untyped_storage().nbytes() == shelf.in_memory == 8


def test_a_tensor_that_is_there_twice_is_kept_once_and_what_is_no_tensor_stays(tmp_path: Path) -> None:
    shelf, tensor = Shelf(0, tmp_path), torch.arange(5)
    value = {"mask": tensor, "turns": (tensor, tensor + 1), "cache": None, "scale": 2.0}
    kept = shelf.put_all(value)
    assert len(list(tmp_path.iterdir())) == 2
    back = taken(kept)
    assert torch.equal(back["mask"], tensor)
    assert torch.equal(back["turns"][1], tensor + 1)
    assert (back["cache"], back["scale"]) == (None, 2.0)


def test_a_limit_without_a_folder_is_refused() -> None:
    with pytest.raises(NeuronGuardError, match="folder"):
        Shelf(10)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_late_layers_kept_in_files_give_the_same_bits_as_in_memory(share: float, tmp_path: Path) -> None:
    model = make_tiny_model(layers=4)
    batches = [tuple(random_batch(seed + place) for place in range(3)) for seed in (0, 10, 20)]
    split = SplitBatches(*batches)
    plain = prepare(model, split, split)
    limit = int(share * plain.shelf.peak)
    late = prepare(model, split, split, Shelf(limit, tmp_path))
    assert late.shelf.peak <= limit
    assert late.shelf.in_files > 0
    for name, by_layer in vars(plain.activations).items():
        assert all(torch.equal(values, getattr(late.activations, name)[layer]) for layer, values in by_layer.items())
    for kind, kept in plain.calibration.items():
        for one, other in zip(kept.runs, late.calibration[kind].runs, strict=True):
            assert torch.equal(one.residual, other.residual)
            with torch.inference_mode():
                assert torch.equal(one.readout_logits(), other.readout_logits())
    states = (entering_states(model, split.harmful, (1, 2), shelf=shelf) for shelf in (None, late.shelf))
    for one_layer, other_layer in zip(*(found.values() for found in states), strict=True):
        assert torch.equal(one_layer.states, other_layer.states)
    assert late.shelf.peak <= limit
