"""An answer on its way to the client: collected whole, or as server-sent events; given up when the client is gone."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve.hf.ticket import Ticket
from serve.http.answers import Choice
from serve.http.errors import RequestError
from serve.job import Piece

DONE = "data: [DONE]\n\n"


class ClientGoneError(Exception):
    """The client has hung up before it was answered."""


def event(document: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def collect(ticket: Ticket, choices: int, request: Request) -> list[Choice]:
    """All of an answer; RequestError where generation fails, ClientGoneError where the client does not wait for it."""
    gathering = asyncio.ensure_future(_gather(ticket, choices))
    watching = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait({gathering, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not gathering.done():
            raise ClientGoneError
        return gathering.result()
    finally:
        ticket.cancel()
        await _end(gathering)
        await _end(watching)


class EventStream(StreamingResponse):
    """The pieces of a ticket as events; whatever ends the response ends the generation.

    `documents` turns the index of a sequence and its next piece into a document, `last` makes the document after all
    of them, if any. An error after the first byte can only be an event: OpenAI's clients raise it.
    """

    def __init__(
        self,
        ticket: Ticket,
        documents: Callable[[int, Piece], dict[str, Any]],
        last: Callable[[], dict[str, Any] | None],
    ) -> None:
        self._ticket = ticket
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._events(documents, last), media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ticket.cancel()

    async def _events(
        self, documents: Callable[[int, Piece], dict[str, Any]], last: Callable[[], dict[str, Any] | None]
    ) -> AsyncIterator[str]:
        try:
            async for index, piece in self._ticket:
                yield event(documents(index, piece))
        except RequestError as error:
            yield event(error.body)
            return
        final = last()
        if final is not None:
            yield event(final)
        yield DONE


async def _gather(ticket: Ticket, choices: int) -> list[Choice]:
    gathered = [Choice() for _ in range(choices)]
    async for index, piece in ticket:
        gathered[index].add(piece)
    return gathered


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _end(task: "asyncio.Future[Any]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError, RequestError):
        await task
