"""The bodies of requests about plain prompts: completions, and the tokenizer's routes as vLLM has them."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from serve.http.schema import MOST_LOGPROBS, MOST_PROMPTS, Body, GenerationBody
from serve.http.schema_chat import Message

Tokens = Annotated[list[int], Field(min_length=1)]


class CompletionRequest(GenerationBody):
    """POST /v1/completions. `prompt`: one or several, each a text or its tokens."""

    prompt: (
        str
        | Tokens
        | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=MOST_PROMPTS)]
    )
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _something_is_asked_for(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens 0 without echo asks for nothing")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, in order."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class TokenizeRequest(Body):
    """POST /tokenize: the tokens of `prompt`, or of the chat `messages` as it would be answered."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: Literal[True] | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        if self.messages is not None and self.add_special_tokens:
            raise ValueError("the chat template adds the special tokens of a chat; leave add_special_tokens out")
        return self


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]
