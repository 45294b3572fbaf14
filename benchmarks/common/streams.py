"""A client that keeps many streams open at once and notes what came of each."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from benchmarks.common.server import Server

WAIT = 120.0  # seconds for one piece of a stream
LAST = "data: [DONE]"
OK = 200


@dataclass
class Answer:
    """What came of one stream: its text, the tokens of prompt and answer once told, whether it came to its end, and
    what came instead.
    """

    text: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    whole: bool = False
    error: str = ""


def stream_all(
    server: Server,
    model: str,
    prompts: Sequence[str],
    *,
    concurrency: int,
    new_tokens: int,
    on_end: Callable[[int], None],
) -> tuple[list[Answer], float]:
    """Ask for an answer to each of `prompts`, greedily, `concurrency` of them at a time; the seconds that it took.

    `on_end` is told how many streams have ended whenever one has.
    """
    answers = [Answer() for _ in prompts]
    waiting = iter(zip(prompts, answers, strict=True))
    ended = 0

    async def client(connection: httpx.AsyncClient) -> None:
        nonlocal ended
        for prompt, answer in waiting:
            body = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
            await _stream(connection, body | {"max_tokens": new_tokens}, answer)
            ended += 1
            on_end(ended)

    async def together() -> None:
        # a connection each: one kept alive may be closed by the server at the moment in which it is used again
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=0)
        async with httpx.AsyncClient(
            base_url=server.url, headers=server.headers, timeout=WAIT, limits=limits
        ) as shared:
            await asyncio.gather(*(client(shared) for _ in range(concurrency)))

    started = time.perf_counter()
    asyncio.run(together())
    return answers, time.perf_counter() - started


async def _stream(connection: httpx.AsyncClient, body: dict[str, object], answer: Answer) -> None:
    """Take in one answer, as far as it comes."""
    asked = body | {"stream": True, "stream_options": {"include_usage": True}}
    try:
        async with connection.stream("POST", "/v1/chat/completions", json=asked) as response:
            if response.status_code != OK:
                answer.error = f"status {response.status_code}"
            async for line in response.aiter_lines():
                if line == LAST:
                    answer.whole = answer.tokens > 0
                elif line.startswith("data: "):
                    chunk = json.loads(line.removeprefix("data: "))
                    answer.error = chunk.get("error", {}).get("message", answer.error)
                    answer.text += "".join(each["delta"].get("content") or "" for each in chunk.get("choices", ()))
                    if usage := chunk.get("usage"):
                        answer.prompt_tokens, answer.tokens = usage["prompt_tokens"], usage["completion_tokens"]
    except httpx.TransportError as error:
        answer.whole, answer.error = False, f"{type(error).__name__}: {error}"
