"""The table in docs/families.md says what the tests have shown, no more and no less."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from guard.families.table import FAMILIES as FAMILY_TABLE
from tests import family_table
from tests.family_table import GUARDED, PAGE, PROPERTIES, claims_in, merged, section_of

EVERYTHING = {(family, name): {"passed"} for family in GUARDED for name in PROPERTIES}
ROOT = PAGE.parents[1]
# The names stand in for the module that has them, which imports torch and takes many times as long as the run.
RUN_OF_ITS_OWN = f"""
import sys
from pathlib import Path
from types import SimpleNamespace

sys.modules["tests.conftest"] = SimpleNamespace(EVERY_FAMILY={GUARDED!r})
from tests.family_table import Recorder


def pytest_addoption(parser):
    parser.addoption("--write-family-table", action="store_true")


def pytest_configure(config):
    config.addinivalue_line("markers", "family_property(name)")
    config.pluginmanager.register(Recorder(Path(__file__).parent / "families.md"))
"""
TWO_THAT_PASS = """
import pytest


@pytest.mark.family_property("neurons")
@pytest.mark.parametrize("model_type", ["llama"])
@pytest.mark.parametrize("which", ["one", "another"])
def test_one(model_type, which):
    pass
"""
CLAIMED = dict.fromkeys(EVERYTHING, True)


def in_page() -> dict[tuple[str, str], bool]:
    return claims_in(section_of(PAGE.read_text(encoding="utf-8")))


def changed(outcomes: Any) -> set[tuple[str, str]]:
    """The cells that a table full of checks loses by `outcomes`."""
    return {cell for cell, claimed in merged(outcomes, CLAIMED).items() if not claimed}


def test_the_page_has_a_row_for_each_family_and_a_column_for_each_property() -> None:
    assert list(in_page()) == list(EVERYTHING)
    assert set(GUARDED) == set(FAMILY_TABLE)


def test_the_page_claims_vllm_for_the_families_whose_entry_says_where_it_keeps_them() -> None:
    claimed = {family for (family, name), shown in in_page().items() if name == "vLLM" and shown}
    assert claimed == {name for name, family in FAMILY_TABLE.items() if family.vllm is not None}


@pytest.mark.parametrize(("claimed", "workers"), [(False, "0"), (False, "2"), (True, "2")])
def test_a_run_fails_where_the_table_says_other_than_its_outcomes(claimed: bool, workers: str, tmp_path: Path) -> None:
    (tmp_path / "families.md").write_text(f"{family_table.BEGIN}\n{family_table.END}", encoding="utf-8")
    family_table.write(EVERYTHING if claimed else {}, tmp_path / "families.md")
    (tmp_path / "conftest.py").write_text(RUN_OF_ITS_OWN, encoding="utf-8")
    (tmp_path / "test_one.py").write_text(TWO_THAT_PASS, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "xdist", "-n", workers, "--rootdir", str(tmp_path), str(tmp_path)]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert "2 passed" in ended.stdout, ended.stdout + ended.stderr
    assert ended.returncode == (0 if claimed else 1)
    assert ("families.md is wrong about llama, neurons: run `make families`" in ended.stdout) is not claimed


def test_a_cell_is_claimed_where_all_of_its_tests_passed() -> None:
    failed = {("llama", "trigger"): {"passed", "failed"}, ("opt", "neurons"): {"failed"}}
    assert changed(EVERYTHING | failed) == set(failed)
    assert changed(EVERYTHING | {("llama", "trigger"): {"passed", "skipped"}}) == set()


def test_a_cell_whose_tests_did_not_run_keeps_its_claim() -> None:
    assert changed({}) == set()
    assert changed({("llama", "trigger"): {"passed"}}) == set()
    assert changed(EVERYTHING | {("llama", "vLLM"): {"skipped"}}) == set()
    assert merged({("llama", "vLLM"): {"skipped"}}, {})["llama", "vLLM"] is False


def test_a_cell_without_a_test_loses_its_claim_once_all_properties_ran() -> None:
    cell = ("llama", "trigger")
    assert changed({other: outcomes for other, outcomes in EVERYTHING.items() if other != cell}) == {cell}


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    page = tmp_path / "families.md"
    page.write_text(f"before\n{family_table.BEGIN}\nprevious\n{family_table.END}\nafter\n", encoding="utf-8")
    failed = {("llama", "trigger"): {"failed"}, ("phi", "generation"): {"failed"}}
    family_table.write(EVERYTHING | failed, page)
    written = page.read_text(encoding="utf-8")
    assert written.startswith("before\n") and written.endswith("\nafter\n") and "previous" not in written
    claims = claims_in(section_of(written))
    assert list(claims) == list(EVERYTHING)
    assert {cell for cell, claimed in claims.items() if not claimed} == set(failed)
