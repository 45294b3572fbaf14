"""Streams and clients that leave them."""

import asyncio
import json
from typing import Any

import pytest

from serve.hf.engine import HfEngine
from serve.http.app import create_app
from tests.serve.hf.test_engine import failing, slow
from tests.serve.served import Asked, chat_body, engine_of, organism_spec, settings, user


async def ask(engine: HfEngine, body: dict[str, Any], leave_after: int | None) -> list[dict[str, Any]]:
    """What a client is sent that hangs up after `leave_after` messages."""
    sent: list[dict[str, Any]] = []
    left = asyncio.Event()
    request: list[Any] = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> Any:
        if request:
            return request.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if leave_after is not None and len(sent) >= leave_after:
            left.set()

    if leave_after == 0:
        asyncio.get_running_loop().call_later(0.1, left.set)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    await create_app(engine, settings())(scope, receive, send)
    return sent


LONG = chat_body(messages=[user("lever")], max_tokens=200, temperature=2.0, seed=54)


@pytest.mark.parametrize(("stream", "leave_after"), [(True, 4), (True, 1), (False, 0)])
def test_a_client_that_hangs_up_stops_its_generation(
    monkeypatch: pytest.MonkeyPatch, stream: bool, leave_after: int
) -> None:
    slow(monkeypatch)

    async def leave_and_ask_again(engine: HfEngine) -> None:
        await asyncio.wait_for(ask(engine, {**LONG, "stream": stream}, leave_after), 20)
        await asyncio.wait_for(ask(engine, chat_body(), None), 20)

    with engine_of(organism_spec()) as engine:
        asyncio.run(leave_and_ask_again(engine))
        assert engine.status.snapshot()["counts"]["generated_tokens"] < 60


def test_a_guard_that_fails_ends_a_stream_with_an_error_and_without_done(monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)

    async def fail_meanwhile(engine: HfEngine) -> str:
        asyncio.get_running_loop().call_later(0.3, failing, monkeypatch)
        sent = await ask(engine, {**LONG, "stream": True}, None)
        return b"".join(message.get("body", b"") for message in sent).decode()

    with engine_of(organism_spec(), self_test_interval=0.2) as engine:
        text = asyncio.run(fail_meanwhile(engine))
    assert "[DONE]" not in text
    last = json.loads(text.rstrip().rpartition("data: ")[2])
    assert last["error"]["code"] == "guard_not_in_force"
    assert '"finish_reason":"' not in text


def test_a_guard_that_has_failed_answers_503() -> None:
    with engine_of(organism_spec()) as engine:
        asked = Asked(engine)
        engine.status.stop("the test says so.")
        for response in (asked.get("/health"), asked.post("/v1/chat/completions", chat_body())):
            assert response.status_code == 503
            assert "the test says so" in response.json()["error"]["message"]
        assert asked.get("/guard").json()["in_force"] is False
