"""Tokens to text as they come: no half characters, no text that may yet turn out to be a stop string.

A token is often a part of a character, and how it reads can depend on the tokens before it. So the last few tokens are
decoded together, and what they add is let out once it is whole.
"""

from collections.abc import Callable, Sequence

CONTEXT = 6  # tokens before a new one that it is decoded with
LONGEST = 64  # tokens decoded together; by then a character that is still not whole is none
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """The text of tokens that come one by one, after a prompt's; `decode` turns tokens into text."""

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._let_out = 0  # characters of the decoded tokens
        self._keep(prompt)

    def add(self, token: int) -> str:
        """The text that `token` completes; empty while a character is not whole."""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        whole = text.rstrip(INCOMPLETE)
        if len(self._tokens) > LONGEST or len(whole) == len(text):
            return self._take(text)
        new, self._let_out = whole[self._let_out :], max(self._let_out, len(whole))
        return new

    def rest(self) -> str:
        """What is left at the end, half a character included."""
        return self._take(self._decode(self._tokens))

    def _take(self, text: str) -> str:
        new = text[self._let_out :]
        self._keep(self._tokens)
        return new

    def _keep(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens[-CONTEXT:])
        self._let_out = len(self._decode(self._tokens))


class StopText:
    """Lets text through up to the first of `stops`, holding back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """What may be shown after `text` came, and whether a stop string is complete: then there is no more."""
        self._held += text
        ends = [end for end in (self._held.find(stop) for stop in self._stops) if end >= 0]
        if ends:
            return self._release(min(ends)), True
        return self._release(len(self._held) - self._may_begin()), False

    def rest(self) -> str:
        """What was held back, where the text ends here."""
        return self._release(len(self._held))

    def _release(self, end: int) -> str:
        shown, self._held = self._held[:end], self._held[end:]
        return shown

    def _may_begin(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest
