"""The guard's own routes beside vLLM's: /guard, /guard/evidence, /guard/ui, /guard/reload, its metrics after vLLM's.

The counts are with vLLM's workers, so they are asked for when somebody asks here, and not before: the workers of every
engine, where data parallelism runs several. vLLM mixes requests in its passes, so its counts are totals: rates of
finished requests, and drift, are the embedded engine's alone.
"""

import asyncio
import logging
from typing import Any

from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guard.runtime.counts import Tally
from guard.vllm.counts import merged
from serve.http.page import evidence_of, page
from serve.metrics import registry_of, render
from serve.settings import Settings
from serve.status import GuardStatus
from serve.vllm.reload import VllmReload

logger = logging.getLogger(__name__)
TIMEOUT = 10.0  # seconds that the workers may take to say what they counted
OURS = frozenset({"/guard", "/guard/evidence", "/guard/ui", "/metrics"})


class VllmRoutes:
    """The routes; `app` is vLLM's application. `status` is the guard's in force, which a reload exchanges."""

    def __init__(self, app: ASGIApp, settings: Settings, status: GuardStatus, reload: VllmReload) -> None:
        self._app = app
        self._settings = settings
        self._reload = reload
        self.status = status
        self._registry = registry_of(lambda: self.status, settings.name)
        self._late: asyncio.Future[Any] | None = None

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer a request for one of `OURS` or a reload; False, and nothing done, for any other.

        RequestError for a reload after which the old spec serves on, or nothing.
        """
        path = scope["path"]
        if path == "/guard/reload" and scope["method"] == "POST":
            self.status = await self._reload.reload(scope["app"].state.engine_client, self.status)
            await JSONResponse(self.status.snapshot())(scope, receive, send)
            return True
        if path not in OURS or scope["method"] != "GET":
            return False
        if path in ("/guard", "/metrics"):
            await self._count(scope["app"])
        await (await self._response(scope, receive))(scope, receive, send)
        return True

    async def _response(self, scope: Scope, receive: Receive) -> Response:
        path = scope["path"]
        if path == "/guard/ui":
            text, headers = page(locked=self._settings.api_key is not None)
            return HTMLResponse(text, headers=headers)
        if path == "/guard/evidence":
            return JSONResponse(evidence_of(self.status.spec, self._settings.name))
        if path == "/guard":
            return JSONResponse(self.status.snapshot())
        return await self._metrics(scope, receive)

    async def _count(self, app: Any) -> None:
        """Ask the workers; where they do not answer, the last counts stay, and the self-test tells."""
        status = self.status  # what they say belongs to this one, if a reload comes between
        late = self._late is not None and not self._late.done()
        if late or status.not_in_force is not None:
            return
        # engine_client.collective_rpc asks them all, but tells what the first of them says
        engines = app.state.engine_client.engine_core
        # no time limit in vLLM: an answer that came after it would be taken for the answer to what is asked next
        asked = asyncio.ensure_future(engines.call_utility_all_async("collective_rpc", "guard_counts", None, (), None))
        await asyncio.wait({asked}, timeout=TIMEOUT)
        self._late = asked
        # vLLM raises a bare Exception that quotes the worker's
        if not asked.done() or asked.exception() is not None:
            logger.warning("vLLM's workers did not say what they counted: %s", asked)
            return
        tally = sum((merged(ranks, status.layers) for ranks in asked.result()), Tally.none())
        status.totals = lambda: tally

    async def _metrics(self, scope: Scope, receive: Receive) -> Response:
        """vLLM's metrics, then ours."""
        body, headers = bytearray(), {"content-type": "text/plain; version=0.0.4; charset=utf-8"}

        async def keep(message: Message) -> None:
            body.extend(message.get("body", b""))

        # without them, so that what comes is plain text, to which more can be added
        headers_left = [one for one in scope["headers"] if one[0] not in (b"accept", b"accept-encoding")]
        await self._app({**scope, "headers": headers_left}, receive, keep)
        if body and not body.endswith(b"\n"):
            body.extend(b"\n")
        return Response(bytes(body) + render(self._registry), headers=headers)
