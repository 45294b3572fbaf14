"""Answers of an endpoint: one a prompt; one that it does not take is answered with nothing; all else is an error."""

from types import SimpleNamespace

import httpx
import pytest

from benchmarks.safety.conditions.respondents import Endpoint, EndpointError
from serve.http.errors import RequestError, bad_request, overloaded
from serve.http.special_tokens import SpecialTokens


def endpoint(**refused: RequestError) -> Endpoint:
    """It says each prompt backwards; a prompt among `refused` gets that error."""

    def answer(request: httpx.Request) -> httpx.Response:
        prompt = request.read().decode().split('"content":"')[1].split('"')[0]
        error = refused.get(prompt)
        if error is not None:
            return httpx.Response(error.status, json=error.body)
        return httpx.Response(200, json={"choices": [{"message": {"content": prompt[::-1]}}]})

    there = Endpoint("http://server/v1", model="m", key=None, max_new_tokens=4)
    there.client = httpx.Client(transport=httpx.MockTransport(answer))
    return there


def of_special_token() -> RequestError:
    tokenizer = SimpleNamespace(all_special_tokens=["</s>"], added_tokens_decoder={})
    with pytest.raises(RequestError) as caught:
        SpecialTokens(tokenizer).refuse_in("a</s>", "messages")
    return caught.value


def test_answers_come_in_the_order_of_the_prompts() -> None:
    assert endpoint().answer(["abc", "def"]) == ["cba", "fed"]


def test_a_prompt_with_a_special_token_is_answered_with_nothing_and_the_others_are_answered() -> None:
    assert endpoint(abc=of_special_token()).answer(["abc", "def"]) == ["", "fed"]


@pytest.mark.parametrize("error", [bad_request("no such model"), overloaded(1)])
def test_every_other_error_is_told(error: RequestError) -> None:
    with pytest.raises(EndpointError):
        endpoint(abc=error).answer(["abc", "def"])
