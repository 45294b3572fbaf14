"""The trace as a page, as JSON and in the terminal: the same numbers, and no text that is anything but text."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from calibration.report.display import chance, number, token, visible
from calibration.trace import page
from calibration.trace.document import Trace
from calibration.trace.page import (
    PageError,
    page_data,
    render_trace,
    shares,
    strongest_module,
    write_trace_json,
    write_trace_page,
)
from calibration.trace.plots import column_name, draw
from calibration.trace.terminal import trace_tables
from tests.calibration.report.test_page_report import HOSTILE, Page
from tests.calibration.trace.example import EXAMPLES, hostile

SEEN = EXAMPLES["guard and set"]


@pytest.fixture
def no_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave plotly's five megabytes out of the page, for tests that read it whole."""
    monkeypatch.setattr(page, "plotly_script", lambda: "")


def terminal(trace: Trace, width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(trace_tables(trace))
    written: io.StringIO = console.file  # type: ignore[assignment]
    return written.getvalue()


@pytest.mark.usefixtures("no_plotly")
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_shape_of_trace_gives_a_page_with_its_figures_and_its_map(name: str) -> None:
    trace = EXAMPLES[name]
    read = Page(render_trace(trace))
    places = {attributes["id"] for _, attributes in read.elements if attributes.get("class") == "plot"}
    assert places == {f"plot-{figure}" for figure in draw(trace)}
    cells = [attributes for tag, attributes in read.elements if tag == "td" and attributes.get("role") == "gridcell"]
    assert len(cells) == trace.layers * len(trace.columns)
    assert set(json.loads(read.scripts[2])["views"]) == {"layer", "attention", "mlp", "lens"}


@pytest.mark.usefixtures("no_plotly")
@pytest.mark.parametrize("name", EXAMPLES)
def test_page_terminal_and_document_tell_the_same_numbers(name: str) -> None:
    trace = EXAMPLES[name]
    text, said = Page(render_trace(trace)).text, terminal(trace)
    for value in (trace.outcome, *(case.outcome for case in trace.cases), strongest_module(trace).removed):
        assert number(abs(value)) in text
        assert number(abs(value)) in said
    data = page_data(trace)
    for view in trace.maps:
        for row, written in zip(view.effects, data["views"][view.view]["texts"], strict=True):
            assert written == [None if value is None else number(value) for value in row]
    assert Trace.model_validate_json(trace.model_dump_json()) == trace


@pytest.mark.usefixtures("no_plotly")
def test_no_text_of_a_prompt_a_token_or_a_model_becomes_an_element() -> None:
    trace = hostile(HOSTILE)
    clean, read = Page(render_trace(SEEN)), Page(render_trace(trace))
    assert len(read.scripts) == len(clean.scripts) == 5
    assert not [attributes for tag, attributes in read.elements if tag == "img" or "onerror" in attributes]
    assert json.loads(read.scripts[2])["columns"][0] == f"1 {token(HOSTILE)}"


@pytest.mark.usefixtures("no_plotly")
def test_the_page_asks_for_nothing_and_forbids_it() -> None:
    read = Page(render_trace(SEEN))
    targets = [value for _, each in read.elements for name, value in each.items() if name in {"src", "href"}]
    assert all(target and target.startswith(("#", "data:")) for target in targets)
    policy = next(each["content"] for _, each in read.elements if "http-equiv" in each)
    assert "default-src 'none'" in (policy or "")


@pytest.mark.usefixtures("no_plotly")
def test_what_is_left_out_of_the_document_is_not_on_the_page() -> None:
    text = render_trace(SEEN)
    assert "left out: 9 words" in text
    assert SEEN.cases[2].withheld is not None
    assert SEEN.cases[2].withheld in Page(text).text
    assert "not given" in terminal(SEEN)


def test_links_inside_the_page_lead_somewhere() -> None:
    for trace in EXAMPLES.values():
        read = Page(render_trace(trace))
        places = {attributes.get("id") for _, attributes in read.elements}
        assert {(each["href"] or "")[1:] for tag, each in read.elements if tag == "a"} <= places


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_terminal_fits_its_width_and_shows_the_map(name: str, width: int) -> None:
    said = terminal(EXAMPLES[name], width)
    assert max(map(len, said.splitlines())) <= width
    assert "█" in said
    for title in ("By layer", "Neurons", "What changes"):
        assert title in said


def test_no_token_can_steer_the_terminal() -> None:
    said = terminal(hostile("\x1b[31m[bold]x[/bold]\u202e\r\n"))
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert "\r" not in said
    assert "U+001B" in said
    assert "[bold]" in said


@given(st.text())
def test_a_visible_text_prints_on_one_line(text: str) -> None:
    assert visible(text).isprintable()
    assert " " not in token(text)
    assert token(text)


def test_a_small_probability_does_not_read_as_none() -> None:
    assert [chance(each) for each in (0.0, 0.0004, 0.0006, 1.0)] == ["< 0.1%", "< 0.1%", "0.1%", "100.0%"]


def test_shares_keep_sign_and_order_and_what_is_missing() -> None:
    scaled, largest = shares([[4.0, -1.0, None], [0.0, 0.04, 2.0]])
    assert largest == 4.0
    assert scaled == [[1.0, -0.5, None], [0.0, 0.1, 0.707]]
    assert shares([[0.0, None]]) == ([[0.0, None]], 0.0)


def test_a_reply_step_shows_no_token_that_is_left_out() -> None:
    names = [column_name(SEEN, place) for place in range(len(SEEN.columns))]
    replies = [name for name in names if name.startswith("reply")]
    assert replies[0] == "reply 1: … | ·cannot"
    assert replies[-1] == "reply 3"


@pytest.mark.parametrize("write", [write_trace_page, write_trace_json])
def test_a_file_that_cannot_be_written_is_one_sentence(write: Any, tmp_path: Path) -> None:
    with pytest.raises(PageError, match="name a file in a folder that exists"):
        write(tmp_path / "missing" / "trace.html", SEEN)


def test_the_json_file_is_the_document(tmp_path: Path) -> None:
    write_trace_json(tmp_path / "trace.json", SEEN)
    assert Trace.model_validate_json((tmp_path / "trace.json").read_text()) == SEEN
    assert re.match(r"\{\n", (tmp_path / "trace.json").read_text())
