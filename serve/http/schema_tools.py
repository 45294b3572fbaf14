"""The body of a chat request where the engine has tool calls: vLLM, if it was told how to read them.

A client may describe tools and hand back what they said; whether one is called is left to the model. A choice made for
it, and arguments held to a schema, are written by a grammar and not by the model: they are refused.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from serve.http.schema import Body
from serve.http.schema_chat import AssistantMessage as PlainAssistantMessage
from serve.http.schema_chat import ChatRequest, Content, SystemMessage, UserMessage


class Function(Body):
    """What a tool is called and does; `parameters` is a JSON schema, which the model reads and nothing enforces."""

    name: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None


class Tool(Body):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class CalledFunction(Body):
    """Which function, with which arguments, as JSON."""

    name: str
    arguments: str


class ToolCall(Body):
    """A call that the model made before."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(PlainAssistantMessage):
    """What the model said before, or which tools it called."""

    content: Content | None = None  # type: ignore[assignment]
    tool_calls: list[ToolCall] | None = None  # type: ignore[assignment]


class ToolMessage(Body):
    """What a tool said."""

    role: Literal["tool"]
    tool_call_id: str
    content: Content


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class ToolChatRequest(ChatRequest):
    """POST /v1/chat/completions of an engine that has tool calls."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]  # type: ignore[assignment]
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None
