"""What reaches vLLM behind the gate: the routes and fields that are known, while the guard is in force."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from serve.settings import Settings
from serve.status import GuardStatus
from serve.vllm.gate import KEY_VARIABLE, SETTINGS_VARIABLE, VllmGate, settings_in_environment
from serve.vllm.launch import environment
from tests.guard.specs import small_spec
from tests.serve.behind import Behind, Workers
from tests.serve.http.test_validation import STEERING
from tests.serve.served import MODEL, chat_body, completion_body, settings, user


@pytest.mark.parametrize(
    "path", ["/v1/responses", "/v1/messages", "/invocations", "/inference/v1/generate", "/pooling"]
)
def test_other_routes_of_vllm_are_not_there(path: str) -> None:
    behind = Behind()
    assert behind.post(path, {"model": MODEL, "prompt": "x", "input": "x"}).status_code == 404
    assert [reached for reached, _ in behind.reached if reached != "health"] == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/collective_rpc"),
        ("POST", "/sleep"),
        ("POST", "/reset_prefix_cache"),
        ("GET", "/v1/chat/completions"),
        ("PUT", "/v1/chat/completions"),
        ("DELETE", "/v1/models"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "//v1/chat/completions"),
    ],
)
def test_nothing_else_passes(method: str, path: str) -> None:
    behind = Behind()
    response = behind.run(lambda client: client.request(method, path, json=chat_body()))
    assert response.status_code == 404
    assert [reached for reached, _ in behind.reached if reached != "health"] == []


@pytest.mark.parametrize("field", sorted(STEERING.keys() - {"tools"}))
def test_a_field_that_could_steer_the_model_does_not_reach_it(field: str) -> None:
    behind = Behind()
    response = behind.post("/v1/chat/completions", {**chat_body(), field: STEERING[field]})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert "v1/chat/completions" not in dict(behind.reached)


def test_a_request_reaches_it_as_it_was_read() -> None:
    behind = Behind()
    body = chat_body(stream=True, stop=["x"], seed=3)
    response = behind.post("/v1/chat/completions", body)
    assert response.json() == {"answered": True}
    assert response.headers["x-guard"] == behind.status.fingerprint
    assert dict(behind.reached)["v1/chat/completions"] == body


def test_of_a_field_said_twice_it_sees_what_was_checked() -> None:
    behind = Behind()
    content = json.dumps(chat_body(n=1))[:-1] + ', "n": 2, "model": "organism"}'
    behind.run(lambda client: client.post("/v1/chat/completions", content=content.encode()))
    assert dict(behind.reached)["v1/chat/completions"]["n"] == 2


def test_an_assistants_last_message_is_refused() -> None:
    behind = Behind()
    body = chat_body(messages=[user("x"), {"role": "assistant", "content": "Sure"}])
    assert behind.post("/v1/chat/completions", body).status_code == 400
    assert behind.post("/v1/chat/completions", chat_body(model="adapter")).status_code == 404


@pytest.mark.parametrize("special", ["<end>", "<|turn|>"])
def test_special_tokens_do_not_reach_it_in_a_chat(special: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {special: {}}}}
    called = {"id": "1", "type": "function", "function": {"name": "f", "arguments": special}}
    for changes in (
        {"messages": [user(f"x{special}Sure")]},
        {"messages": [user("x"), {"role": "assistant", "tool_calls": [called]}, user("y")]},
        {"messages": [user("x")], "tools": [tool]},
    ):
        behind = Behind()
        response = behind.post("/v1/chat/completions", chat_body(**changes))
        assert (response.status_code, special in response.json()["error"]["message"]) == (400, True)
        assert "v1/chat/completions" not in dict(behind.reached)


def test_words_that_are_not_special_tokens_reach_it() -> None:
    body = chat_body(messages=[user("a <tool> and a <|turn")])
    assert Behind().post("/v1/chat/completions", body).status_code == 200


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALLED = [
    user("What is the weather?"),
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "Rain."},
]


@pytest.mark.parametrize("choice", [{}, {"tool_choice": "auto"}, {"tool_choice": "none"}])
def test_tools_and_what_they_said_reach_it(choice: dict[str, str]) -> None:
    behind = Behind()
    body = chat_body(messages=CALLED, tools=TOOLS, **choice)
    assert behind.post("/v1/chat/completions", body).status_code == 200
    assert dict(behind.reached)["v1/chat/completions"] == body


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "tools.0.function.strict"),
        ({"tools": [{"type": "custom", "custom": {"name": "f", "format": {}}}]}, "tools.0.custom"),
        ({"messages": CALLED[:2]}, "messages"),
    ],
)
def test_a_call_that_is_not_left_to_the_model_does_not_reach_it(changes: dict[str, Any], field: str) -> None:
    behind = Behind()
    response = behind.post("/v1/chat/completions", chat_body(**({"tools": TOOLS} | changes)))
    assert (response.status_code, response.json()["error"]["param"]) == (400, field)
    assert "v1/chat/completions" not in dict(behind.reached)


def test_completions_are_off_unless_switched_on() -> None:
    assert Behind(completions=False).post("/v1/completions", completion_body()).status_code == 403
    assert Behind().post("/v1/completions", completion_body()).status_code == 200


def test_the_key_is_asked_for_everywhere_but_for_health() -> None:
    behind = Behind(api_key=SecretStr("secret"))

    async def talk(client: httpx.AsyncClient) -> None:
        for path in ("/v1/models", "/guard", "/metrics", "/version"):
            assert (await client.get(path)).status_code == 401
        assert (await client.get("/health")).status_code == 200
        response = await client.get("/guard", headers={"Authorization": "Bearer secret"})
        assert response.json()["in_force"] is True

    behind.run(talk)


def test_a_failing_self_test_ends_the_serving() -> None:
    behind = Behind(self_test_interval=0.02)

    async def talk(client: httpx.AsyncClient) -> None:
        assert (await client.post("/v1/chat/completions", json=chat_body())).status_code == 200
        behind.workers.fails = "layer 2: the guarded module was replaced."
        await asyncio.sleep(0.1)
        response = await client.post("/v1/chat/completions", json=chat_body())
        assert response.status_code == 503
        assert "layer 2" in response.json()["error"]["message"]
        assert (await client.get("/health")).status_code == 503
        assert (await client.get("/guard")).json()["in_force"] is False

    behind.run(talk)
    assert set(behind.workers.asked) == {"guard_self_test"}
    assert len(behind.workers.asked) > 1


def test_before_the_first_self_test_nothing_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any) -> None:
        await asyncio.sleep(1000)

    behind = Behind()
    monkeypatch.setattr(behind.workers, "collective_rpc", never)
    assert behind.post("/v1/chat/completions", chat_body()).status_code == 503


def test_a_self_test_without_an_answer_is_a_failed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any) -> None:
        await asyncio.sleep(1000)

    behind = Behind()
    monkeypatch.setattr("serve.vllm.gate.TIMEOUT", 0.0)
    monkeypatch.setattr(behind.workers, "collective_rpc", never)
    assert "no answer" in behind.post("/v1/chat/completions", chat_body()).json()["error"]["message"]


def test_workers_that_hold_another_spec_than_the_gate_tells_of_do_not_serve() -> None:
    behind = Behind()
    behind.workers.holds = "0" * 64
    assert "another spec" in behind.post("/v1/chat/completions", chat_body()).json()["error"]["message"]


def test_that_serving_has_stopped_and_why_is_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    behind = Behind()
    behind.workers.fails = "layer 2: the guarded module was replaced."
    behind.post("/v1/chat/completions", chat_body())
    assert "serving has stopped: the self-test failed: layer 2: the guarded module was replaced." in caplog.messages


def test_without_self_tests_nothing_is_served(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any) -> None:
        raise ValueError("no app")

    monkeypatch.setattr(VllmGate, "_keep_testing", broken)
    behind = Behind()
    behind.status.passed(0.0)
    assert "no app" in behind.post("/v1/chat/completions", chat_body()).json()["error"]["message"]
    assert any("no app" in message for message in caplog.messages)


def test_too_many_at_once_are_sent_away() -> None:
    behind = Behind(max_waiting=1)
    gate = VllmGate(lambda *_: asyncio.sleep(0), settings(max_waiting=1), behind.status)
    behind.status.passed(0.0)
    gate._under_way = 1
    with pytest.raises(Exception, match="waiting"):
        gate._check_room("/v1/chat/completions")


def test_a_web_socket_is_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    async def talk() -> None:
        app = FastAPI()
        app.state.engine_client = Workers()
        gate = VllmGate(app, settings(), GuardStatus(small_spec()))
        await gate({"type": "websocket", "path": "/v1/realtime", "app": app}, receive, send)

    asyncio.run(talk())
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_settings_travel_through_the_environment_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Settings(model="m", spec=Path("guard.safetensors"), api_key=SecretStr("secret"), max_waiting=7)
    for name, value in environment(there, {}).items():
        monkeypatch.setenv(name, value)
    assert "secret" not in environment(there, {})[SETTINGS_VARIABLE]
    assert environment(there, {})[KEY_VARIABLE] == "secret"
    assert settings_in_environment() == there.model_copy(update={"spec": Path("guard.safetensors").resolve()})
