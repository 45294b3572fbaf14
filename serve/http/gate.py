"""In front of every route: who may ask, and how much. Plain ASGI, so that nothing behind it sees what it refuses."""

import hashlib
import hmac
from collections.abc import Iterable

from fastapi.responses import JSONResponse
from pydantic import SecretStr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http.errors import RequestError

OPEN_PATHS = frozenset({"/health", "/guard/ui"})  # the page tells nothing; its script needs the key for the rest


class Gate:
    """Asks for the API key, where there is one, and reads the body up to `max_body` bytes before passing it on."""

    def __init__(self, app: ASGIApp, api_key: SecretStr | None, max_body: int) -> None:
        self._app = app
        self._expected = None if api_key is None else _digest(f"Bearer {api_key.get_secret_value()}".encode())
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401 or 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_key(scope)
            body = await self._body(scope, receive)
        except RequestError as error:
            answer = JSONResponse(error.body, error.status, headers=error.headers)
            await answer(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, replaying(body, receive), send)

    def _check_key(self, scope: Scope) -> None:
        if self._expected is None or scope["path"] in OPEN_PATHS:
            return
        given = _header(scope["headers"], b"authorization") or b""
        # digests, so that neither the content nor the length of the key shows in the time this takes
        if not hmac.compare_digest(_digest(given), self._expected):
            raise RequestError(401, "The API key is missing or wrong.", code="invalid_api_key")

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None where the client left before it was through. RequestError if it is too large."""
        announced = _header(scope["headers"], b"content-length") or b"0"
        if announced.isdigit() and int(announced) > self._max_body:
            raise self._too_large()
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._max_body:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> RequestError:
        return RequestError(413, f"The request is larger than {self._max_body} bytes.", code="request_too_large")


def replaying(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body` first and then what the real one gives."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    return next((value for key, value in headers if key == name), None)


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()
