"""What a request's body may say, for every route: known fields, of their own types, within their ranges.

A field that is not here is refused by name, never ignored: a client must not believe in a setting that does nothing,
and no field added to the protocol later may slip past the guard. REFUSED gives reasons for the ones often asked for.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve.job import Sampling

MOST_CHOICES = 128
MOST_LOGPROBS = 20
MOST_PROMPTS = 256
NO_TOOLS = "the embedded engine has no tool calls; vLLM has"
WEAKENS = "it would begin or steer the model's answer for it, which weakens the guard"
REFUSED = {
    "logit_bias": WEAKENS,
    "continue_final_message": WEAKENS,
    "prefix": WEAKENS,
    "add_generation_prompt": "every chat ends with the template's own generation prompt",
    "chat_template": "the model's own chat template is the one that the spec was made with",
    "chat_template_kwargs": "the chat template's defaults are the ones that the spec was made with",
    "documents": "the chat template's defaults are the ones that the spec was made with",
    "prompt_embeds": "a prompt is text or tokens: the spec's evidence is about no other inputs",
    "best_of": "beams and best-of draw from more answers than they return",
    "use_beam_search": "beams and best-of draw from more answers than they return",
    "lora_request": "the spec is about this model's own weights",
    "tools": NO_TOOLS,
    "tool_choice": NO_TOOLS,
    "functions": NO_TOOLS,
}

Text = Annotated[str, Field(min_length=1, max_length=1024)]


class Body(BaseModel):
    """A part of a request. Nothing is converted: a number in quotes is not a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    """What a stream holds besides the answer. Obfuscation is a padding of OpenAI's that this server does not send."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class GenerationBody(Body):
    """The fields that chat and completions share."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None

    @property
    def choices(self) -> int:
        """How many answers to each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self, max_tokens: int, top_logprobs: int | None) -> Sampling:
        """How each answer is drawn; OpenAI's defaults where the request says nothing."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=tuple(stops),
            top_logprobs=top_logprobs,
        )
