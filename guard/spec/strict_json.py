"""JSON read so that nothing in it is ambiguous or without bound: the header of a spec file comes from anywhere.

Python's own reader keeps the last of two equal keys, takes NaN for a number and ends deep nesting in a RecursionError.
"""

import json
import re
from itertools import accumulate
from typing import NoReturn

DEEPEST = 32
LONGEST_INTEGER = 40  # digits
_STRING = re.compile(r'"(?:[^"\\]+|\\.)*+"?', re.DOTALL)
_BRACKET = re.compile(r"[\[{\]}]")


def loads(text: str) -> object:
    """The value that `text` stands for; ValueError, in a few words, where it is not plain JSON."""
    brackets = _BRACKET.findall(_STRING.sub("", text))
    if max(accumulate((1 if bracket in "[{" else -1 for bracket in brackets), initial=0)) > DEEPEST:
        raise ValueError(f"more than {DEEPEST} levels of nesting")
    try:
        value: object = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_int=_integer)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg[:1].lower()}{error.msg[1:]} at character {error.pos}") from error
    except UnicodeEncodeError as error:
        raise ValueError("half a surrogate pair in a text") from error
    return value


def shown(text: str) -> str:
    """`text` as it may stand in an error message: quoted, escaped, and cut to 60 characters."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keyed = dict(pairs)
    if len(keyed) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {shown(next(name for name in names if names.count(name) > 1))} twice in one object")
    return keyed


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_INTEGER:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant}, which is no JSON number")
