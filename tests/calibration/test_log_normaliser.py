"""The log-normaliser's move against the plain sum over the vocabulary, on the sure and on the unsure side."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calibration import log_normaliser
from calibration.log_normaliser import TOLERANCE, along_directions, by_displacements


def problem(seed: int, vocabulary: int, sharpness: float, strength: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "log_p": (sharpness * normal(5, vocabulary)).log_softmax(1),
        "shrink": 0.01 * strength * normal(5, 7),
        "step": strength * normal(5, 7),
        "unembedding": normal(vocabulary, 6),
        "weight": normal(6, 7),
    }


def plain(log_p: Tensor, shrink: Tensor, step: Tensor, unembedding: Tensor, weight: Tensor) -> Tensor:
    moved = log_p[:, :, None] * (1 + shrink[:, None]) + step[:, None] * (unembedding @ weight)
    return moved.logsumexp(1)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    vocabulary=st.sampled_from([3, 32, 33, 150]),
    sharpness=st.sampled_from([0.0, 1.0, 5.0]),
    strength=st.sampled_from([0.0, 1e-4, 1e-2, 0.3, 3.0, 40.0]),
)
def test_both_forms_are_the_plain_sum_over_the_vocabulary(
    seed: int, vocabulary: int, sharpness: float, strength: float
) -> None:
    given_ = problem(seed, vocabulary, sharpness, strength)
    expected = plain(**given_)
    torch.testing.assert_close(along_directions(**given_), expected, rtol=1e-12, atol=2 * TOLERANCE)
    displacement = given_["step"][..., None] * given_["weight"].T
    general = by_displacements(given_["log_p"], given_["shrink"], displacement, given_["unembedding"])
    torch.testing.assert_close(general, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strength", [1e-3, 0.3, 40.0])
def test_pieces_of_the_vocabulary_add_up(strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    given_ = problem(0, 150, 1.0, strength)
    whole = along_directions(**given_)
    monkeypatch.setattr(log_normaliser, "CACHED_ELEMENTS", 40)
    torch.testing.assert_close(along_directions(**given_), whole, rtol=1e-12, atol=1e-12)


def test_weak_neurons_are_never_summed_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> Tensor:
        raise AssertionError("a plain sum was taken")

    monkeypatch.setattr(log_normaliser, "_plain_sum", forbidden)
    along_directions(**problem(0, 150, 1.0, 1e-3))


def test_strong_neurons_are_wrong_without_the_plain_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    given_ = problem(0, 150, 1.0, 3.0)
    monkeypatch.setattr(log_normaliser, "TOLERANCE", float("inf"))
    assert (along_directions(**given_) - plain(**given_)).abs().nan_to_num(1.0).amax() > 0.01


def test_no_context_at_all_gives_no_moves() -> None:
    given_ = problem(0, 40, 1.0, 1.0)
    none = {name: value[:0] if name in ("log_p", "shrink", "step") else value for name, value in given_.items()}
    assert along_directions(**none).shape == (0, 7)
