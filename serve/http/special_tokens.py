"""A model's special tokens, which end one turn of a chat and open the next: in a message they forge turns.

A tokenizer reads them wherever they stand, so a user's message with the right ones ends itself and begins the model's
answer. Only the chat template may write them: a chat in which the client did is refused. (What opens a turn in plain
text, as some older templates have it, cannot be told from text.)
"""

from collections.abc import Iterator
from typing import Any

from serve.http.errors import bad_request

CODE = "special_token"  # for programs


class SpecialTokens:
    """The special tokens of `tokenizer`, as text."""

    def __init__(self, tokenizer: Any) -> None:
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        named = {str(text) for text in tokenizer.all_special_tokens}
        self._texts = sorted((named | {token.content for token in added if token.special}) - {""})

    def refuse_in(self, document: Any, field: str) -> None:
        """RequestError if any text in `document`, the JSON value of the body's `field`, holds one."""
        for text in _texts(document):
            for special in self._texts:
                if special in text:
                    raise bad_request(
                        f"{field}: {special!r} is a special token of this model: its chat template alone may write it.",
                        field,
                        CODE,
                    )


def _texts(document: Any) -> Iterator[str]:
    """Every text in a JSON value, names of fields too; and the parts of a message in one, as templates join them."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, dict):
        for name, value in document.items():
            yield name
            yield from _texts(value)
    elif isinstance(document, list | tuple):
        yield "".join(str(part.get("text", "")) for part in document if isinstance(part, dict))
        for part in document:
            yield from _texts(part)
