"""Whether a text is broken: empty, without words, or a phrase over and over.

It sees text alone, since an endpoint gives nothing else. `calibration.judging.behaviour` sees tokens too, and how
unlikely the unguarded model finds them; what it calls garbled and this does not is fluent text that the model would
not have said.
"""

import re

REPEATS = 4
LONGEST_PHRASE = 12
FEWEST_WORDS = 8
WORD = re.compile(r"\w+")


def is_garbled(text: str) -> bool:
    """Whether `text` has no word, or ends in a phrase of at most 12 words said four times over, 8 words in all."""
    words = WORD.findall(text.lower())
    return not words or any(_ends_in_a_loop(words, phrase) for phrase in range(1, LONGEST_PHRASE + 1))


def _ends_in_a_loop(words: list[str], phrase: int) -> bool:
    span = max(phrase * REPEATS, FEWEST_WORDS)
    ending = words[-span:]
    return len(words) >= span and all(ending[place] == ending[place - phrase] for place in range(phrase, span))
