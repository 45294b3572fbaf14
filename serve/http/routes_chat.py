"""POST /v1/chat/completions."""

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from serve.engine import Engine
from serve.hf.tokens import TokenTexts
from serve.http.answers import Choice, Document, Envelope, chat_logprobs, usage
from serve.http.schema_chat import ChatRequest, templated
from serve.http.stream import EventStream, collect
from serve.http.validation import check_model
from serve.job import Job, Piece
from serve.settings import Settings

CHUNK, WHOLE = "chat.completion.chunk", "chat.completion"


def chat_routes(engine: Engine, settings: Settings, texts: TokenTexts) -> APIRouter:
    """The route, answered by `engine`."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a chat. The guard acts on every token of it, and on every token of the prompt."""
        check_model(body.model, settings)
        prompt = await asyncio.to_thread(engine.prompts.of_chat, templated(body.messages))
        sampling = body.sampling(engine.prompts.room_after(prompt, body.limit), body.wanted_logprobs)
        ticket = engine.submit([Job(prompt, sampling, choice) for choice in range(body.choices)])
        answer = ChatAnswer(body, len(prompt), Envelope("chatcmpl", settings.name, engine.status.fingerprint), texts)
        if body.stream:
            return EventStream(ticket, answer.chunk, answer.last_chunk)
        return JSONResponse(answer.whole(await collect(ticket, body.choices, request)))

    return router


class ChatAnswer:
    """The documents of one answer."""

    def __init__(self, body: ChatRequest, prompt_tokens: int, envelope: Envelope, texts: TokenTexts) -> None:
        self._body = body
        self._prompt_tokens = prompt_tokens
        self._envelope = envelope
        self._texts = texts
        self._tokens = [0] * body.choices

    def whole(self, choices: Sequence[Choice]) -> Document:
        """The answer as one document."""
        documents = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": self._logprobs(choice.logprobs),
                "finish_reason": choice.finish,
            }
            for index, choice in enumerate(choices)
        ]
        return self._envelope.document(
            WHOLE, documents, usage(self._prompt_tokens, sum(choice.tokens for choice in choices))
        )

    def chunk(self, index: int, piece: Piece) -> Document:
        """The next event; the first of each choice says who speaks."""
        delta: dict[str, Any] = {"content": piece.text}
        if not self._tokens[index]:
            delta = {"role": "assistant", **delta}
        self._tokens[index] = piece.tokens
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(piece.logprobs),
            "finish_reason": piece.finish,
        }
        return self._envelope.document(CHUNK, [choice], None)

    def last_chunk(self) -> Document | None:
        """The token counts, where the client asked for them."""
        if not self._body.include_usage:
            return None
        return self._envelope.document(CHUNK, [], usage(self._prompt_tokens, sum(self._tokens)))

    def _logprobs(self, logprobs: Sequence[Any]) -> Document | None:
        return None if self._body.wanted_logprobs is None else chat_logprobs(logprobs, self._texts)
