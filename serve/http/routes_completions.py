"""POST /v1/completions: plain prompts, off unless the operator switches it on.

A plain prompt is not held to the chat template. It may carry the template's tokens and the first words of an answer,
and the model goes on from there. The guard acts on those tokens as on all others, but its evidence is about prompts
that end where the template ends them, and a trigger acts mostly there: an answer that is begun for the model gets past
a guard more easily. Measuring a model (lm-eval) needs this route; serving people does not.
"""

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from serve.engine import Engine
from serve.hf.tokens import TokenTexts
from serve.http.answers import Choice, Document, Envelope, completion_logprobs, usage
from serve.http.errors import RequestError
from serve.http.prompts import Prompts
from serve.http.schema_completion import CompletionRequest
from serve.http.stream import EventStream, collect
from serve.http.validation import check_model
from serve.job import Job, Piece, TokenLogprob
from serve.settings import Settings

KIND = "text_completion"
OFF = RequestError(
    403,
    "/v1/completions is switched off: a plain prompt can begin the answer for the model, which weakens the guard. "
    "The operator can switch it on with --completions.",
    code="completions_disabled",
)


def completion_routes(engine: Engine, settings: Settings, texts: TokenTexts) -> APIRouter:
    """The route, answered by `engine`."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """Go on with one or several plain prompts. The guard acts on every token of them and of what follows."""
        if not settings.completions:
            raise OFF
        check_model(body.model, settings)
        prompts = [await asyncio.to_thread(_tokens_of, engine.prompts, prompt) for prompt in body.prompts]
        jobs = [job for prompt in prompts for job in _jobs(body, prompt, engine.prompts)]
        ticket = engine.submit(jobs)
        answer = CompletionAnswer(body, jobs, Envelope("cmpl", settings.name, engine.status.fingerprint), engine, texts)
        if body.stream:
            return EventStream(ticket, answer.chunk, answer.last_chunk)
        return JSONResponse(answer.whole(await collect(ticket, len(jobs), request)))

    return router


def _tokens_of(prompts: Prompts, prompt: str | list[int]) -> tuple[int, ...]:
    return prompts.of_text(prompt) if isinstance(prompt, str) else prompts.checked(prompt)


def _jobs(body: CompletionRequest, prompt: tuple[int, ...], prompts: Prompts) -> list[Job]:
    sampling = body.sampling(prompts.room_after(prompt, body.max_tokens), body.logprobs)
    score = bool(body.echo) and body.logprobs is not None
    return [Job(prompt, sampling, choice, score_prompt=score) for choice in range(body.choices)]


class CompletionAnswer:
    """The documents of one answer."""

    def __init__(
        self, body: CompletionRequest, jobs: Sequence[Job], envelope: Envelope, engine: Engine, texts: TokenTexts
    ) -> None:
        self._body = body
        self._jobs = jobs
        self._envelope = envelope
        self._texts = texts
        self._tokens = [0] * len(jobs)
        self._begun = [False] * len(jobs)
        self._offsets = [0] * len(jobs)
        self._prompt_tokens = sum(len(job.prompt) for job in jobs[:: body.choices])
        self._echoed = [
            given if isinstance(given, str) else engine.prompts.text_of(given) if body.echo else ""
            for given in body.prompts
            for _ in range(body.choices)
        ]

    def whole(self, choices: Sequence[Choice]) -> Document:
        """The answer as one document."""
        documents = [
            self._choice(index, Piece(choice.text, choice.tokens, tuple(choice.logprobs), choice.finish, choice.prompt))
            for index, choice in enumerate(choices)
        ]
        return self._envelope.document(KIND, documents, self._usage())

    def chunk(self, index: int, piece: Piece) -> Document:
        """The next event."""
        return self._envelope.document(KIND, [self._choice(index, piece)], None)

    def last_chunk(self) -> Document | None:
        """The token counts, where the client asked for them."""
        return self._envelope.document(KIND, [], self._usage()) if self._body.include_usage else None

    def _usage(self) -> Document:
        return usage(self._prompt_tokens, sum(self._tokens))

    def _choice(self, index: int, piece: Piece) -> Document:
        first, self._begun[index] = not self._begun[index], True
        self._tokens[index] = piece.tokens
        echoed = self._echoed[index] if self._body.echo and first else ""
        return {
            "index": index,
            "text": echoed + piece.text,
            "logprobs": self._logprobs(index, piece),
            "finish_reason": piece.finish,
        }

    def _logprobs(self, index: int, piece: Piece) -> Document | None:
        if self._body.logprobs is None:
            return None
        scored: list[TokenLogprob | None] = [*(piece.prompt or ()), *piece.logprobs]
        tokens = [*(self._jobs[index].prompt if piece.prompt else ()), *(one.token for one in piece.logprobs)]
        document = completion_logprobs(scored, tokens, self._texts, self._offsets[index])
        self._offsets[index] += sum(len(text) for text in document["tokens"])
        return document
