"""Real vLLM with two engines behind the gate, started as an operator starts it: what it answers, also when killed."""

import importlib.util
import os
import signal
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from benchmarks.common.server import Server, family
from benchmarks.common.streams import stream_all
from benchmarks.organisms.catalogue import WEIGHTS
from benchmarks.serving.soak import NEW_TOKENS, ORGANISM, Expected, expected, gate_spec, is_guarded, soak
from serve.http.app import create_app
from tests.serve.live import PASS_TOKENS, PATIENCE, SEQUENCES, live_vllm
from tests.serve.served import MODEL, chat_body, engine_of, organism_spec, settings, user
from tests.serve.test_openapi import BODIES, statuses

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.slow,
]
STREAMS, KILLED_AFTER = 40, 5


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # not beside the weights: vLLM would read it as one of them
    path = tmp_path_factory.mktemp("spec") / "guard.safetensors"
    gate_spec().save(path)
    return path


@pytest.fixture(scope="module")
def right() -> list[Expected]:
    """Requests, and what the guarded and the plain organism answer in transformers."""
    return expected(gate_spec(), STREAMS)


@pytest.fixture(scope="module")
def server(spec: Path) -> Iterator[Server]:
    with live_vllm(WEIGHTS / ORGANISM, spec, "--data-parallel-size", "2") as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0, timeout=PATIENCE) as client:
        yield client


def engines(server: Server) -> list[int]:
    """The processes in which vLLM's engines run."""
    names = {process: Path(f"/proc/{process}/cmdline").read_bytes() for process in family(server.process.pid)}
    return [process for process, name in names.items() if b"EngineCore" in name]


def messages(text: str) -> Any:
    return [user(text)]


def test_an_answer_is_that_of_guarded_transformers(client: openai.OpenAI, right: list[Expected]) -> None:
    harmful = right[0]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages(harmful.prompt), temperature=0, max_tokens=NEW_TOKENS
    )
    assert answer.choices[0].message.content == harmful.guarded
    assert harmful.guarded != harmful.plain, "the test shows nothing"


def test_a_stream_says_the_same(client: openai.OpenAI, right: list[Expected]) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=messages(right[0].prompt), temperature=0, max_tokens=NEW_TOKENS, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == right[0].guarded


def test_prompts_are_scored(client: openai.OpenAI, right: list[Expected]) -> None:
    answer = client.completions.create(model=MODEL, prompt=right[0].prompt, max_tokens=1, echo=True, logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.token_logprobs or []) > 5


def test_what_steers_is_refused_before_vllm_sees_it(client: openai.OpenAI) -> None:
    for more in (
        {"logit_bias": {"5": 100}},
        {"extra_body": {"continue_final_message": True, "add_generation_prompt": False}},
        {"extra_body": {"structured_outputs": {"regex": "Sure.*"}}},
        {"extra_body": {"allowed_token_ids": [5]}},
    ):
        arguments: Any = {"model": MODEL, "messages": messages("How?"), **more}
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**arguments)


def test_tool_calls_are_vllms_own_and_it_says_where_it_was_not_told_how_to_read_them(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    with pytest.raises(openai.BadRequestError, match="enable-auto-tool-choice"):
        client.chat.completions.create(model=MODEL, messages=messages("How?"), tools=tools)


def test_seeded_answers_whose_prompts_do_not_fit_into_one_pass_are_those_of_each_alone(client: openai.OpenAI) -> None:
    def said(seed: int, n: int) -> list[str | None]:
        answer = client.chat.completions.create(
            model=MODEL, messages=messages("lever " * 30), temperature=2.0, seed=seed, n=n, max_tokens=8
        )
        assert answer.usage is not None
        assert n == 1 or SEQUENCES * answer.usage.prompt_tokens > PASS_TOKENS, (
            "no prompt was parted: the test shows nothing"
        )
        return [choice.message.content for choice in answer.choices]

    alone = [text for seed in range(5, 5 + 16) for text in said(seed, 1)]
    assert said(5, 16) == alone
    assert len(set(alone)) > 8


def test_the_guard_is_asked_again_and_again(server: Server) -> None:
    document = httpx.get(f"{server.url}/guard", headers=server.headers, timeout=PATIENCE).json()
    assert document["in_force"] is True
    assert document["counts"]["self_tests_passed"] >= 1
    assert httpx.get(f"{server.url}/guard", timeout=PATIENCE).status_code == 401
    answer = httpx.post(f"{server.url}/v1/responses", headers=server.headers, json={}, timeout=PATIENCE)
    assert answer.status_code == 404


@pytest.mark.fuzz
def test_no_request_made_up_from_the_openapi_document_makes_it_fail(
    server: Server, client: openai.OpenAI, right: list[Expected]
) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    with engine_of(organism_spec(), max_context=64) as engine:
        document = create_app(engine, settings()).openapi()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=server.url)
    for operation in [result.ok() for result in schema.get_all_operations()]:
        for mode in ("POSITIVE", "NEGATIVE") if operation.path in BODIES else ("POSITIVE",):
            seen = statuses(operation, mode, count=12, headers=server.headers)
            assert max(seen) < 500, f"{operation.path}: {server.last_words()}"
    answer = client.chat.completions.create(
        model=MODEL, messages=messages(right[0].prompt), temperature=0, max_tokens=NEW_TOKENS
    )
    assert answer.choices[0].message.content == right[0].guarded


def test_many_streams_at_once_are_all_answered_and_guarded_in_each_of_two_engines(
    server: Server, right: list[Expected]
) -> None:
    assert len(engines(server)) == 2
    figures = soak(server, right, 16)
    assert (figures["lost"], figures["unguarded"]) == (0, 0), f"{figures['errors']}: {server.last_words()}"
    assert figures["telling"] == STREAMS // 2
    # what one of them counted alone would be about half
    assert figures["tokens_guarded"] == figures["tokens_active"] >= figures["tokens_needed"] > STREAMS


def test_when_the_engine_is_killed_no_stream_goes_on_unguarded(server: Server, right: list[Expected]) -> None:
    asked = list(islice(cycle(right), 4 * STREAMS))

    def kill(ended: int) -> None:
        if ended == KILLED_AFTER:
            for process in engines(server):
                os.kill(process, signal.SIGKILL)

    answers, _ = stream_all(
        server, MODEL, [each.prompt for each in asked], concurrency=16, new_tokens=NEW_TOKENS, on_end=kill
    )
    assert all(is_guarded(answer, each) for answer, each in zip(answers, asked, strict=True))
    assert KILLED_AFTER <= sum(answer.whole for answer in answers) < len(asked) - 16
    assert all(answer.error for answer in answers if not answer.whole), "a stream just ended"
    with pytest.raises(httpx.HTTPError):
        httpx.post(
            f"{server.url}/v1/chat/completions", headers=server.headers, json=chat_body(), timeout=PATIENCE
        ).raise_for_status()
