"""The benign rates are those of the guard on each request by itself, whatever batch it was in."""

from typing import Any

import pytest
import torch

from calibration.evidence.benign_rates import benign_rates
from guard.hf import install_edits
from guard.spec.edit_spec import BenignRates, LayerEdit, Trigger
from tests.calibration.organisms import material, organism

EDITS = (
    LayerEdit(layer=5, neurons=(1, 2, 9), scale=(1.0,) * 3, lower=(-0.05,) * 3, upper=(0.05,) * 3),
    LayerEdit(layer=4, neurons=(7,), scale=(0.0,), lower=(0.0,), upper=(0.0,)),
)


def trigger(threshold: float) -> Trigger:
    model, _ = organism("two-layer")
    direction = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(3))
    return Trigger(
        layer=2,
        threshold=threshold,
        direction=tuple(direction.tolist()),
        false_trigger_rate=0.1,
        calibration_size=9,
    )


def one_by_one(edits: tuple[LayerEdit, ...], wanted: Trigger | None) -> list[tuple[bool, list[float]]]:
    """For each benign request, run without padding: whether it triggers, and the share of values changed by layer."""
    model: Any = organism("two-layer")[0]
    found = []
    for batch in material("two-layer").held_out.benign:
        for row in range(batch.size):
            ids = batch.input_ids[row, batch.attention_mask[row].bool()][None]
            seen: list[Any] = []
            with install_edits(model, edits, wanted) as installation, torch.no_grad():
                for wrapper in installation.guarded:
                    wrapper.edit.register_forward_hook(lambda _, given, made, seen=seen: seen.append((*given, made)))
                model(ids)
                sizes = [wrapper.edit.neurons.numel() for wrapper in installation.guarded]
            shares = [
                float((made != h).sum()) / (size * ids.shape[1])
                for (h, *_, made), size in zip(seen, sizes, strict=True)
            ]
            triggers = wanted is not None and bool(seen[0][1].any())
            found.append((triggers, shares))
    return found


@pytest.mark.parametrize("threshold", [None, 25.0, 1e9], ids=["always", "sometimes", "never"])
def test_rates_are_means_over_requests_run_one_by_one(threshold: float | None) -> None:
    wanted = None if threshold is None else trigger(threshold)
    batches = material("two-layer").held_out.benign
    rates = benign_rates(organism("two-layer")[0], batches, EDITS, wanted)
    expected = one_by_one(EDITS, wanted)
    assert rates is not None
    assert [clips.layer for clips in rates.clips] == [4, 5]
    for place, clips in enumerate(rates.clips):
        assert clips.share.value == pytest.approx(sum(shares[place] for _, shares in expected) / len(expected))
        assert clips.share.low <= clips.share.value <= clips.share.high
        assert clips.share.n == len(expected)
    if wanted is None:
        assert rates.triggered is None
    else:
        assert rates.triggered is not None
        assert rates.triggered.value == sum(triggers for triggers, _ in expected) / len(expected)
        assert (threshold == 25.0) == (0 < rates.triggered.value < 1)
        assert rates.triggered.high > 0, "a rate of 0 on a few requests is no proof of 0"


def test_no_edit_has_no_rates() -> None:
    assert benign_rates(organism("two-layer")[0], material("two-layer").held_out.benign, (), None) is None


def test_rates_pass_through_json() -> None:
    rates = benign_rates(organism("two-layer")[0], material("two-layer").held_out.benign, EDITS, trigger(25.0))
    assert rates is not None
    assert BenignRates.model_validate_json(rates.model_dump_json()) == rates
