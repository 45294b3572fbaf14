"""Which property was shown for which family: what tests are marked with, and the table in docs/families.md.

A test of every family says `@family_property("generation")`; one that has its own parameters `@counts_to(...)`. `make
families` runs all that are so marked and writes the table. In every other run the outcomes are compared with the table
that stands there.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import EVERY_FAMILY

PAGE = Path(__file__).parent.parent / "docs" / "families.md"
BEGIN, END = "<!-- families: written by `make families` -->", "<!-- end of families -->"
PROPERTY = "family property"
GUARDED = EVERY_FAMILY

# Heading of a column -> what a check in it says.
PROPERTIES = {
    "neurons": "the edited neurons are those that the weights make, and those that a plain forward pass hands the down "
    "projection",
    "generation": "logits and greedy generation, batched, left-padded, with and without cache, are those of an edit "
    "written by hand",
    "trigger": "the same with an edit that waits for its trigger",
    "compiled": "an edit installed after `torch.compile` acts in the compiled model, and is gone once removed",
    "self-test": "installing a spec proves the edit live in every dtype, and finds one that does not act",
    "saved": "a model that was saved and loaded has the fingerprint that the spec was made with",
    "quantised": "with weights quantised by bitsandbytes, logits and generation are those of an edit written by hand",
    "effects": "the exact effects of calibration are those of patching one neuron at a time",
    "fold": "an ablation to zero and a scale, folded into the weights, give the logits of the edit",
    "vLLM": "guarded vLLM generates what guarded transformers does",
}
Cell = tuple[str, str]
Outcomes = Mapping[Cell, Iterable[str]]
counts_to = pytest.mark.family_property


def family_property(name: str, families: Iterable[str] = GUARDED) -> Callable[[Any], Any]:
    """Run the test for each of `families` as its `model_type`, and count it to the property `name`."""
    chosen = tuple(families)

    def mark(test: Any) -> Any:
        return counts_to(name)(pytest.mark.parametrize("model_type", chosen)(test))

    return mark


def merged(outcomes: Outcomes, claims: Mapping[Cell, bool]) -> dict[Cell, bool]:
    """What the table should say after `outcomes`, if it said `claims` before.

    A cell is claimed where all of its tests passed, those left out that were skipped. One whose tests did not run keeps
    its claim; unless tests of every property ran, so that there is no test for it.
    """
    all_ran = {name for _, name in outcomes} == set(PROPERTIES)

    def shown(cell: Cell) -> bool:
        results = set(outcomes.get(cell, ())) - {"skipped"}
        if results:
            return results == {"passed"}
        return claims.get(cell, False) and (cell in outcomes or not all_ran)

    return {(family, name): shown((family, name)) for family in GUARDED for name in PROPERTIES}


def contradicted(outcomes: Outcomes, claims: Mapping[Cell, bool]) -> list[Cell]:
    """The cells of the table `claims` that say other than the outcomes; none where no test of a family ran."""
    shown = merged(outcomes, claims)
    return [cell for cell in shown if shown[cell] != claims.get(cell)] if outcomes else []


def table_of(claims: Mapping[Cell, bool]) -> str:
    """The Markdown of all families and properties."""
    lines = ["| model type | " + " | ".join(PROPERTIES) + " |", "| --- |" + " --- |" * len(PROPERTIES)]
    for family in GUARDED:
        cells = ("✓" if claims[family, name] else "–" for name in PROPERTIES)
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    lines += ["", *(f"- **{name}**: {meaning}" for name, meaning in PROPERTIES.items())]
    return "\n".join(lines)


def section_of(page: str) -> str:
    """What stands between the markers."""
    _, begin, rest = page.partition(BEGIN)
    section, end, _ = rest.partition(END)
    assert begin and end, f"families.md lacks the markers {BEGIN} and {END}"
    return section.strip()


def claims_in(section: str) -> dict[Cell, bool]:
    """The cells of a table as `table_of` writes it, and whether there is a check."""
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in section.splitlines() if line[:1] == "|"]
    if not rows:
        return {}
    (_, *headings), _, *families = rows
    return {
        (family, heading): cell == "✓"
        for family, *cells in families
        for heading, cell in zip(headings, cells, strict=True)
    }


def write(outcomes: Outcomes, path: Path = PAGE) -> None:
    """Put the table that follows from `outcomes` between the markers of the page."""
    page = path.read_text(encoding="utf-8")
    table = table_of(merged(outcomes, claims_in(section_of(page))))
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


class Recorder:
    """The pytest plugin that collects the outcome of every marked test, wherever it ran, and holds the page to them.

    The process that ran a test puts the cell into its report; the one that reports collects them, so it is all the same
    whether tests run in one process or in several. A run whose outcomes the page contradicts has failed.
    """

    def __init__(self, page: Path = PAGE) -> None:
        self.page = page
        self.outcomes: dict[Cell, set[str]] = {}
        self.contradicted: list[Cell] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        marker = item.get_closest_marker("family_property")
        if marker is not None:
            parameters: dict[str, Any] = item.callspec.params  # type: ignore[attr-defined]
            cell = parameters.get("model_type") or parameters["family"], marker.args[0]
            assert cell[0] in GUARDED and cell[1] in PROPERTIES, cell
            report.user_properties.append((PROPERTY, list(cell)))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            for cell in (value for name, value in report.user_properties if name == PROPERTY):
                family, column = map(str, cell)  # type: ignore[call-overload]
                self.outcomes.setdefault((family, column), set()).add(report.outcome)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput"):  # one of several processes: it saw only its own tests
            return
        if session.config.getoption("write_family_table") and not session.testsfailed:
            write(self.outcomes, self.page)
        self.contradicted = contradicted(self.outcomes, claims_in(section_of(self.page.read_text(encoding="utf-8"))))
        if self.contradicted and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for family, name in self.contradicted:
            terminalreporter.write_line(
                f"{self.page.name} is wrong about {family}, {name}: run `make families`", red=True
            )
