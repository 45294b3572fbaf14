"""Prompt files as rows: formats agree, and every mistake has its row and none of its text."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.prompts.rows import PromptFileError, read_rows

SECRET = "zebra-quartz"
texts = st.text(st.characters(codec="utf-8"), max_size=30)
tables = st.lists(st.fixed_dictionaries({"prompt": texts, "refusal": texts}), min_size=1, max_size=6)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def cells(path: Path) -> list[dict[str, object]]:
    return [row.cells for row in read_rows(path)]


@given(table=tables)
def test_what_json_jsonl_and_csv_writers_write_is_read_back(
    table: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    as_json = write(folder, "a.json", json.dumps(table))
    as_jsonl = write(folder, "a.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table))
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "refusal"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(table)
    assert cells(as_json) == cells(as_jsonl) == cells(folder / "a.csv") == table


@given(
    content=st.one_of(st.binary(max_size=80), texts.map(str.encode)),
    suffix=st.sampled_from([".csv", ".json", ".jsonl"]),
)
def test_any_bytes_give_rows_or_the_one_error(
    content: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.mktemp("rows"), f"any{suffix}", content)
    try:
        assert all(row.number >= 1 for row in read_rows(path))
    except PromptFileError as error:
        assert str(path) in str(error)


def test_rows_are_counted_from_one_without_the_header_and_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "prompt\none\n\ntwo\n")
    assert [(row.number, row.cells["prompt"]) for row in read_rows(path)] == [(1, "one"), (2, "two")]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    assert cells(write(tmp_path, "a.csv", "\ufeffPrompt \nhello\n")) == [{"prompt": "hello"}]


def test_a_line_separator_inside_a_jsonl_text_ends_no_row(tmp_path: Path) -> None:
    assert cells(write(tmp_path, "a.jsonl", '{"prompt": "a\u2028b"}\n')) == [{"prompt": "a\u2028b"}]


def test_a_bare_list_of_texts_is_a_list_of_prompts(tmp_path: Path) -> None:
    assert cells(write(tmp_path, "a.json", '["one", "two"]')) == [{"prompt": "one"}, {"prompt": "two"}]


def test_only_rows_of_a_jailbreak_artifact_may_lack_their_prompt(tmp_path: Path) -> None:
    artifact = write(tmp_path, "a.json", '{"parameters": {}, "jailbreaks": [{"goal": "g", "prompt": null}]}')
    plain = write(tmp_path, "b.json", '[{"goal": "g", "prompt": null}]')
    assert [[row.may_lack_prompt for row in read_rows(path)] for path in (artifact, plain)] == [[True], [False]]


BAD: list[tuple[str, str | bytes, int | None, str]] = [
    ("a.csv", f'prompt\nfine\n"{SECRET}\n', 2, "unbalanced quote"),
    ("a.csv", f'prompt\n"{SECRET}"x\n', 1, "unbalanced quote"),
    ("a.csv", f"prompt,refusal\na,b\n{SECRET}\n", 2, "has 1 cells, the header has 2"),
    ("a.csv", f"prompt\n{SECRET},{SECRET}\n", 1, "has 2 cells, the header has 1"),
    ("a.csv", "", None, "is empty"),
    ("a.csv", f"prompt,Prompt\n{SECRET},b\n", None, "names a column twice"),
    ("a.csv", b"prompt\n\xff\xfe\n", None, "not UTF-8 text (line 2)"),
    ("a.json", f'[{{"prompt": "{SECRET}"', None, "not valid JSON (line 1"),
    ("a.json", f'{{"prompt": "{SECRET}"}}', None, "not a list"),
    ("a.json", f'["{SECRET}", 3]', 2, "is a number, not an object or a text"),
    ("a.json", f'["{SECRET}", null]', 2, "is empty, not an object or a text"),
    ("a.json", "[" * 100_000, None, "not valid JSON"),
    ("a.json", f'[{{"prompt": "{SECRET}", "n": NaN}}]', None, "not valid JSON"),
    ("a.json", f'[{{"prompt": "{SECRET}", "n": {"9" * 5000}}}]', None, "not valid JSON"),
    ("a.jsonl", f'{{"prompt": "{SECRET}"}}\n{{"prompt": {SECRET}}}\n', 2, "not valid JSON (column 12)"),
    ("a.jsonl", f'{{"prompt": "{SECRET}", "Prompt": "x"}}\n', 1, "names a column twice"),
    ("a.txt", SECRET, None, "is not one of .csv, .json, .jsonl"),
]


@pytest.mark.parametrize(("name", "content", "row", "reason"), BAD)
def test_a_bad_file_is_refused_with_file_row_and_reason_and_no_text(
    name: str, content: str | bytes, row: int | None, reason: str, tmp_path: Path
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(PromptFileError) as caught:
        list(read_rows(path))
    message = str(caught.value)
    assert str(path) in message
    assert reason in message
    assert caught.value.row == row
    assert row is None or f"row {row}" in message
    assert SECRET not in message
    chained: Any = caught.value.__context__
    assert chained is None or caught.value.__suppress_context__


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match=r"gone\.csv: cannot be read \(no such file"):
        list(read_rows(tmp_path / "gone.csv"))
