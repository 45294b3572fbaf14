"""What a page may show of a request and its answer: text, or in its place a hash and a word count.

A page is passed on, so text that could do harm stays out of it unless asked for; the hash still tells whether two texts
are the same. It errs on the side of leaving out: a refusal that repeats three words of what it refuses is left out too.
"""

import hashlib
import re
from dataclasses import dataclass

from calibration.report import display

HASH_DIGITS = 12
QUOTED_WORDS = 3


@dataclass(frozen=True)
class Shown:
    """A text as a page shows it: as it is, or (`text` None) by `digest` and `words` alone."""

    text: str | None
    digest: str
    words: str


def redacted(text: str, hide: bool) -> Shown:
    """`text` for a page, left out where `hide`."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]
    return Shown(None if hide else text, digest, display.plural(len(text.split()), "word"))


def quotes(answer: str, source: str) -> bool:
    """Whether `answer` repeats `QUOTED_WORDS` words in a row of `source`, or all of it if that is shorter."""
    said, words = _words(answer), _words(source)
    length = min(QUOTED_WORDS, len(words))
    runs = {tuple(words[start : start + length]) for start in range(len(words) - length + 1)} if length else set()
    return any(tuple(said[start : start + length]) in runs for start in range(len(said) - length + 1))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
