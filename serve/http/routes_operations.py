"""GET /metrics, /guard/ui and /guard/evidence: for whoever runs the server rather than for its clients."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from serve.engine import Engine
from serve.http.page import evidence_of, page
from serve.metrics import registry_of, render
from serve.settings import Settings


def operation_routes(engine: Engine, settings: Settings) -> APIRouter:
    """The routes, answered from the engine's status; none of them runs in the event loop, as counts wait for the
    device.
    """
    router = APIRouter()
    registry = registry_of(lambda: engine.status, settings.name)

    @router.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        """Counts, self-tests and drift in Prometheus's text format."""
        return Response(render(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @router.get("/guard/evidence")
    def evidence() -> dict[str, Any]:
        """What the spec edits, and what its evidence says."""
        return evidence_of(engine.status.spec, settings.name)

    @router.get("/guard/ui", response_class=HTMLResponse)
    def ui() -> Response:
        """The page for a person; it asks for the API key itself, and tells nothing without it."""
        text, headers = page(locked=settings.api_key is not None)
        return HTMLResponse(text, headers=headers)

    return router
