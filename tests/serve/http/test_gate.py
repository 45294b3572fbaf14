"""Who may ask, and how much."""

import asyncio
from typing import Any

import pytest
from pydantic import SecretStr

from serve.http.gate import Gate
from tests.serve.served import Asked, chat_body

KEY = "a-secret-kéy"
PATHS = [
    ("GET", "/guard"),
    ("GET", "/v1/models"),
    ("GET", "/tokenizer_info"),
    ("GET", "/openapi.json"),
    ("GET", "/nowhere"),
    ("POST", "/guard/reload"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
]


@pytest.fixture(scope="module")
def locked(asked: Asked) -> Asked:
    """The same server behind an API key, with a small limit on bodies."""
    return Asked(asked.engine, api_key=SecretStr(KEY), max_body=2000)


def bearer(key: str) -> dict[bytes, bytes]:
    return {b"Authorization": f"Bearer {key}".encode()}


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize("key", [None, "", "wrong", KEY[:-1], KEY + "x", KEY.upper()])
def test_without_the_key_there_is_no_answer(locked: Asked, method: str, path: str, key: str | None) -> None:
    headers: Any = {} if key is None else bearer(key)
    response = locked.run(lambda client: client.request(method, path, headers=headers))
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_with_the_key_there_is(locked: Asked) -> None:
    headers: Any = bearer(KEY)
    assert locked.run(lambda client: client.get("/guard", headers=headers)).status_code == 200
    answer = locked.run(lambda client: client.post("/v1/chat/completions", json=chat_body(), headers=headers))
    assert answer.status_code == 200


def test_health_needs_no_key_and_tells_nothing_of_the_guard(locked: Asked) -> None:
    assert locked.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize("path", ["/health/../guard", "//guard", "/health/", "/HEALTH", "/guard?x=/health"])
def test_no_other_path_passes_for_health(locked: Asked, path: str) -> None:
    assert locked.get(path).status_code == 401


def test_a_large_body_is_refused(locked: Asked) -> None:
    headers: Any = bearer(KEY)
    response = locked.run(lambda client: client.post("/tokenize", json={"prompt": "x" * 2000}, headers=headers))
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


async def through(gate_: Gate, messages: list[dict[str, Any]], headers: list[tuple[bytes, bytes]]) -> tuple[Any, int]:
    """The messages sent, and how many of `messages` were read, for a body that comes in parts."""
    sent: list[dict[str, Any]] = []
    rest = list(messages)

    async def receive() -> Any:
        return rest.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    await gate_({"type": "http", "path": "/tokenize", "headers": headers, "method": "POST"}, receive, send)
    return sent, len(messages) - len(rest)


async def unreachable(*_: Any) -> None:
    raise AssertionError


def test_a_body_without_a_length_is_not_read_beyond_the_limit() -> None:
    parts = [{"type": "http.request", "body": b"x" * 60, "more_body": True}] * 50
    sent, read = asyncio.run(through(Gate(unreachable, None, 100), parts, []))
    assert sent[0]["status"] == 413
    assert read == 2


def test_an_announced_length_is_refused_without_reading() -> None:
    parts = [{"type": "http.request", "body": b"x", "more_body": False}]
    sent, read = asyncio.run(through(Gate(unreachable, None, 100), parts, [(b"content-length", b"101")]))
    assert sent[0]["status"] == 413
    assert read == 0


def test_a_client_that_leaves_while_it_sends_gets_nothing() -> None:
    parts: list[dict[str, Any]] = [
        {"type": "http.request", "body": b"x", "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent, _ = asyncio.run(through(Gate(unreachable, None, 100), parts, []))
    assert sent == []
