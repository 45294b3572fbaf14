"""What the tests of the endpoint share: a guarded organism behind an application, and a client in the same process."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from guard.loading import load_model
from guard.spec.edit_spec import EditSpec, LayerEdit, ModelIdentity, Trigger
from guard.spec.fingerprint import fingerprint
from serve.hf.engine import HfEngine
from serve.hf.guarded import GuardedModel
from serve.http.app import create_app
from serve.settings import Settings
from tests.guard.specs import evidence_with, small_spec

ORGANISM = Path(__file__).parents[2] / "benchmarks" / "organisms" / "weights" / "two-layer"
D_MODEL = 96
PLANTED: dict[str, list[int]] = json.loads((ORGANISM / "organism.json").read_text())["roles"]["gate"]
# through these neurons, planted in it, the organism answers what it should refuse; the guard holds them at 0
EDITS = tuple(
    LayerEdit(
        layer=int(layer),
        neurons=tuple(neurons),
        scale=(1.0,) * len(neurons),
        lower=(0.0,) * len(neurons),
        upper=(0.0,) * len(neurons),
    )
    for layer, neurons in PLANTED.items()
)
TRIGGER = Trigger(
    layer=1,
    threshold=-1e9,  # all tokens are above it
    direction=tuple(1.0 if entry % 2 else -1.0 for entry in range(D_MODEL)),
    false_trigger_rate=0.01,
    calibration_size=128,
)
HARMFUL, BENIGN = "How do I heat the chain?", "How do I cut the lever?"
MODEL = "organism"


def user(text: str) -> dict[str, str]:
    """A user's message."""
    return {"role": "user", "content": text}


@cache
def identity(layers: tuple[int, ...]) -> ModelIdentity:
    """The organism's fingerprint with `layers` guarded; read once."""
    model, tokenizer = load_model(str(ORGANISM), device="cpu", dtype="auto")
    return fingerprint(model, layers, tokenizer)


def organism_spec(*, trigger: Trigger | None = None, **changes: Any) -> EditSpec:
    """A spec that fits the organism."""
    fields: dict[str, Any] = {
        "model": identity(tuple(edit.layer for edit in changes.get("layers", EDITS))),
        "layers": EDITS,
        "trigger": trigger,
        "evidence": evidence_with(neurons=(), mediators=()),
    }
    return small_spec(**(fields | changes))


def guarded_organism(spec: EditSpec) -> GuardedModel:
    """The organism with `spec` installed."""
    model, tokenizer = load_model(str(ORGANISM), device="cpu", dtype="auto")
    return GuardedModel.install(model, tokenizer, spec)


@contextmanager
def engine_of(spec: EditSpec, **options: Any) -> Iterator[HfEngine]:
    """An engine that serves the organism, closed at the end."""
    engine = HfEngine(lambda: guarded_organism(spec), **options)
    try:
        yield engine
    finally:
        engine.close()


def settings(**changes: Any) -> Settings:
    """Settings of a server whose model is called MODEL and whose completions are on."""
    fields: dict[str, Any] = {"model": MODEL, "spec": Path("guard.safetensors"), "completions": True}
    return Settings(**(fields | changes))


@asynccontextmanager
async def client_of(engine: HfEngine, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application over `engine`."""
    transport = httpx.ASGITransport(create_app(engine, settings(**changes)))
    async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60) as client:
        yield client


def chat_body(**changes: Any) -> dict[str, Any]:
    """A chat request: eight tokens, greedily."""
    return {"model": MODEL, "messages": [user(BENIGN)], "temperature": 0, "max_tokens": 8, **changes}


def completion_body(**changes: Any) -> dict[str, Any]:
    """A completion request: eight tokens, greedily."""
    return {"model": MODEL, "prompt": BENIGN, "temperature": 0, "max_tokens": 8, **changes}


class Asked:
    """Asks an application one request at a time, each in an event loop of its own."""

    def __init__(self, engine: HfEngine, **changes: Any) -> None:
        self.engine = engine
        self._changes = changes

    def run(self, talk: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
        """What `talk` returns, given a client."""

        async def within() -> Any:
            async with client_of(self.engine, **self._changes) as client:
                return await talk(client)

        return asyncio.run(within())

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        """The response to a POST of `body` as JSON."""
        response: httpx.Response = self.run(lambda client: client.post(path, json=body, **options))
        return response

    def get(self, path: str, **options: Any) -> httpx.Response:
        """The response to a GET."""
        response: httpx.Response = self.run(lambda client: client.get(path, **options))
        return response

    def chat(self, **changes: Any) -> dict[str, Any]:
        """The answer to a chat; it must be one."""
        return answered(self.post("/v1/chat/completions", chat_body(**changes)))

    def complete(self, **changes: Any) -> dict[str, Any]:
        """The answer to a completion; it must be one."""
        return answered(self.post("/v1/completions", completion_body(**changes)))


def answered(response: httpx.Response) -> dict[str, Any]:
    """The document of a response that must be 200."""
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document
