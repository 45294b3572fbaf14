"""What tests read out of the README and the pages: fenced blocks, commands as a shell reads them, links."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
MORE = ["CONTRIBUTING.md", "CHANGELOG.md", "calibration/SCALE.md"]
MORE += ["benchmarks/results/README.md", "benchmarks/organisms/README.md"]
LINKING = [*PAGES, *(ROOT / name for name in MORE)]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
ASSIGNMENT = re.compile(r"[A-Z_]+=")
DIAGRAM = "──►"


@dataclass(frozen=True)
class Command:
    """One command of a page; `words` without leading assignments to the environment."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """The language and the text of each fenced block, its indentation taken off."""
    for found in FENCE.finditer(page.read_text(encoding="utf-8")):
        yield found["language"], re.sub(rf"^{found['indent']}", "", found["text"], flags=re.MULTILINE)


def commands(page: Path) -> list[Command]:
    """Every command of the blocks that name no language."""
    texts = [text for language, text in blocks(page) if not language and DIAGRAM not in text]
    return [Command(page.name, words) for text in texts for words in _split(text)]


def pythons(page: Path) -> list[str]:
    """The text of every Python block."""
    return [text for language, text in blocks(page) if language == "python"]


def prose(page: Path) -> str:
    """The text of a page without its blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def inline(page: Path) -> list[str]:
    """Every span of code outside the blocks."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def links(page: Path) -> list[str]:
    """Where the links of a page lead, as written."""
    return LINK.findall(re.sub(r"`[^`\n]+`", "", prose(page)))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _split(text: str) -> Iterator[tuple[str, ...]]:
    """The words of each command; one whose quotation or backslash continues on the next line is one command."""
    pending = ""
    for line in text.replace("\\\n", " ").splitlines():
        pending += f"{line}\n"
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:
            continue
        pending = ""
        while words and ASSIGNMENT.match(words[0]):
            del words[0]
        if words:
            yield tuple(words)
    assert not pending, f"a quotation without an end: {pending}"
