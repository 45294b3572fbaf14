"""The README's table of versions covers what pyproject.toml allows, and locks hold what they promise."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.version_table import BEGIN, END, README, ROOT, Row, numbers, rows_of, table_of, write

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def allowed(name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The lowest version of a dependency, and the first that is too new."""
    text = next(each for each in PROJECT["dependencies"] if re.match(rf"{name}\b", each))
    found = re.fullmatch(rf"{name}>=([\d.]+),<([\d.]+)", text)
    assert found is not None, text
    return numbers(found[1]), numbers(found[2])


def locked(lock: Path) -> dict[str, list[str]]:
    """The versions that a lock pins by name; several where they differ by platform."""
    pins: dict[str, list[str]] = {}
    for name, pinned in re.findall(r"^([\w.-]+)==([^\s;]+)", lock.read_text(encoding="utf-8"), re.MULTILINE):
        pins.setdefault(name, []).append(pinned)
    return pins


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_every_minor_release_that_is_allowed_has_a_row_and_no_other_has(name: str) -> None:
    lowest, beyond = allowed(name)
    shown = {numbers(getattr(row, name))[:2] for row in rows_of(README.read_text(encoding="utf-8"))}
    assert shown == {(lowest[0], minor) for minor in range(lowest[1], beyond[1])}


def test_the_lowest_and_the_newest_transformers_were_run_and_not_only_resolved() -> None:
    lowest, beyond = allowed("transformers")
    ran = {
        numbers(row.transformers)[:2] for row in rows_of(README.read_text(encoding="utf-8")) if "passed" in row.shown
    }
    assert {lowest[:2], (beyond[0], beyond[1] - 1)} <= ran


def test_a_row_takes_the_place_of_the_one_of_the_same_versions_and_the_rest_of_the_page_stays(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n{BEGIN}\n{table_of([Row('2.9.0', '5.9.0', '–', 'old')])}\n{END}\nafter\n", "utf-8")
    write(Row("2.10.0", "5.9.0", "–", "other"), page)
    write(Row("2.9.0", "5.9.0", "–", "new"), page)
    assert [row.shown for row in rows_of(page.read_text("utf-8"))] == ["new", "other"]
    assert page.read_text("utf-8").startswith("before\n") and page.read_text("utf-8").endswith("\nafter\n")


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_pins_everything_by_hash_names_no_index_and_leaves_torch_out(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    entries = re.split(r"\n(?=\S)", re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE).strip())
    assert entries and all(re.match(r"[\w.-]+==\S+.*--hash=sha256:", entry, re.DOTALL) for entry in entries)
    assert "://" not in text and "--index" not in text.split("\n\n")[-1]
    heavy = [name for name in locked(lock) if re.match(r"torch(vision|audio|codec)?$|nvidia-|cuda-", name)]
    assert heavy == []


def test_the_lock_of_the_newest_holds_all_of_the_demo_s() -> None:
    demo, newest = (locked(ROOT / "requirements" / f"{name}.txt") for name in ("demo", "newest"))
    assert demo.items() <= newest.items()


def test_the_lock_of_the_lowest_holds_every_dependency_at_its_lower_bound() -> None:
    pins = locked(ROOT / "requirements" / "lowest.txt")
    for requirement in PROJECT["dependencies"]:
        found = re.match(r"([\w.-]+)>=([\d.]+)", requirement)
        assert found is not None, requirement
        if found[1] != "torch":
            lowest = [numbers(pinned) for pinned in pins[found[1]]]
            assert any(each[: len(numbers(found[2]))] == numbers(found[2]) for each in lowest), requirement
