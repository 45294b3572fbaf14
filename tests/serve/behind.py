"""The gate before an application that stands in for vLLM's, and its workers."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import FastAPI, Request
from tokenizers import AddedToken

from serve.status import GuardStatus
from serve.vllm.gate import VllmGate
from tests.guard.specs import small_spec
from tests.serve.served import settings


class Workers:
    """Stands in for vLLM's client of its engine."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails: str | None = None
        self.holds = small_spec().digest

    @property
    def engine_core(self) -> "Workers":
        return self

    def get_tokenizer(self) -> Any:
        added = {7: AddedToken("<|turn|>", special=True), 8: AddedToken("<tool>", special=False)}
        return SimpleNamespace(all_special_tokens=["<end>"], added_tokens_decoder=added)

    async def collective_rpc(self, method: str, _timeout: float) -> list[dict[str, str]]:
        self.asked.append(method)
        if self.fails is not None:
            raise RuntimeError(self.fails)
        return [{"digest": self.holds}]

    async def call_utility_all_async(self, *_: Any) -> list[list[str]]:
        return [[]]


class Behind:
    """A gate before an application that answers whatever reaches it, as vLLM would."""

    def __init__(self, **changes: Any) -> None:
        self.reached: list[tuple[str, Any]] = []
        self.workers = Workers()
        self.status = GuardStatus(small_spec())
        self._settings = settings(**changes)

    def run(self, talk: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
        """What `talk` returns, once the first self-test is through."""
        app = FastAPI()
        app.state.engine_client = self.workers

        @app.api_route("/{path:path}", methods=["GET", "POST", "DELETE", "PUT"])
        async def anything(path: str, request: Request) -> dict[str, bool]:
            self.reached.append((path, json.loads(await request.body() or b"null")))
            return {"answered": True}

        app.add_middleware(VllmGate, settings=self._settings, status=self.status)

        async def within() -> Any:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
                await client.get("/health")
                await asyncio.sleep(0.01)
                return await talk(client)

        return asyncio.run(within())

    def post(self, path: str, body: Any) -> httpx.Response:
        response: httpx.Response = self.run(lambda client: client.post(path, json=body))
        return response
