"""GET /health, /guard and /v1/models: what runs, and whether the guard is in force. POST /guard/reload: a new spec.

Clients decide nothing here: a reload reads the file that the operator named when the server started, and holds it to
the same conditions.
"""

import time
from functools import partial
from typing import Any

from fastapi import APIRouter

from guard.errors import NeuronGuardError
from serve.engine import Engine
from serve.http.errors import RequestError, not_reloaded, not_serving
from serve.http.validation import check_model
from serve.loading import reload_guarded
from serve.settings import Settings


def guard_routes(engine: Engine, settings: Settings) -> APIRouter:
    """The routes, answered from the engine's status."""
    router = APIRouter()
    started = int(time.time())

    @router.get("/health")
    async def health() -> dict[str, str]:
        """200 once a self-test has passed and for as long as the guard is in force; else 503 and why."""
        reason = engine.status.not_in_force
        if reason is not None:
            raise not_serving(reason)
        return {"status": "ok"}

    @router.get("/guard")
    async def guard() -> dict[str, Any]:
        """The spec, its verdict, the guarded layers, the last self-test, and counts since the start."""
        return engine.status.snapshot()

    @router.post("/guard/reload")
    def reload() -> dict[str, Any]:
        """Serve the spec that is in the file by now, once it has been seen to act; else 409, and the old one stays."""
        try:
            engine.exchange(partial(reload_guarded, settings=settings))
        except RequestError:
            raise
        except NeuronGuardError as error:
            raise not_reloaded(error) from error
        return engine.status.snapshot()

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [_model()]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """The same, by its name."""
        check_model(name, settings)
        return _model()

    def _model() -> dict[str, Any]:
        return {
            "id": settings.name,
            "object": "model",
            "created": started,
            "owned_by": "neuron-guard",
            "max_model_len": engine.prompts.context,
        }

    return router
