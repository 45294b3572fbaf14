"""Log probabilities against a float64 reference."""

import pytest
import torch

from serve.hf.logprobs import LOWEST, POSITIONS, prompt_logprobs, token_logprobs
from tests.conftest import TinyModel


def test_they_are_those_of_the_softmax() -> None:
    logits = torch.randn(3, 11, generator=torch.Generator().manual_seed(0))
    scored = token_logprobs(logits, [4, 0, 10], [2, 0, 5])
    for row, (one, token, top) in enumerate(zip(scored, [4, 0, 10], [2, 0, 5], strict=True)):
        expected = logits[row].double().log_softmax(-1)
        assert one.token == token
        assert one.logprob == pytest.approx(float(expected[token]), abs=1e-5)
        values, indices = expected.topk(top)
        assert [likely for likely, _ in one.top] == indices.tolist()
        assert [value for _, value in one.top] == pytest.approx(values.tolist(), abs=1e-5)


def test_an_impossible_token_has_a_number_that_json_has() -> None:
    assert token_logprobs(torch.tensor([[0.0, -torch.inf]]), [1], [1])[0].logprob == LOWEST


def test_more_likeliest_tokens_than_there_are_is_all_of_them() -> None:
    assert len(token_logprobs(torch.zeros(1, 3), [0], [20])[0].top) == 3


@pytest.mark.parametrize("length", [1, 2, POSITIONS, POSITIONS + 1, POSITIONS + 2])
def test_a_prompts_tokens_are_scored_after_those_before_them(tiny_model: TinyModel, length: int) -> None:
    model = tiny_model(dtype=torch.float64, max_position_embeddings=512)
    prompt = torch.randint(61, (length,), generator=torch.Generator().manual_seed(0))
    scored = prompt_logprobs(model, prompt.tolist(), 1)
    assert scored[0] is None
    assert len(scored) == length
    with torch.no_grad():
        expected = model(input_ids=prompt[None]).logits[0].log_softmax(-1)
    for position, one in enumerate(scored[1:], start=1):
        assert one is not None
        assert one.token == prompt[position]
        assert one.logprob == pytest.approx(float(expected[position - 1, prompt[position]]), abs=1e-4)
