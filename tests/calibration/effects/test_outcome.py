"""Y, log-odds and KL against float64 computations written out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from calibration.effects.outcome import full_sequence_kl, log_odds, outcome, readout_logits
from calibration.prompts.sequences import Batch, Example, collate
from tests.calibration.late_models import late_model, random_batch
from tests.conftest import TinyModel

SEEDS = st.integers(0, 10_000)


def random_logits(batch: Batch, seed: int, vocabulary: int = 61, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (2 * batch.size, batch.continuation_width, vocabulary)
    return spread * torch.randn(shape, dtype=torch.float64, generator=generator)


def per_token_by_hand(logits: Tensor, batch: Batch) -> list[list[float]]:
    """The log-probability of each real continuation token, row by row, in Python floats."""
    rows = []
    for row in range(2 * batch.size):
        values = []
        for column in range(batch.continuation_width):
            if batch.continuation_mask[row, column]:
                scores = logits[row, column].tolist()
                normaliser = math.log(sum(math.exp(score) for score in scores))
                values.append(scores[int(batch.targets[row, column])] - normaliser)
        rows.append(values)
    return rows


@given(SEEDS)
def test_the_outcome_is_the_difference_of_mean_token_log_probabilities(seed: int) -> None:
    batch = random_batch(seed)
    logits = random_logits(batch, seed)
    means = [sum(row) / len(row) for row in per_token_by_hand(logits, batch)]
    expected = [means[place] - means[batch.size + place] for place in range(batch.size)]
    assert outcome(logits, batch).tolist() == pytest.approx(expected, abs=1e-12)


@given(SEEDS)
def test_the_log_odds_are_the_difference_of_whole_log_probabilities(seed: int) -> None:
    batch = random_batch(seed)
    logits = random_logits(batch, seed)
    sums = [sum(row) for row in per_token_by_hand(logits, batch)]
    expected = [sums[place] - sums[batch.size + place] for place in range(batch.size)]
    assert log_odds(logits, batch).tolist() == pytest.approx(expected, abs=1e-12)


def test_a_model_without_preference_has_an_outcome_of_zero_whatever_the_lengths() -> None:
    batch = random_batch()
    uniform = torch.zeros(2 * batch.size, batch.continuation_width, 61)
    assert outcome(uniform, batch).tolist() == pytest.approx([0.0] * batch.size, abs=1e-6)


def test_swapping_the_continuations_turns_the_sign_of_the_outcome() -> None:
    examples = [Example((4, 5), (6, 7, 8), (9,)), Example((5,), (1, 2), (3, 4))]
    turned = [Example(example.prompt, example.refusal, example.compliance) for example in examples]
    one, other = collate(examples, pad_id=0), collate(turned, pad_id=0)
    logits = random_logits(one, 3)
    swapped = torch.cat([logits[one.size :], logits[: one.size]])
    torch.testing.assert_close(outcome(swapped, other), -outcome(logits, one))
    assert outcome(logits, one).abs().min() > 0.01


def test_bfloat16_logits_are_widened_before_they_are_normalised() -> None:
    batch = random_batch()
    logits = random_logits(batch, 4).bfloat16()
    found = outcome(logits, batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, outcome(logits.double(), batch).float(), rtol=0, atol=1e-5)


def test_logits_on_padding_do_not_reach_the_outcome() -> None:
    batch = random_batch()
    logits = random_logits(batch, 5)
    disturbed = torch.where(batch.continuation_mask[..., None], logits, torch.full_like(logits, 1e4))
    torch.testing.assert_close(outcome(disturbed, batch), outcome(logits, batch))
    torch.testing.assert_close(log_odds(disturbed, batch), log_odds(logits, batch))


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_readout_logits_are_the_full_model_s_at_the_readout_columns(model_type: str) -> None:
    model, batch = late_model(model_type), random_batch()
    with torch.inference_mode():
        found = readout_logits(model, batch)
        whole = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids
        ).logits
    torch.testing.assert_close(found, whole[:, batch.readout])


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_left_padding_gives_the_outcome_of_each_request_alone(model_type: str, tiny_model: TinyModel) -> None:
    model = tiny_model(model_type)
    examples = [
        Example((5, 6, 7, 8, 9), (10, 11), (12,)),
        Example((3,), (4,), (5, 6, 7)),
        Example((8, 9, 2), (1, 1, 1, 1), (2, 2)),
    ]
    with torch.inference_mode():
        together = collate(examples, pad_id=0, prompt_width=9)
        padded = outcome(readout_logits(model, together), together)
        for place, example in enumerate(examples):
            logits = []
            for said in (example.compliance, example.refusal):
                ids = torch.tensor([[*example.prompt, *said]])
                logp = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)[-len(said) :]
                logits.append(float(logp.gather(1, torch.tensor(said)[:, None]).mean()))
            assert float(padded[place]) == pytest.approx(logits[0] - logits[1], abs=1e-4)


@given(SEEDS, st.integers(1, 4), st.integers(1, 5))
def test_kl_is_never_negative(seed: int, rows: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, rows, width, 13, generator=generator)
    mask = torch.ones(rows, width, dtype=torch.bool)
    whole, first = full_sequence_kl(one, other, mask)
    assert whole.min() >= -1e-6
    assert first.min() >= -1e-6


def test_equal_logits_have_no_kl_and_a_shift_of_all_of_them_makes_none() -> None:
    logits, mask = torch.randn(3, 4, 11), torch.ones(3, 4, dtype=torch.bool)
    whole, first = full_sequence_kl(logits, logits, mask)
    assert whole.tolist() == [0.0] * 3
    assert first.tolist() == [0.0] * 3
    shifted, _ = full_sequence_kl(logits, logits + 7.0, mask)
    assert shifted.abs().max() < 1e-5


def test_kl_is_the_value_worked_out_by_hand_and_has_a_direction() -> None:
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    reference, guarded = p.log()[None, None].repeat(1, 2, 1), q.log()[None, None].repeat(1, 2, 1)
    reference[0, 1] = torch.tensor([0.9, 0.05, 0.05]).log()
    forwards = 0.9 * math.log(0.9 / 0.25) + 0.05 * math.log(0.05 / 0.5) + 0.05 * math.log(0.05 / 0.25)
    at_first = 0.25 * math.log(2)
    whole, first = full_sequence_kl(reference, guarded, torch.ones(1, 2, dtype=torch.bool))
    assert float(first[0]) == pytest.approx(at_first, rel=1e-5)
    assert float(whole[0]) == pytest.approx((at_first + forwards) / 2, rel=1e-5)
    backwards, _ = full_sequence_kl(guarded, reference, torch.ones(1, 2, dtype=torch.bool))
    assert abs(float(backwards[0]) - float(whole[0])) > 0.01


def test_kl_counts_real_tokens_alone() -> None:
    one, other = torch.randn(2, 2, 3, 7)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    whole, first = full_sequence_kl(one, other, mask)
    short, _ = full_sequence_kl(one[:1, :2], other[:1, :2], mask[:1, :2])
    assert float(whole[0]) == pytest.approx(float(short[0]), rel=1e-6)
    assert float(whole[1]) == float(first[1])
