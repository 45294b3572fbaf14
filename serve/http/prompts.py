"""What a client wrote, as the model's tokens: the one place where a chat becomes a prompt.

The trigger acts mostly at the end of a prompt, and a spec's evidence is about prompts that end as the chat template
ends them. So every chat ends with the template's own generation prompt, and that is checked on the finished text:
nothing that a client sends opens an answer for the model to go on with. A chat that ends with the assistant's message
is refused before it comes here, special tokens in a message are refused here.
"""

import threading
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from serve.http.errors import StartError, bad_request, prompt_too_long
from serve.http.special_tokens import SpecialTokens

Message = dict[str, Any]
PROBE: list[Message] = [{"role": "user", "content": "x"}]


class Prompts:
    """A tokenizer and its chat template, for a model with room for `context` tokens. For use by several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int, vocabulary: int) -> None:
        self.tokenizer = tokenizer
        self.context = context
        self.vocabulary = vocabulary
        self._special = SpecialTokens(tokenizer)
        # a fast tokenizer may not be used by two threads at once
        self._lock = threading.Lock()
        self._ending = self._generation_prompt()

    def of_chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The tokens of a chat and the generation prompt after it; RequestError where the template refuses it."""
        if self._ending is None:
            raise bad_request("This model has no chat template, so it cannot chat.", "messages")
        self._special.refuse_in(messages, "messages")
        try:
            text = self._render(messages)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise bad_request(f"The chat template refuses these messages: {error}", "messages") from error
        if not text.endswith(self._ending) or (not self._ending and messages[-1]["role"] == "assistant"):
            raise bad_request(
                "The chat template does not end these messages with a turn of the assistant's own.", "messages"
            )
        return self.of_text(text, special_tokens=False)

    def of_text(self, text: str, *, special_tokens: bool = True, limit: bool = True) -> tuple[int, ...]:
        """The tokens of `text`, with the special tokens that the tokenizer itself adds; RequestError if too many."""
        with self._lock:
            tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=special_tokens)
        return self.checked(tokens) if limit else tuple(tokens)

    def checked(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """`tokens` as a prompt; RequestError unless they are some, the model's own, and no more than fit."""
        if not tokens:
            raise bad_request("The prompt has no tokens.", "prompt")
        if len(tokens) > self.context:
            raise prompt_too_long(len(tokens), self.context)
        self.check_known(tokens)
        return tuple(tokens)

    def check_known(self, tokens: Sequence[int]) -> None:
        """RequestError unless every one is a token of the model."""
        if tokens and not 0 <= min(tokens) <= max(tokens) < self.vocabulary:
            raise bad_request(f"Tokens go from 0 to {self.vocabulary - 1}.", "prompt")

    def room_after(self, prompt: Sequence[int], wanted: int | None) -> int:
        """How many tokens may follow: `wanted`, or as many as fit; RequestError where none fits."""
        room = self.context - len(prompt)
        if room < 1 and wanted != 0:
            raise prompt_too_long(len(prompt), self.context)
        return room if wanted is None else min(wanted, room)

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, special ones included."""
        with self._lock:
            return str(self.tokenizer.decode(list(tokens), skip_special_tokens=False))

    def _render(self, messages: Sequence[Message], *, generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=generation_prompt, tokenize=False)
        )

    def _generation_prompt(self) -> str | None:
        """What the template puts after a user's message for the assistant to begin; None without a template."""
        if self.tokenizer.chat_template is None:
            return None
        try:
            whole = self._render(PROBE)
            without = self._render(PROBE, generation_prompt=False)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise StartError(f"the chat template fails on a plain user message: {error}.") from error
        return whole[len(without) :] if whole.startswith(without) else ""
