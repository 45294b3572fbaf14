"""The page of bench safety in a real browser: small, drawn, readable at both widths and in both colour schemes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from benchmarks.safety.curve import document as curve
from benchmarks.safety.page import write_safety_page
from guard.spec import atomic_files as files
from tests.benchmarks.safety.curve.test_document import made
from tests.benchmarks.safety.test_report import report
from tests.calibration.test_report_browser import CLIPPED, CONTRASTS, Visit, browser

pytest.importorskip("matplotlib", reason="it draws the pictures")

__all__ = ["browser"]

pytestmark = pytest.mark.browser
LARGEST = 300_000  # bytes: small enough to be kept with results
WIDTHS = (400, 1280)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, points = tmp_path_factory.mktemp("safety"), tuple(made().values())
    paths = {name: folder / f"{name}.html" for name in ("safety", "curve", "endpoint")}
    write_safety_page(report(curve=points), paths["safety"])
    write_safety_page(report(conditions=("no guard",)), paths["endpoint"])
    files.write(paths["curve"], curve.page(points).encode())
    return paths


@pytest.fixture
def visit(browser: Browser, pages: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Visit]:
    name, width, *scheme = request.param
    visited = Visit(browser, pages[name], width, *scheme)
    yield visited
    visited.page.close()


def visits(*cases: tuple[object, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("visit", cases, indirect=True, ids=lambda case: " ".join(map(str, case)))


@visits(*((name, width) for name in ("safety", "curve", "endpoint") for width in WIDTHS))
def test_the_page_fits_the_window_and_asks_for_nothing(visit: Visit) -> None:
    assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert visit.page.locator("script").count() == 0
    assert visit.page.evaluate(CLIPPED) == []
    assert visit.trouble == []


@visits(*((name, width) for name in ("safety", "curve") for width in WIDTHS))
def test_the_curve_is_drawn_in_letters_that_can_be_read(visit: Visit) -> None:
    heights = visit.page.evaluate(
        "[...document.querySelectorAll('figure text')].map((text) => text.getBoundingClientRect().height)"
    )
    assert len(heights) > 20
    assert min(heights) > 8


@visits(*((name, width, scheme) for name in ("safety", "curve") for width in WIDTHS for scheme in ("light", "dark")))
def test_all_text_is_legible_in_both_colour_schemes(visit: Visit) -> None:
    contrasts = visit.page.evaluate(CONTRASTS)
    assert len(contrasts) > 60
    assert [(text, round(ratio, 2)) for text, ratio in contrasts if ratio < 4.5] == []


def test_the_page_is_small(pages: dict[str, Path]) -> None:
    assert max(path.stat().st_size for path in pages.values()) < LARGEST
