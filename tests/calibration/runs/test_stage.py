"""Late layers ready for trials, and their summaries, against loops written out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from calibration.effects.outcome import readout_logits
from calibration.prompts.sequences import Batch, Example
from calibration.runs.stage import BENIGN_QUANTILE, Kept, collate_all, keep, late_layers, neuron_values, summarise
from calibration.runs.trial import transformed
from guard.errors import UnsupportedModelError
from guard.spec.edit_spec import Trigger
from tests.calibration.late_models import random_batch
from tests.conftest import TinyModel, make_tiny_model

SHAPES = (((5, 9, 3), ((3, 2), (4, 4), (1, 3))), ((9, 2, 4), ((1, 1), (2, 5), (2, 2))))


def kept_batches(model: nn.Module, seed: int, first_layer: int = 2) -> Kept:
    """Two batches of one prompt width and unlike continuations."""
    batches = [random_batch(seed + place, prompts=p, lengths=lengths) for place, (p, lengths) in enumerate(SHAPES)]
    return keep(model, batches, first_layer)


def neurons_of(model: nn.Module, batch: Batch, layer: int) -> Tensor:
    """The inputs of one down projection over a full forward pass, [2B, T, d_ff]."""
    seen: list[Tensor] = []

    def look(h: Tensor) -> Tensor:
        seen.append(h.clone())
        return h

    with torch.inference_mode(), transformed(model, {layer: look}):
        readout_logits(model, batch)
    return seen[0]


@given(st.integers(1, 30), st.integers(1, 9))
def test_batches_hold_every_example_in_order_and_share_width_and_tail(count: int, size: int) -> None:
    examples = [Example((1,) * (1 + place % 4) + (2, 3), (place + 5,), (4,)) for place in range(count)]
    batches = collate_all(examples, pad_id=0, device=torch.device("cpu"), batch_size=size, prompt_width=11, tail=2)
    assert [int(target) for batch in batches for target in batch.targets[: batch.size, 0]] == [
        place + 5 for place in range(count)
    ]
    assert {(batch.prompt_width, batch.tail) for batch in batches} == {(11, 2)}
    assert max(batch.size for batch in batches) <= size


@pytest.mark.parametrize(("layers", "expected"), [(1, (0,)), (2, (1,)), (3, (2,)), (4, (2, 3)), (7, (4, 5, 6))])
def test_the_later_half_is_searched(layers: int, expected: tuple[int, ...], tiny_model: TinyModel) -> None:
    assert late_layers(tiny_model(layers=layers, d_model=8, d_ff=5, heads=2)) == expected


def test_neuron_values_are_those_of_the_whole_model_over_all_rows(tiny_model: TinyModel) -> None:
    model = tiny_model(layers=4)
    kept = kept_batches(model, 0)
    for layer, values in neuron_values(kept, (2, 3)).items():
        row = 0
        for batch in kept.batches:
            rows, columns = batch.input_ids.shape
            found = values.states[row : row + rows, :columns]
            torch.testing.assert_close(found, neurons_of(model, batch, layer), rtol=0, atol=1e-5)
            assert torch.equal(values.mask[row : row + rows, :columns], batch.attention_mask.bool())
            assert not values.mask[row : row + rows, columns:].any()
            row += rows
        assert row == len(values.states)


def test_looking_at_neurons_changes_nothing(tiny_model: TinyModel) -> None:
    model = tiny_model(layers=4)
    kept = kept_batches(model, 0)
    before = [run.readout_logits() for run in kept.runs]
    neuron_values(kept, (2, 3))
    assert all(torch.equal(run.readout_logits(), logits) for run, logits in zip(kept.runs, before, strict=True))


@pytest.mark.parametrize("layer", [2, 3])
def test_summaries_are_means_and_quantiles_over_the_tokens_they_name(layer: int) -> None:
    model = make_tiny_model(layers=4)
    harmful, reference, benign = (kept_batches(model, seed) for seed in (0, 10, 20))
    found = summarise(harmful, reference, benign, (2, 3))

    def rows(kept: Kept) -> list[tuple[Tensor, Tensor, Batch]]:
        """Every row's neurons in float64, its mask and batch."""
        return [
            (h, mask, batch)
            for batch in kept.batches
            for h, mask in zip(neurons_of(model, batch, layer).double(), batch.attention_mask.bool(), strict=True)
        ]

    def check(summary: Tensor, expected: Tensor) -> None:
        assert summary.dtype == torch.float32
        torch.testing.assert_close(summary.double(), expected, rtol=0, atol=1e-5)

    check(found.harmful_mean[layer], torch.stack([h[b.prompt_width - 1] for h, _, b in rows(harmful)]).mean(0))
    check(found.reference_mean[layer], torch.stack([h[b.prompt_width - 1] for h, _, b in rows(reference)]).mean(0))
    check(found.harmful_size[layer], torch.cat([h[mask] for h, mask, _ in rows(harmful)]).abs().mean(0))
    aligned = [h[b.edited.start :][mask[b.edited.start :]] for h, mask, b in rows(benign)]
    check(found.benign_mean[layer], torch.cat(aligned).mean(0))
    ordered = torch.cat([h[mask] for h, mask, _ in rows(benign)]).sort(dim=0).values
    beyond = round((1 - BENIGN_QUANTILE) * (len(ordered) - 1))
    check(found.benign_high[layer], ordered[-1 - beyond])
    check(found.benign_low[layer], ordered[beyond])


def test_without_a_trigger_an_edit_is_active_everywhere(tiny_model: TinyModel) -> None:
    requests = kept_batches(tiny_model(layers=4), 0).where(None)
    assert list(requests.active) == [None, None]
    assert len(requests.runs) == 2


def test_a_limit_takes_as_many_batches_as_hold_that_many_requests_and_at_least_one(tiny_model: TinyModel) -> None:
    kept = kept_batches(tiny_model(layers=4), 0)
    counts = {limit: len(kept.where(None, limit=limit).runs) for limit in (1, 3, 5, 6, 100)}
    assert counts == {1: 1, 3: 1, 5: 1, 6: 2, 100: 2}


def test_the_trigger_is_read_where_its_layer_is_entered(tiny_model: TinyModel) -> None:
    model = tiny_model(layers=4)
    kept = kept_batches(model, 0)
    direction = torch.randn(24, generator=torch.Generator().manual_seed(2))
    trigger = Trigger(
        layer=1, threshold=0.01, direction=tuple(direction.tolist()), false_trigger_rate=0.1, calibration_size=9
    )
    requests = kept.where(trigger)
    for batch, active in zip(kept.batches, requests.active, strict=True):
        with torch.inference_mode():
            hidden = model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                output_hidden_states=True,
            ).hidden_states[1]
        score = hidden.double() @ direction.double()
        clear = (score - 0.01).abs() > 1e-4
        assert active is not None
        assert torch.equal(active[clear], (score > 0.01)[clear])
        assert active.shape == batch.input_ids.shape


def test_late_layers_of_different_widths_are_refused(tiny_model: TinyModel) -> None:
    with pytest.raises(UnsupportedModelError, match=r"different numbers of neurons \(37, 41\)"):
        late_layers(tiny_model("qwen2_moe", layers=4, mlp_only_layers=[2]))
