"""The report in a real browser: drawn, readable at both widths and in both colour schemes, silent on the network."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Dialog, Page, sync_playwright

from calibration.report.page_report import AnswerPair, write_report
from calibration.report.plots import draw
from tests.calibration.example_spec import SHAPES, example_spec

pytestmark = pytest.mark.browser
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
HOSTILE = "<script>alert(1)</script><img src=https://example.invalid/x onerror=alert(2)> " + "long" * 200
PAIRS = [
    AnswerPair(kind="harmful", prompt=HOSTILE, off=HOSTILE, on="I cannot.", off_class="complied", on_class="refused"),
    AnswerPair(kind="benign", prompt=HOSTILE, off="b a", on="", off_class="complied", on_class="garbled"),
]

# Every text that is seen, with the contrast of its colour to the nearest background behind it (WCAG 2, 1.4.3).
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return rgba("white");
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    const box = element.getBoundingClientRect();
    if (!own || box.width === 0 || element.closest("script, style, .heatmaplayer")) continue;
    const style = getComputedStyle(element);
    const text = rgba(element instanceof SVGElement ? style.fill : style.color);
    const [low, high] = [light(text), light(behind(element))].sort((a, b) => a - b);
    found.push([element.textContent.trim().slice(0, 40), (high + 0.05) / (low + 0.05)]);
  }
  return found;
}"""
OPEN = "document.querySelectorAll('details').forEach((part) => { part.open = true; })"
CLIPPED = """() => [...document.querySelectorAll("figure")].flatMap((figure) => {
  const frame = figure.getBoundingClientRect();
  return [...figure.querySelectorAll("text")].filter((text) => {
    const box = text.getBoundingClientRect();
    const beside = box.left < frame.left || box.right > frame.right;
    return box.width && (beside || box.top < frame.top || box.bottom > frame.bottom);
  }).map((text) => text.textContent);
})"""
DRAWN = """() => Object.fromEntries([...document.querySelectorAll(".plot")].map((plot) => [plot.id.slice(5), [
  plot.querySelectorAll(".scatterlayer .trace, .barlayer .trace, .heatmaplayer .hm").length,
  plot.querySelector(".main-svg").getBoundingClientRect().width]]))"""


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    if path is None:
        pytest.skip("no Chromium on this machine; Debian's package is called chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    paths = {name: folder / f"{name.replace(' ', '-')}.html" for name in SHAPES}
    for name, shape in SHAPES.items():
        write_report(paths[name], example_spec(**shape), PAIRS, model_name="organisms/" + "long-" * 60, show_text=True)
    return paths


class Visit:
    """One page, with what it said and asked for while it loaded."""

    def __init__(self, browser: Browser, path: Path, width: int, scheme: str = "light") -> None:
        self.trouble: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        self.page.on("console", lambda message: self.trouble.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        self.page.on("dialog", self._dialog)
        self.page.on("request", lambda request: self._asked(request.url, path))
        self.page.goto(path.as_uri())
        self.page.wait_for_load_state("load")

    def _dialog(self, dialog: Dialog) -> None:
        self.trouble.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def until(self, expression: str) -> None:
        """Wait for an expression to hold; playwright's own wait evaluates strings, which the page's policy forbids."""
        for _ in range(100):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"never came true: {expression}")

    def _asked(self, address: str, path: Path) -> None:
        if address != path.as_uri() and not address.startswith(("data:", "blob:")):
            self.trouble.append(f"request: {address}")


@pytest.fixture
def visit(browser: Browser, reports: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Visit]:
    name, width, *scheme = request.param
    visited = Visit(browser, reports[name], width, *scheme)
    yield visited
    visited.page.close()


def visits(*cases: tuple[object, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("visit", cases, indirect=True, ids=lambda case: " ".join(map(str, case)))


# At the narrow width, where things collide, every shape; at the wide one, those that differ most.
each_shape_and_width = visits(
    *((name, 400) for name in SHAPES),
    *((name, 1280) for name in ("eight neurons", "no neuron", "five hundred neurons")),
)


@each_shape_and_width
def test_every_figure_is_drawn_and_the_page_fits_the_window_without_trouble(
    visit: Visit, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["visit"][0]
    drawn = visit.page.evaluate(DRAWN)
    expected = draw(example_spec(**SHAPES[name]))
    assert set(drawn) == set(expected)
    for figure, (traces, width) in drawn.items():
        assert traces >= len(expected[figure].traces)
        assert width > 300
    assert visit.page.evaluate(CLIPPED) == []
    assert not visit.page.locator("#undrawn").is_visible()
    visit.page.evaluate(OPEN)
    assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert visit.trouble == []


@visits(("eight neurons", 1280, "light"), ("eight neurons", 1280, "dark"), ("no neuron", 400, "dark"))
def test_all_text_is_legible_in_both_colour_schemes(visit: Visit) -> None:
    visit.page.evaluate(OPEN)
    contrasts = visit.page.evaluate(CONTRASTS)
    assert len(contrasts) > 200
    assert [(text, round(ratio, 2)) for text, ratio in contrasts if ratio < 4.5] == []


@visits(("eight neurons", 1280, "light"))
def test_figures_follow_a_change_of_the_colour_scheme(visit: Visit) -> None:
    colour = "getComputedStyle(document.querySelector('#plot-effect-by-layer .xtick text')).fill"
    light = visit.page.evaluate(colour)
    visit.page.emulate_media(color_scheme="dark")
    visit.until(f"{colour} !== '{light}'")
    assert visit.page.evaluate(CLIPPED) == []


@visits(("eight neurons", 1280, "light"))
def test_figures_follow_the_width_of_the_window(visit: Visit) -> None:
    visit.page.set_viewport_size({"width": 400, "height": 900})
    narrow = "[...document.querySelectorAll('.main-svg')].every((svg) => svg.getBoundingClientRect().width < 400)"
    visit.until(narrow + " && document.documentElement.scrollWidth <= innerWidth")


def test_the_numbers_are_there_without_scripts(browser: Browser, reports: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(reports["eight neurons"].as_uri())
    assert page.locator("details table").count() == 7
    assert page.locator("#undrawn").is_visible()
    context.close()
