"""Beside vLLM's routes stand the guard's, with counts from every worker; all others are left alone."""

import asyncio
import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry, Gauge, make_asgi_app
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from serve.status import GuardStatus
from serve.vllm import routes as vllm_routes
from serve.vllm.reload import VllmReload
from serve.vllm.routes import VllmRoutes
from tests.guard.specs import small_spec
from tests.serve.served import settings
from tests.serve.test_metrics import parsed, value

COUNTED = [
    {"rank": 0, "counts": {"2": [50, 7, 10], "3": [50, 7, 0]}},
    {"rank": 1, "counts": {"2": [50, 7, 4], "3": [50, 7, 6]}},
]


class Beside:
    """The routes beside an application that answers /metrics as vLLM does, and everything else with 418."""

    def __init__(self, *engines: Any) -> None:
        self.status = GuardStatus(small_spec())
        self.status.passed(0.1)
        self.counted: Any = engines or (COUNTED,)
        self.asked: list[str] = []
        self.silent = False

    async def call_utility_all_async(self, utility: str, method: str, limit: float | None, *_: Any) -> Any:
        assert (utility, limit) == ("collective_rpc", None)
        self.asked.append(method)
        if self.silent:
            await asyncio.sleep(1000)
        if isinstance(self.counted, Exception):
            raise self.counted
        return self.counted

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.get_all([path], **headers)[0]

    def get_all(self, paths: Sequence[str], **headers: str) -> list[httpx.Response]:
        vllm = FastAPI()

        registry = CollectorRegistry()
        Gauge("running", "Requests.", namespace="vllm", registry=registry).set(3)
        mounted = Mount("/metrics", make_asgi_app(registry))
        mounted.path_regex = re.compile("^/metrics(?P<path>.*)$")  # as vLLM does it
        vllm.routes.append(mounted)

        given = settings(api_key="sesame")
        routes = VllmRoutes(vllm, given, self.status, VllmReload(given, lambda: 0))

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope["app"] = SimpleNamespace(state=SimpleNamespace(engine_client=SimpleNamespace(engine_core=self)))
            if not await routes.answer(scope, receive, send):
                await PlainTextResponse("vLLM's", 418)(scope, receive, send)

        async def within() -> list[httpx.Response]:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return [await client.get(path, headers=headers) for path in paths]

        return asyncio.run(within())


@pytest.mark.parametrize("accept", ["*/*", "application/openmetrics-text; version=1.0.0"])
def test_metrics_are_vllm_s_and_the_guard_s(accept: str) -> None:
    text = Beside().get("/metrics", **{"accept": accept, "accept-encoding": "gzip"}).text
    samples = parsed(text)
    assert value(samples, "vllm_running") == 3
    assert value(samples, "guard_tokens_total") == 50
    assert value(samples, "guard_active_tokens_total") == 7
    assert [value(samples, "guard_clips_total", layer=layer) for layer in ("2", "3")] == [14, 6]


def test_the_guard_route_tells_what_the_workers_counted() -> None:
    seen = Beside().get("/guard").json()
    assert (seen["tokens"], seen["clips"]) == (50, {"2": 14, "3": 6})


def test_what_several_engines_counted_adds_up() -> None:
    seen = Beside(COUNTED, COUNTED).get("/guard").json()
    assert (seen["tokens"], seen["active_tokens"], seen["clips"]) == (100, 14, {"2": 28, "3": 12})


def test_workers_are_asked_when_somebody_asks_and_not_before() -> None:
    beside = Beside()
    for path in ("/guard/ui", "/guard/evidence", "/health", "/v1/models"):
        beside.get(path)
    assert beside.asked == []
    beside.get("/guard")
    beside.get("/metrics")
    assert beside.asked == ["guard_counts", "guard_counts"]


@pytest.mark.parametrize("path", ["/guard", "/metrics"])
def test_the_last_counts_stay_where_the_workers_do_not_answer(path: str) -> None:
    beside = Beside()
    beside.get(path)
    beside.counted = RuntimeError("no worker")
    assert beside.get(path).status_code == 200
    assert beside.status.snapshot()["tokens"] == 50


def test_workers_that_have_not_answered_yet_are_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_routes, "TIMEOUT", 0.01)
    beside = Beside()
    beside.silent = True
    assert [response.status_code for response in beside.get_all(["/guard", "/metrics"])] == [200, 200]
    assert beside.asked == ["guard_counts"]


def test_workers_that_do_not_serve_any_more_are_not_asked() -> None:
    beside = Beside()
    beside.status.stop("a test")
    assert beside.get("/guard").json()["reason"] == "a test"
    assert beside.asked == []


def test_the_page_and_the_evidence_are_those_of_the_embedded_engine() -> None:
    beside = Beside()
    assert "data-locked" in beside.get("/guard/ui").text
    assert "Content-Security-Policy" in beside.get("/guard/ui").headers
    assert beside.get("/guard/evidence").json()["spec_digest"] == beside.status.digest


@pytest.mark.parametrize("path", ["/health", "/guard/", "/guard/ui/x", "/metrics/"])
def test_every_other_route_is_vllm_s(path: str) -> None:
    assert Beside().get(path).status_code == 418
