"""The log-normaliser's move against the plain sum over the vocabulary, on the sure and on the unsure side."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calibration.effects.exact import log_normaliser
from calibration.effects.exact.final_norm import Prediction
from calibration.effects.exact.log_normaliser import TOLERANCE, Common, along_directions, by_displacements


@dataclass(frozen=True)
class Problem:
    """Five contexts and seven neurons."""

    base: Prediction
    shrink: Tensor
    step: Tensor
    unembedding: Tensor
    weight: Tensor
    common: Common | None = None

    def moved(self) -> Tensor:
        return along_directions(self.base, self.shrink, self.step, self.unembedding, self.weight, self.common)

    def expected(self) -> Tensor:
        """log sum p exp(D) with D written out, [5, 7]."""
        change = self.base.rescaled[:, :, None] * self.shrink[:, None]
        change = change + self.step[:, None] * (self.unembedding @ self.weight)
        if self.common is not None:
            change = change + self.common.step[:, None] * self.common.logits[..., None]
        if self.base.logits is not None and self.base.soft_cap is not None:
            cap, z = self.base.soft_cap, self.base.logits[..., None]
            change = cap * (torch.tanh((z + change) / cap) - torch.tanh(z / cap))
        return (self.base.log_p[:, :, None] + change).logsumexp(1)


def problem(seed: int, vocabulary: int, sharpness: float, strength: float, kind: str = "plain") -> Problem:
    """`kind`: "plain", "offset", "common" (an offset too) or "soft cap" (both of these too)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    logits = sharpness * normal(5, vocabulary)
    log_p = logits.log_softmax(1)
    given_ = Problem(
        Prediction(log_p, log_p),
        0.01 * strength * normal(5, 7),
        strength * normal(5, 7),
        normal(vocabulary, 6),
        normal(6, 7),
    )
    if kind != "plain":
        given_ = replace(given_, base=Prediction(log_p, log_p - normal(vocabulary)))
    if kind in ("common", "soft cap"):
        given_ = replace(given_, common=Common(0.1 * strength * normal(5, 7), normal(5, vocabulary)))
    if kind == "soft cap":
        capped = (2.0 * torch.tanh(logits / 2.0)).log_softmax(1)
        given_ = replace(given_, base=Prediction(capped, logits - normal(vocabulary), logits, 2.0))
    return given_


KINDS = ("plain", "offset", "common", "soft cap")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    vocabulary=st.sampled_from([3, 32, 33, 150]),
    sharpness=st.sampled_from([0.0, 1.0, 5.0]),
    strength=st.sampled_from([0.0, 1e-4, 1e-2, 0.3, 3.0, 40.0]),
    kind=st.sampled_from(KINDS),
)
def test_both_forms_are_the_plain_sum_over_the_vocabulary(
    seed: int, vocabulary: int, sharpness: float, strength: float, kind: str
) -> None:
    given_ = problem(seed, vocabulary, sharpness, strength, kind)
    torch.testing.assert_close(given_.moved(), given_.expected(), rtol=1e-12, atol=2 * TOLERANCE)
    apart = replace(given_, common=None)
    displacement = apart.step[..., None] * apart.weight.T
    general = by_displacements(apart.base, apart.shrink, displacement, apart.unembedding)
    torch.testing.assert_close(general, apart.expected(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strength", [1e-3, 0.3, 40.0])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_the_vocabulary_add_up(strength: float, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given_ = problem(0, 150, 1.0, strength, kind)
    whole = given_.moved()
    monkeypatch.setattr(log_normaliser, "CACHED_ELEMENTS", 40)
    torch.testing.assert_close(given_.moved(), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["plain", "offset", "common"])
def test_weak_neurons_are_never_summed_plainly(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> Tensor:
        raise AssertionError("a plain sum was taken")

    monkeypatch.setattr(log_normaliser, "_plain_sum", forbidden)
    problem(0, 150, 1.0, 1e-3, kind).moved()


@pytest.mark.parametrize("kind", ["plain", "common"])
def test_strong_neurons_are_wrong_without_the_plain_sum(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given_ = problem(0, 150, 1.0, 3.0, kind)
    monkeypatch.setattr(log_normaliser, "TOLERANCE", float("inf"))
    assert (given_.moved() - given_.expected()).abs().nan_to_num(1.0).amax() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_no_context_at_all_gives_no_moves(kind: str) -> None:
    given_ = problem(0, 40, 1.0, 1.0, kind)
    none = torch.tensor([], dtype=torch.int64)
    common = None if given_.common is None else Common(given_.common.step[none], given_.common.logits[none])
    empty = replace(
        given_, base=given_.base.at(none), shrink=given_.shrink[none], step=given_.step[none], common=common
    )
    assert empty.moved().shape == (0, 7)
