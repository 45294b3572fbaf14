"""POST /tokenize and /detokenize, GET /tokenizer_info, as vLLM has them: lm-eval counts and cuts tokens with them."""

import asyncio
from typing import Any

from fastapi import APIRouter

from serve.engine import Engine
from serve.http.schema_chat import templated
from serve.http.schema_completion import DetokenizeRequest, TokenizeRequest
from serve.http.validation import check_model
from serve.settings import Settings

SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


def tokenizer_routes(engine: Engine, settings: Settings) -> APIRouter:
    """The routes, answered with the engine's tokenizer."""
    router = APIRouter()

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        """The tokens of a text, or of a chat as it would be answered."""
        check_model(body.model, settings)
        tokens = await asyncio.to_thread(_tokenized, engine, body)
        known = engine.prompts.tokenizer
        strings = known.convert_ids_to_tokens(list(tokens)) if body.return_token_strs else None
        return {
            "count": len(tokens),
            "max_model_len": engine.prompts.context,
            "tokens": list(tokens),
            "token_strs": strings,
        }

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, str]:
        """The text of tokens."""
        check_model(body.model, settings)
        engine.prompts.check_known(body.tokens)
        return {"prompt": await asyncio.to_thread(engine.prompts.text_of, body.tokens)}

    @router.get("/tokenizer_info")
    async def tokenizer_info() -> dict[str, Any]:
        """What lm-eval asks of a tokenizer: its special tokens and the chat template."""
        tokenizer = engine.prompts.tokenizer
        return {
            "tokenizer_class": type(tokenizer).__name__,
            "chat_template": tokenizer.chat_template,
            "model_max_length": engine.prompts.context,
            **{name: getattr(tokenizer, name) for name in SPECIAL},
        }

    return router


def _tokenized(engine: Engine, body: TokenizeRequest) -> tuple[int, ...]:
    if body.messages is not None:
        return engine.prompts.of_chat(templated(body.messages))
    return engine.prompts.of_text(body.prompt or "", special_tokens=body.add_special_tokens is not False, limit=False)
