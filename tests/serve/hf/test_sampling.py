"""How tokens are drawn: from the right distribution, each sequence by its own settings and its own numbers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serve.hf.sampling import draw, generator_for
from serve.job import Sampling

LOGITS = torch.tensor([2.0, -1.0, 0.5, 1.0, -30.0])


def drawn(sampling: Sampling, times: int) -> torch.Tensor:
    """Shares of each token in `times` draws from LOGITS."""
    logits = LOGITS.expand(times, -1)
    generators = [generator_for(7, choice) for choice in range(times)]
    return torch.bincount(draw(logits, [sampling] * times, generators), minlength=len(LOGITS)) / times


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature: float) -> None:
    expected = (LOGITS.double() / temperature).softmax(-1)
    shares = drawn(Sampling(1, temperature=temperature), 4000).double()
    # four standard deviations of a share
    assert ((shares - expected).abs() <= 4 * (expected * (1 - expected) / 4000).sqrt() + 1e-9).all()


@pytest.mark.parametrize(("top_p", "kept"), [(0.0, 1), (0.5, 1), (0.7, 2), (0.9, 3), (1.0, 4)])
def test_only_the_nucleus_is_drawn_from(top_p: float, kept: int) -> None:
    shares = drawn(Sampling(1, temperature=1.0, top_p=top_p), 2000)
    order = LOGITS.argsort(descending=True)
    assert (shares[order[:kept]] > 0).all()
    assert (shares[order[kept:]] == 0).all()
    expected = LOGITS[order[:kept]].double().softmax(-1)
    assert torch.allclose(shares[order[:kept]].double(), expected, atol=4 * 0.5 / math.sqrt(2000))


def test_temperature_zero_takes_the_first_of_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, 0.0, -1.0]])
    samplings = [Sampling(1, temperature=0.0)] * 2
    assert draw(logits, samplings, [generator_for(None, 0)] * 2).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [1e-30, 1e-6])
def test_a_tiny_temperature_overflows_nothing(temperature: float) -> None:
    logits = torch.tensor([[1e4, 3.0, -torch.inf]])
    assert draw(logits, [Sampling(1, temperature=temperature)], [generator_for(1, 0)]).tolist() == [0]


@given(
    seed=st.integers(-(2**63), 2**64 - 1),
    temperatures=st.lists(st.sampled_from([0.0, 0.7, 2.0]), min_size=1, max_size=5),
    place=st.integers(0, 4),
)
def test_a_draw_does_not_depend_on_its_neighbours(seed: int, temperatures: list[float], place: int) -> None:
    place = min(place, len(temperatures))
    own, logits = Sampling(1, temperature=1.3, top_p=0.9), torch.randn(8, generator=torch.Generator().manual_seed(1))
    others = [Sampling(1, temperature=temperature) for temperature in temperatures]
    samplings = [*others[:place], own, *others[place:]]
    generators = [generator_for(None, 0) for _ in samplings]
    generators[place] = generator_for(seed, 0)
    rows = torch.randn(len(samplings), 8)
    rows[place] = logits
    alone = draw(logits[None], [own], [generator_for(seed, 0)])
    assert draw(rows, samplings, generators)[place] == alone[0]


def test_seeds_and_choices_have_numbers_of_their_own() -> None:
    def numbers(seed: int | None, choice: int) -> tuple[float, ...]:
        return tuple(torch.rand(4, generator=generator_for(seed, choice)).tolist())

    assert numbers(3, 1) == numbers(3, 1)
    different = [numbers(seed, choice) for seed in (0, 1, 2, 2**40) for choice in (0, 1, 2)]
    assert len(set(different)) == len(different)
    assert numbers(None, 0) != numbers(None, 0)
    first = [numbers(seed, 0)[0] for seed in range(200)]
    assert 0.4 < sum(first) / 200 < 0.6
