"""The body of a chat request."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from serve.http.schema import MOST_LOGPROBS, Body, GenerationBody


class TextPart(Body):
    """A part of a message; texts are all that this server reads."""

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(min_length=1)]


class SystemMessage(Body):
    """What the operator of a client tells the model."""

    role: Literal["system", "developer"]
    content: Content


class UserMessage(Body):
    """What a user says."""

    role: Literal["user"]
    content: Content


class AssistantMessage(Body):
    """What the model said before; the empty fields let one of our own answers be sent back as it came."""

    role: Literal["assistant"]
    content: Content
    refusal: None = None
    annotations: Annotated[list[None], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class TextFormat(Body):
    """Answers are text."""

    type: Literal["text"]


class ChatRequest(GenerationBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    response_format: TextFormat | None = None
    store: Literal[False] | None = None

    @field_validator("messages")
    @classmethod
    def _the_model_speaks_next(cls, messages: list[Any]) -> list[Any]:
        """A model goes on as it seems to have begun, also in a turn of its own after the one put into its mouth."""
        if messages[-1].role == "assistant":
            raise ValueError(
                "the last one must not be the assistant's: an answer that is begun for the model weakens the guard"
            )
        return messages

    @model_validator(mode="after")
    def _logprobs_are_asked_for(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    @property
    def limit(self) -> int | None:
        """The most tokens of an answer; None: what fits."""
        limits = [limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None]
        return min(limits, default=None)

    @property
    def wanted_logprobs(self) -> int | None:
        """As Sampling.top_logprobs has it."""
        return (self.top_logprobs or 0) if self.logprobs else None


def templated(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as a chat template reads them: role and text, and nothing else."""
    return [
        {"role": "system" if message.role == "developer" else message.role, "content": _text(message.content)}
        for message in messages
    ]


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
