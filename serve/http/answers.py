"""OpenAI's answer documents, from pieces of generated text."""

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve.hf.tokens import TokenTexts
from serve.job import Finish, Piece, TokenLogprob

Document = dict[str, Any]


@dataclass
class Choice:
    """One sequence, as far as it has come."""

    text: str = ""
    tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: Finish | None = None
    prompt: tuple[TokenLogprob | None, ...] | None = None

    def add(self, piece: Piece) -> None:
        """Take the next piece."""
        self.text += piece.text
        self.tokens = piece.tokens
        self.logprobs += piece.logprobs
        self.finish = piece.finish
        self.prompt = self.prompt or piece.prompt


class Envelope:
    """What every document of one answer carries: who answered, when, and under which spec."""

    def __init__(self, prefix: str, model: str, fingerprint: str) -> None:
        self._fields: Document = {
            "id": f"{prefix}-{secrets.token_hex(16)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def document(self, kind: str, choices: Sequence[Document], usage: Document | None) -> Document:
        """A document of OpenAI's object type `kind`."""
        return {**self._fields, "object": kind, "choices": list(choices), "usage": usage}


def usage(prompt_tokens: int, completion_tokens: int) -> Document:
    """OpenAI's token counts; a prompt answered several times counts once."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def chat_logprobs(logprobs: Iterable[TokenLogprob], texts: TokenTexts) -> Document:
    """As chat answers have them."""

    def entry(token: int, logprob: float) -> Document:
        text, raw = texts.of(token)
        return {"token": text, "logprob": logprob, "bytes": raw}

    content = [
        {
            **entry(scored.token, scored.logprob),
            "top_logprobs": [entry(token, logprob) for token, logprob in scored.top],
        }
        for scored in logprobs
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    logprobs: Sequence[TokenLogprob | None], tokens: Sequence[int], texts: TokenTexts, offset: int
) -> Document:
    """As completions have them, for `tokens` whose text begins at character `offset`; None has no log probability."""
    strings = [texts.of(token)[0] for token in tokens]
    offsets = []
    for string in strings:
        offsets.append(offset)
        offset += len(string)
    return {
        "tokens": strings,
        "token_logprobs": [None if scored is None else scored.logprob for scored in logprobs],
        "top_logprobs": [None if scored is None else _likeliest(scored, texts) for scored in logprobs],
        "text_offset": offsets,
    }


def _likeliest(scored: TokenLogprob, texts: TokenTexts) -> dict[str, float]:
    """The token itself and the likeliest, by text; of several with one text, the likeliest."""
    by_text: dict[str, float] = {}
    for token, logprob in (*scored.top, (scored.token, scored.logprob)):
        by_text.setdefault(texts.of(token)[0], logprob)
    return by_text
