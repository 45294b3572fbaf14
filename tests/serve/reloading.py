"""What the tests of a reload behind vLLM's gate share: an engine of two ranks that can fail at every step."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import FastAPI

from guard.spec.edit_spec import EditSpec
from serve.status import GuardStatus
from serve.vllm.gate import VllmGate
from tests.guard.specs import small_spec
from tests.serve.served import settings

OLD = small_spec()
NEW = small_spec(provenance=OLD.provenance.model_copy(update={"seed": OLD.provenance.seed + 1}))
RANKS = 2
RELOAD, COMPLETIONS = "/guard/reload", "/v1/completions"


class Status(GuardStatus):
    """Tells when the first self-test is through."""

    def __init__(self, spec: EditSpec) -> None:
        super().__init__(spec)
        self.proved = asyncio.Event()

    def passed(self, seconds: float) -> None:
        super().passed(seconds)
        self.proved.set()


class Engine:
    """Stands in for vLLM's client of an engine with two ranks; `faults`: what the last of them says or raises."""

    def __init__(self) -> None:
        self.vllm_config = SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_size=1, _api_process_count=1))
        self.asked: list[str] = []
        self.holds = [OLD.digest] * RANKS
        self.admitting = [True] * RANKS
        self.paused = False
        self.faults: dict[tuple[str, str | None], Any] = {}
        self.hurdle: Callable[[], Awaitable[None]] | None = None

    def get_tokenizer(self) -> Any:
        return SimpleNamespace(all_special_tokens=[], added_tokens_decoder={})

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        assert (mode, clear_cache) == ("wait", True)
        self._say("pause", None)
        self.paused = True

    async def resume_generation(self) -> None:
        self._say("resume", None)
        self.paused = False

    async def collective_rpc(self, method: str, _timeout: float, arguments: tuple[Any, ...] = ()) -> list[Any]:
        if method == "guard_self_test":
            assert len(set(self.holds)) == 1, "a self-test in the middle of an exchange"
            return [{"rank": rank, "digest": digest} for rank, digest in enumerate(self.holds)]
        if method == "guard_prepare":
            return [None, self._say(method, None)]
        assert self.paused, "requests may run"
        digest = arguments[0]
        fault = self._say(method, digest)
        if method == "guard_exchange":
            self.holds = [digest, self.holds[1] if fault else digest]
            self.admitting = [False] * RANKS
            if self.hurdle is not None:
                await self.hurdle()
        elif not fault:
            assert self.holds == [digest] * RANKS
            self.admitting = [True] * RANKS
        return [None, fault]

    def _say(self, method: str, digest: str | None) -> str | None:
        self.asked.append(method)
        fault = self.faults.get((method, digest))
        if isinstance(fault, Exception):
            raise fault
        said: str | None = fault
        return said


class Behind:
    """A gate before an application that answers as vLLM would, each request when it is let go."""

    def __init__(self, spec: Path, **changes: Any) -> None:
        self.engine = Engine()
        self.status = Status(OLD)
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        self.go.set()
        self.served: list[str] = []
        self._settings = settings(spec=spec, **changes)

    def run(self, talk: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
        app = FastAPI()
        app.state.engine_client = self.engine

        @app.get("/health")
        async def health() -> None:
            pass

        @app.post(COMPLETIONS)
        async def completions() -> dict[str, Any]:
            assert self.engine.admitting == [True] * RANKS
            assert not self.engine.paused
            self.begun.set()
            await self.go.wait()
            (digest,) = set(self.engine.holds)
            self.served.append(digest)
            return {"digest": digest}

        app.add_middleware(VllmGate, settings=self._settings, status=self.status)

        async def within() -> Any:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
                await client.get("/health")
                await self.status.proved.wait()
                return await talk(client)

        return asyncio.run(within())
