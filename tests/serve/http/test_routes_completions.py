"""Plain prompts: text, echoes and log probabilities, against the guarded model."""

import json
from typing import Any

import pytest
import torch

from guard.spec.fingerprint import fingerprint
from serve.hf.guarded import GuardedModel
from tests.serve.served import BENIGN, HARMFUL, Asked, completion_body, guarded_organism, organism_spec

TEMPLATED = "<|user|>{}<|end|><|assistant|>"


@pytest.fixture(scope="module")
def guarded() -> GuardedModel:
    return guarded_organism(organism_spec())


def choice(answer: dict[str, Any], index: int = 0) -> dict[str, Any]:
    one: dict[str, Any] = answer["choices"][index]
    assert one["index"] == index
    return one


def test_a_prompt_goes_on_as_in_the_guarded_model(asked: Asked, guarded: GuardedModel) -> None:
    prompt = guarded.tokenizer(TEMPLATED.format(HARMFUL), return_tensors="pt")
    model: Any = guarded.model
    out = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    expected = guarded.tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert choice(asked.complete(prompt=TEMPLATED.format(HARMFUL), max_tokens=20))["text"] == expected


def test_a_prompt_of_tokens_says_the_same_as_its_text(asked: Asked, guarded: GuardedModel) -> None:
    tokens = guarded.tokenizer.encode(TEMPLATED.format(BENIGN))
    assert choice(asked.complete(prompt=tokens)) == choice(asked.complete(prompt=TEMPLATED.format(BENIGN)))


def test_several_prompts_are_answered_in_order(asked: Asked) -> None:
    prompts = [TEMPLATED.format(question) for question in (BENIGN, HARMFUL)]
    answer = asked.complete(prompt=prompts, n=2)
    alone = [choice(asked.complete(prompt=prompt))["text"] for prompt in prompts]
    assert [one["text"] for one in answer["choices"]] == [alone[0], alone[0], alone[1], alone[1]]
    assert [one["index"] for one in answer["choices"]] == [0, 1, 2, 3]


def test_sixteen_tokens_are_the_default(asked: Asked) -> None:
    body = completion_body(prompt="lever", temperature=2.0, seed=3)
    del body["max_tokens"]
    assert asked.post("/v1/completions", body).json()["usage"]["completion_tokens"] <= 16


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
def test_an_echo_scores_the_prompt_as_the_guarded_model_does(
    asked: Asked, guarded: GuardedModel, max_tokens: int
) -> None:
    prompt = TEMPLATED.format(HARMFUL)
    one = choice(asked.complete(prompt=prompt, echo=True, logprobs=2, max_tokens=max_tokens))
    tokens = torch.tensor([guarded.tokenizer.encode(prompt)])
    with torch.no_grad():
        expected = guarded.model(input_ids=tokens).logits[0].log_softmax(-1)
    scored = one["logprobs"]
    length = tokens.shape[1]
    assert scored["token_logprobs"][0] is None
    assert scored["top_logprobs"][0] is None
    own = [float(expected[place - 1, tokens[0, place]]) for place in range(1, length)]
    assert scored["token_logprobs"][1:length] == pytest.approx(own, abs=1e-4)
    best = [float(row.max()) for row in expected[: length - 1]]
    assert [max(top.values()) for top in scored["top_logprobs"][1:length]] == pytest.approx(best, abs=1e-4)
    assert one["text"].startswith(prompt)
    assert len(scored["tokens"]) == length + max_tokens == len(scored["text_offset"])
    assert [
        one["text"][offset:].startswith(text)
        for text, offset in zip(scored["tokens"], scored["text_offset"], strict=True)
    ] == [True] * (length + max_tokens)


def test_an_echo_of_tokens_is_their_text(asked: Asked, guarded: GuardedModel) -> None:
    tokens = guarded.tokenizer.encode(TEMPLATED.format(BENIGN))
    one = choice(asked.complete(prompt=tokens, echo=True, max_tokens=0))
    assert one["text"] == TEMPLATED.format(BENIGN)
    assert one["logprobs"] is None


def test_the_whole_context_can_be_scored(asked: Asked) -> None:
    answer = asked.complete(prompt=[70] * 256, echo=True, logprobs=0, max_tokens=0)
    assert answer["usage"] == {"prompt_tokens": 256, "completion_tokens": 0, "total_tokens": 256}


def test_nothing_is_not_to_be_asked_for(asked: Asked) -> None:
    response = asked.post("/v1/completions", completion_body(max_tokens=0))
    assert response.status_code == 400
    assert "echo" in response.json()["error"]["message"]


def test_a_stream_says_the_same_as_a_whole_answer(asked: Asked) -> None:
    changes = {"prompt": [BENIGN, HARMFUL], "echo": True, "logprobs": 1, "max_tokens": 6}
    whole = asked.complete(**changes)
    text = asked.post(
        "/v1/completions", completion_body(stream=True, stream_options={"include_usage": True}, **changes)
    ).text
    *lines, done = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    *chunks, counts = [json.loads(line) for line in lines]
    assert done == "[DONE]"
    assert counts["usage"] == whole["usage"]
    for index in range(2):
        parts = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(part["text"] for part in parts) == choice(whole, index)["text"]
        assert parts[-1]["finish_reason"] == choice(whole, index)["finish_reason"]
        for name, values in choice(whole, index)["logprobs"].items():
            joined = [value for part in parts for value in part["logprobs"][name]]
            assert joined == pytest.approx(values) if name == "token_logprobs" else len(joined) == len(values)


def test_it_is_off_unless_the_operator_switches_it_on(asked: Asked) -> None:
    response = Asked(asked.engine, completions=False).post("/v1/completions", completion_body())
    assert response.status_code == 403
    assert "--completions" in response.json()["error"]["message"]


def test_the_guard_acts_on_prompts_that_begin_the_answer(asked: Asked, guarded: GuardedModel) -> None:
    prompt = TEMPLATED.format(HARMFUL) + "Sure, to"
    scored = choice(asked.complete(prompt=prompt, echo=True, logprobs=0, max_tokens=0))["logprobs"]["token_logprobs"]
    plain = guarded_organism(organism_spec())
    plain.installation.remove()
    with torch.no_grad():
        tokens = torch.tensor([guarded.tokenizer.encode(prompt)])
        without = plain.model(input_ids=tokens).logits[0].log_softmax(-1)
    unguarded = [float(without[place - 1, tokens[0, place]]) for place in range(1, tokens.shape[1])]
    sure = tokens.shape[1] - 4
    assert scored[1 + sure] < unguarded[sure] - 5, "the first token of compliance is no less likely"
    assert fingerprint(plain.model, [4]) == fingerprint(guarded.model, [4])
