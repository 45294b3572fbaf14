"""What stands beside figures is written anew from them alone."""

from pathlib import Path

import pytest

from benchmarks.safety import tables
from benchmarks.safety.page import render
from benchmarks.safety.rewrite import FiguresError, main, rewrite
from tests.benchmarks.safety.curve.test_document import made
from tests.benchmarks.safety.test_report import report


def test_page_table_and_picture_are_those_of_the_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="it draws the pictures")
    whole = report(curve=tuple(made().values()))
    (tmp_path / "safety-a.json").write_text(whole.model_dump_json())
    main([str(tmp_path / "safety-a.json")])
    assert (tmp_path / "safety-a.html").read_text() == render(whole)
    assert (tmp_path / "safety-a.md").read_text() == tables.markdown(whole)
    assert (tmp_path / "safety-a.svg").read_text().rstrip().endswith("</svg>")


def test_a_file_without_figures_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(FiguresError, match=r"other\.json"):
        rewrite(tmp_path / "other.json")
    assert [path.name for path in tmp_path.iterdir()] == ["other.json"]
