"""The gate in front of vLLM's server, an ASGI middleware that vLLM loads by name: `--middleware`.

vLLM answers many routes and takes many fields, some of which steer the model past a guard, and new ones come with each
version. So this is a list of what passes, not of what does not: the routes and bodies of the embedded engine, with tool
calls besides. A body is read by such a schema, and vLLM is handed what was read, not what was sent.

It also asks the workers for their self-test at an interval; once that has failed, nothing passes any more.
"""

import asyncio
import json
import logging
import os
import time
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel, SecretStr, ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guard.spec.edit_spec import EditSpec
from serve.http.errors import RequestError, not_serving, overloaded
from serve.http.gate import Gate, replaying
from serve.http.routes_completions import OFF
from serve.http.schema import GenerationBody
from serve.http.schema_completion import CompletionRequest, DetokenizeRequest, TokenizeRequest
from serve.http.schema_tools import ToolChatRequest
from serve.http.special_tokens import SpecialTokens
from serve.http.validation import check_model, refusal
from serve.settings import Settings
from serve.status import GuardStatus
from serve.vllm.output import HeldOutput
from serve.vllm.reload import UnsettledError, VllmReload, ask
from serve.vllm.routes import VllmRoutes

SETTINGS_VARIABLE, KEY_VARIABLE = "NEURON_GUARD_SERVE", "NEURON_GUARD_API_KEY"
READ = frozenset({"/health", "/v1/models", "/version", "/tokenizer_info"})
BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ToolChatRequest,
    "/v1/completions": CompletionRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
RETRY_AFTER = 2  # seconds
TIMEOUT = 120.0  # seconds that a self-test may wait for a pass of the engine
logger = logging.getLogger(__name__)


class VllmGate:
    """vLLM's application behind the gate. `settings` and `status` are made from the environment unless given."""

    def __init__(self, app: ASGIApp, settings: Settings | None = None, status: GuardStatus | None = None) -> None:
        self._app = app
        self._settings = settings or settings_in_environment()
        self._reload = VllmReload(self._settings, lambda: self._under_way)
        first = status or GuardStatus(EditSpec.load(self._settings.spec), by_request=False)
        self._routes = VllmRoutes(app, self._settings, first, self._reload)
        self._gate = Gate(self._answer, self._settings.api_key, self._settings.max_body)
        self._special: SpecialTokens | None = None
        self._watch: asyncio.Task[None] | None = None
        self._under_way = 0

    @property
    def _status(self) -> GuardStatus:
        return self._routes.status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass."""
        if self._watch is None:
            self._watch = asyncio.ensure_future(self._keep_testing(scope["app"]))
            self._watch.add_done_callback(self._watch_ended)
        if scope["type"] == "http":
            await self._gate(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, self._announcing(send))
            self._watch.cancel()
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": "not served"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if await self._routes.answer(scope, receive, send):
                return
            passed = await self._checked(scope, receive)
        except RequestError as error:
            await JSONResponse(error.body, error.status, headers=error.headers)(scope, receive, send)
            return
        generates = scope["path"] in ("/v1/chat/completions", "/v1/completions")
        self._under_way += generates
        try:
            await self._app(scope, passed, self._signed(send))
        finally:
            self._under_way -= generates

    async def _checked(self, scope: Scope, receive: Receive) -> Receive:
        """What vLLM may read of the request; RequestError for one that must not pass."""
        method, path = scope["method"], scope["path"]
        if method == "GET" and path in READ:
            if path == "/health" and self._status.not_in_force is not None:
                raise not_serving(self._status.not_in_force)
            return receive
        kind = BODIES.get(path)
        if kind is None or method != "POST":
            raise RequestError(404, "Not Found")
        body = self._read(kind, (await receive())["body"])
        if isinstance(body, GenerationBody):
            self._check_room(path)
        if isinstance(body, ToolChatRequest):
            if self._special is None:
                self._special = SpecialTokens(scope["app"].state.engine_client.get_tokenizer())
            for field in ("messages", "tools"):
                self._special.refuse_in(body.model_dump(include={field}), field)
        document = body.model_dump_json(exclude_unset=True).encode()
        others = [(name, value) for name, value in scope["headers"] if name not in (b"content-type", b"content-length")]
        length = str(len(document)).encode()
        scope["headers"] = [*others, (b"content-type", b"application/json"), (b"content-length", length)]
        return replaying(document, receive)

    def _read(self, kind: type[BaseModel], content: bytes) -> BaseModel:
        try:
            body = kind.model_validate_json(content)
        except ValidationError as error:
            found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
            raise refusal(found, _parsed(content)) from error
        check_model(getattr(body, "model", None), self._settings)
        return body

    def _check_room(self, path: str) -> None:
        reason = self._status.not_in_force
        if reason is not None:
            raise not_serving(reason)
        if path == "/v1/completions" and not self._settings.completions:
            raise OFF
        self._reload.check_open()
        if self._under_way >= self._settings.max_waiting:
            raise overloaded(RETRY_AFTER)
        self._status.count("requests")

    def _announcing(self, send: Send) -> Send:
        async def with_announcement(message: Message) -> None:
            await send(message)
            held = HeldOutput.of_this_process()
            if held is not None and message["type"] == "lifespan.startup.complete":
                held.answers(f"{self._settings.name}, guarded by {self._status.fingerprint}, is served by vLLM")

        return with_announcement

    def _signed(self, send: Send) -> Send:
        async def with_fingerprint(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", []), (b"x-guard", self._status.fingerprint.encode())]
                message = {**message, "headers": headers}
            await send(message)

        return with_fingerprint

    async def _keep_testing(self, app: Any) -> None:
        """Ask every worker for its self-test, again and again, until one fails or does not answer."""
        while True:
            async with self._reload.testing:
                started = time.monotonic()
                reason = await self._fault(app.state.engine_client)
            if reason is not None:
                self._stop(f"the self-test failed: {reason}", self_test=True)
                return
            self._status.passed(time.monotonic() - started)
            await asyncio.sleep(self._settings.self_test_interval)

    async def _fault(self, client: Any) -> str | None:
        """What the workers' self-test has against the guard; `client` is vLLM's client of its engine."""
        try:
            ranks = await ask(client.collective_rpc("guard_self_test", TIMEOUT), TIMEOUT)
        except UnsettledError as error:
            return str(error)
        if {rank["digest"] for rank in ranks} != {self._status.digest}:
            return "the workers hold another spec than the one that was in the file when the gate read it."
        return None

    def _watch_ended(self, watch: "asyncio.Task[None]") -> None:
        """Without self-tests nothing is served; what has failed before stays the reason."""
        if watch.cancelled():
            self._status.stop("the server is ending.")
        elif watch.exception() is not None:
            self._stop(f"the self-tests have ended: {watch.exception()!r}.")

    def _stop(self, reason: str, *, self_test: bool = False) -> None:
        self._status.stop(reason, self_test=self_test)
        logger.critical("serving has stopped: %s", reason)


def settings_in_environment() -> Settings:
    """The settings that `neuron-guard serve` left for this process."""
    settings = Settings.model_validate_json(os.environ[SETTINGS_VARIABLE])
    key = os.environ.get(KEY_VARIABLE)
    return settings if key is None else settings.model_copy(update={"api_key": SecretStr(key)})


def _parsed(content: bytes) -> Any:
    """The document that `content` is, None if it is none."""
    try:
        return json.loads(content)
    except ValueError:
        return None
