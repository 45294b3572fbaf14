"""Only JSON that every reader understands alike is read."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.spec import strict_json

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(value=values)
def test_plain_json_is_read(value: Any) -> None:
    assert strict_json.loads(json.dumps(value)) == value


def test_brackets_in_texts_are_no_nesting() -> None:
    text = json.dumps(["[" * 100, '"[{\\' * 100])
    assert strict_json.loads(text) == json.loads(text)


@pytest.mark.parametrize("depth", [strict_json.DEEPEST, strict_json.DEEPEST + 1])
def test_nesting_ends_at_its_limit(depth: int) -> None:
    text = "[" * depth + "]" * depth
    if depth == strict_json.DEEPEST:
        assert strict_json.loads(text) == json.loads(text)
    else:
        with pytest.raises(ValueError, match="more than 32 levels of nesting"):
            strict_json.loads(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a":1,"b":2,"a":3}', "the key 'a' twice in one object"),
        ('[{"a":{"b":1,"b":1}}]', "the key 'b' twice in one object"),
        ("[NaN]", "NaN, which is no JSON number"),
        ("-Infinity", "-Infinity, which is no JSON number"),
        ("1" * 41, "a number of 41 digits"),
        (r'"\ud800"', "half a surrogate pair in a text"),
        (r'{"\udc00":1}', "half a surrogate pair in a text"),
        ("[1,]", "at character"),
        ("", "expecting value at character 0"),
        ('"' + '\\"' * 100_000, "unterminated string"),
    ],
)
def test_anything_else_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        strict_json.loads(text)


def test_shown_text_is_short_and_printable() -> None:
    assert strict_json.shown("\x1b[2J\n" * 100).isprintable()
    assert len(strict_json.shown("ü" * 100)) < 260
