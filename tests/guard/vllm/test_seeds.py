"""A draw that is thrown away leaves the request's generator where it was, and needs no offset."""

import pytest
import torch
from torch import Tensor

from guard.vllm.seeds import drawing_from_copies


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(generator: torch.Generator) -> Tensor:
    return torch.empty(5).exponential_(generator=generator)


def wind_back(generators: dict[int, torch.Generator], row: int) -> None:
    """As vLLM does."""
    generators[row].set_offset(generators[row].get_offset() - 4)


def test_a_cpus_generator_cannot_be_wound_back() -> None:
    with pytest.raises(RuntimeError):
        wind_back({0: seeded(1)}, 0)


def test_what_is_drawn_from_a_copy_is_drawn_again() -> None:
    generators = {0: seeded(1), 3: seeded(2)}
    with drawing_from_copies(generators, [1, 3]):
        thrown_away = drawn(generators[3])
        wind_back(generators, 3)
    assert torch.equal(drawn(generators[3]), thrown_away)
    assert not torch.equal(drawn(generators[3]), thrown_away)


def test_other_rows_draw_from_their_own() -> None:
    generators = {0: seeded(1), 3: seeded(2)}
    with drawing_from_copies(generators, [3]):
        first = drawn(generators[0])
    assert not torch.equal(drawn(generators[0]), first)


def test_a_row_without_a_generator_gets_none() -> None:
    generators: dict[int, torch.Generator] = {}
    with drawing_from_copies(generators, [0, 1]):
        assert not generators
    assert not generators


def test_generators_are_their_own_again_after_an_error() -> None:
    own = seeded(1)
    generators = {0: own}
    with pytest.raises(ValueError, match="pass"), drawing_from_copies(generators, [0]):
        raise ValueError("the pass failed")
    assert generators[0] is own
