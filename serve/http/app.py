"""The endpoint: OpenAI's routes over an engine that generates with the guard on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from serve.engine import Engine
from serve.hf.tokens import TokenTexts
from serve.http.errors import RequestError, failed
from serve.http.gate import Gate
from serve.http.routes_chat import chat_routes
from serve.http.routes_completions import completion_routes
from serve.http.routes_guard import guard_routes
from serve.http.routes_operations import operation_routes
from serve.http.routes_tokenizer import tokenizer_routes
from serve.http.stream import ClientGoneError
from serve.http.validation import refusal
from serve.logs import RequestLog
from serve.settings import Settings

CLIENT_GONE = 499  # nginx's number; nobody reads it


def create_app(engine: Engine, settings: Settings) -> FastAPI:
    """The application; it closes `engine` when the server shuts down, after the last request has been answered."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()

    # without the interactive pages: they load scripts from elsewhere
    app = FastAPI(title="neuron-guard", lifespan=lifespan, docs_url=None, redoc_url=None)
    texts = TokenTexts(engine.prompts)
    app.include_router(guard_routes(engine, settings))
    app.include_router(operation_routes(engine, settings))
    app.include_router(chat_routes(engine, settings, texts))
    app.include_router(completion_routes(engine, settings, texts))
    app.include_router(tokenizer_routes(engine, settings))
    app.add_middleware(Gate, api_key=settings.api_key, max_body=settings.max_body)
    app.add_middleware(RequestLog)
    _handle_errors(app)
    return app


def _handle_errors(app: FastAPI) -> None:
    def answer(error: RequestError) -> Response:
        return JSONResponse(error.body, error.status, headers=error.headers)

    @app.exception_handler(RequestError)
    async def refused(_request: Request, error: RequestError) -> Response:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        return answer(refusal(error.errors(), error.body))

    @app.exception_handler(HTTPException)
    async def no_such_route(_request: Request, error: HTTPException) -> Response:
        return answer(RequestError(error.status_code, str(error.detail)))

    @app.exception_handler(ClientGoneError)
    async def gone(_request: Request, _error: ClientGoneError) -> Response:
        return Response(status_code=CLIENT_GONE)

    @app.exception_handler(Exception)
    async def mistake(_request: Request, _error: Exception) -> Response:
        return answer(failed("The server made a mistake; its log says which."))
