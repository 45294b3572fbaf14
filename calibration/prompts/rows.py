"""A prompt file as numbered rows, before anything is made of them.

Formats differ, mistakes are alike: this is the one place that knows csv, json and jsonl, and the one that says which
row is wrong. No message quotes a row, since a row may hold a harmful request.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Never

from guard.errors import NeuronGuardError

FORMATS = (".csv", ".json", ".jsonl")
CELL_LIMIT = 10_000_000


class PromptFileError(NeuronGuardError):
    """A prompt source that cannot be used: `source`, `row` (None for the whole) and `reason`, which quotes nothing."""

    def __init__(self, source: str, row: int | None, reason: str) -> None:
        self.source, self.row, self.reason = source, row, reason
        place = source if row is None else f"{source}, row {row}"
        super().__init__(f"{place}: {reason}")


@dataclass(frozen=True)
class Row:
    """One row: its `number` as a person counts (first is 1, a csv header not counted) and its `cells` by lower-case
    column.

    `may_lack_prompt` is set in jailbreak artifacts, where a null prompt says that no attack was found for the goal.
    """

    number: int
    cells: dict[str, object]
    may_lack_prompt: bool = False


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a csv, json or jsonl file, by its extension. Raises PromptFileError with the row at fault."""
    source = str(path)
    if path.suffix.lower() not in FORMATS:
        raise PromptFileError(source, None, f"is not one of {', '.join(FORMATS)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise PromptFileError(source, None, f"cannot be read ({reason})") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise PromptFileError(source, None, f"is not UTF-8 text (line {line})") from None
    reader = {".csv": _csv_rows, ".json": _json_rows, ".jsonl": _jsonl_rows}[path.suffix.lower()]
    return reader(source, text)


def _csv_rows(source: str, text: str) -> Iterator[Row]:
    csv.field_size_limit(CELL_LIMIT)
    records = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 0
    try:
        header = [name.strip().lower() for name in next(records, [])]
        if not any(header):
            raise PromptFileError(source, None, "is empty: a header with the column names is needed")
        if len(set(header)) < len(header):
            raise PromptFileError(source, None, "names a column twice in its header")
        for record in records:
            if not record:
                continue
            number += 1
            if len(record) != len(header):
                raise PromptFileError(source, number, f"has {len(record)} cells, the header has {len(header)}")
            yield Row(number, dict(zip(header, record, strict=True)))
    except csv.Error:
        reason = f"is not well-formed csv (line {records.line_num}): look for an unbalanced quote"
        raise PromptFileError(source, number + 1, reason) from None


def _json_rows(source: str, text: str) -> Iterator[Row]:
    document = _parse(source, None, text)
    artifact = isinstance(document, dict) and "jailbreaks" in document
    entries = document["jailbreaks"] if isinstance(document, dict) and artifact else document
    if not isinstance(entries, list):
        raise PromptFileError(source, None, "is not a list of objects or texts, nor an object with a 'jailbreaks' list")
    for number, entry in enumerate(entries, start=1):
        yield _entry_row(source, number, entry, may_lack_prompt=artifact)


def _jsonl_rows(source: str, text: str) -> Iterator[Row]:
    # Only \n ends a row: str.splitlines would also break at the Unicode separators that JSON allows inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _entry_row(source, number, _parse(source, number, line), may_lack_prompt=False)


def _parse(source: str, row: int | None, text: str) -> object:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if row is None else f"column {error.colno}"
        raise PromptFileError(source, row, f"is not valid JSON ({place})") from None
    except (ValueError, RecursionError):
        raise PromptFileError(
            source, row, "is not valid JSON (a number or a nesting that JSON does not allow)"
        ) from None


def _refuse_constant(_: str) -> Never:
    raise ValueError


def _entry_row(source: str, number: int, entry: object, *, may_lack_prompt: bool) -> Row:
    if isinstance(entry, str):
        return Row(number, {"prompt": entry})
    if not isinstance(entry, dict):
        raise PromptFileError(source, number, f"is {kind_of(entry)}, not an object or a text")
    cells = {str(name).strip().lower(): cell for name, cell in entry.items()}
    if len(cells) < len(entry):
        raise PromptFileError(source, number, "names a column twice")
    return Row(number, cells, may_lack_prompt)


def kind_of(cell: object) -> str:
    """What a cell is, in words that hold none of its content."""
    if cell is None:
        return "empty"
    names: dict[type, str] = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(cell), f"a {type(cell).__name__}")
