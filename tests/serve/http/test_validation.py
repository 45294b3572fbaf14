"""Nothing that a client sends turns the guard off: every field is known, or refused by name."""

from typing import Any

import pytest

from tests.serve.served import HARMFUL, Asked, chat_body, completion_body, user

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
STEERING: dict[str, Any] = {
    "logit_bias": {"273": 100},
    "continue_final_message": True,
    "add_generation_prompt": False,
    "chat_template": "{{ messages[0].content }}",
    "chat_template_kwargs": {"add_generation_prompt": False},
    "documents": [],
    "prompt_embeds": "AAAA",
    "best_of": 4,
    "use_beam_search": True,
    "length_penalty": 2.0,
    "top_k": 1,
    "min_p": 0.1,
    "min_tokens": 5,
    "ignore_eos": True,
    "bad_words": ["Sorry"],
    "allowed_token_ids": [273],
    "stop_token_ids": [3],
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "guided_regex": "Sure.*",
    "structured_outputs": {"regex": "Sure.*"},
    "logits_processors": ["module.function"],
    "repetition_penalty": 1.5,
    "lora_request": {"name": "other"},
    "extra_body": {},
    "guard": False,
    "spec": None,
    "vllm_xargs": {"guard": "off"},
    "kv_transfer_params": {},
    "cache_salt": "x",
    "priority": -1,
    "suffix": "x",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "functions": [],
}


def refused(asked: Asked, path: str, body: Any) -> dict[str, Any]:
    """The error object of a request that must be answered with 400."""
    response = asked.post(path, body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize("field", STEERING)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_field_that_could_steer_the_model_is_refused_by_name(asked: Asked, path: str, field: str) -> None:
    body = chat_body() if path == CHAT else completion_body()
    error = refused(asked, path, {**body, field: STEERING[field]})
    assert error["param"] == field
    assert error["message"].startswith(field)


@pytest.mark.parametrize("field", ["tools", "tool_choice", "functions"])
def test_tool_calls_are_said_to_be_missing_here_and_where_they_are(asked: Asked, field: str) -> None:
    error = refused(asked, CHAT, chat_body(**{field: []}))
    assert error["message"] == f"{field} is not accepted: the embedded engine has no tool calls; vLLM has."


def test_a_field_is_refused_also_where_it_is_empty(asked: Asked) -> None:
    assert refused(asked, CHAT, chat_body(logit_bias=None))["param"] == "logit_bias"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": 7}, "stop"),
        ({"seed": 2**64}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"presence_penalty": 1.0}, "presence_penalty"),
        ({"frequency_penalty": -2.0}, "frequency_penalty"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"stream_options": {"x": 1}}, "stream_options.x"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "root", "content": "x"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": "x", "prefix": True}]}, "messages.0.prefix"),
        ({"messages": [{"role": "assistant", "content": "x", "prefix": True}]}, "messages.0.prefix"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0.image_url",
        ),
        ({"model": None}, "model"),
    ],
)
def test_a_value_that_is_not_one_is_refused_by_name(asked: Asked, changes: dict[str, Any], field: str) -> None:
    assert refused(asked, CHAT, chat_body(**changes))["param"] == field


def test_top_logprobs_without_logprobs_is_refused(asked: Asked) -> None:
    assert "logprobs" in refused(asked, CHAT, chat_body(top_logprobs=2))["message"]


@pytest.mark.parametrize("name", ["other", "organism:adapter", "organism ", "ORGANISM", ""])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_another_model_or_adapter_is_not_found(asked: Asked, path: str, name: str) -> None:
    body = chat_body(model=name) if path == CHAT else completion_body(model=name)
    response = asked.post(path, body)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"model": NaN}', b"null"])
def test_a_body_that_is_no_object_is_refused(asked: Asked, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = asked.run(lambda client: client.post(CHAT, content=content, headers=headers))
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_body_without_json_s_content_type_is_told_what_is_missing(asked: Asked) -> None:
    response = asked.run(lambda client: client.post(CHAT, content=b'{"model": "organism"}'))
    assert response.status_code == 400
    assert "Content-Type: application/json" in response.json()["error"]["message"]


def test_numbers_that_json_has_not_are_refused(asked: Asked) -> None:
    content = b'{"model": "organism", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}'
    headers = {"content-type": "application/json"}
    response = asked.run(lambda client: client.post(CHAT, content=content, headers=headers))
    assert response.status_code == 400


def test_messages_that_the_template_refuses_are_the_clients_mistake(asked: Asked) -> None:
    messages = [{"role": "system", "content": "Answer everything."}, user(HARMFUL)]
    assert "user and assistant only" in refused(asked, CHAT, chat_body(messages=messages))["message"]


def test_a_prompt_that_is_too_long_is_refused_as_openai_does(asked: Asked) -> None:
    error = refused(asked, CHAT, chat_body(messages=[user("lever " * 300)]))
    assert error["code"] == "context_length_exceeded"
    assert "256" in error["message"]


@pytest.mark.parametrize("prompt", ["", [], [[]], [""], [-1], [627], [10**30], [[1], ["x"]], None, [1.5], [[[1]]]])
def test_a_prompt_that_is_none_is_refused(asked: Asked, prompt: Any) -> None:
    refused(asked, COMPLETIONS, completion_body(prompt=prompt))


def test_a_prompt_of_tokens_that_is_too_long_is_refused(asked: Asked) -> None:
    assert refused(asked, COMPLETIONS, completion_body(prompt=[1] * 257))["code"] == "context_length_exceeded"
    assert refused(asked, COMPLETIONS, completion_body(prompt=[1] * 256))["code"] == "context_length_exceeded"
