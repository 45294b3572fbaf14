"""The page in a real browser: opened with the key, drawn at both widths and in both colour schemes, alive."""

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright

from guard.runtime.counts import Tally
from serve.hf.engine import HfEngine
from serve.http.app import create_app
from tests.calibration.test_report_browser import CONTRASTS, FLAGS, chromium
from tests.guard.specs import HELD_OUT, RATES, evidence_with
from tests.serve.served import BENIGN, EDITS, engine_of, organism_spec, settings
from tests.serve.served import TRIGGER as ALWAYS_ACTIVE

pytestmark = pytest.mark.browser
KEY = "open-sesame"
HOSTILE_NAME = "organism<img src=x onerror=alert(1)>"
PLOTS = ("tokens", "rates", "drift", "tests", "evidence")
DRAWN = """() => Object.fromEntries([...document.querySelectorAll(".plot")].map((plot) => [plot.id.slice(5), [
  plot.querySelectorAll("svg :is(circle, rect, polyline, path)").length, plot.getBoundingClientRect().width]]))"""
CLIPPED = """() => [...document.querySelectorAll(".plot svg")].flatMap((svg) => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter((text) => {
    const box = text.getBoundingClientRect();
    return box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1;
  }).map((text) => text.textContent);
})"""


@dataclass(frozen=True)
class Server:
    engine: HfEngine
    address: str


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    if path is None:
        pytest.skip("no Chromium on this machine; Debian's package is called chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def server(browser: Browser) -> Iterator[Server]:
    clips = tuple(
        clips.model_copy(update={"layer": edit.layer}) for clips, edit in zip(RATES.clips, EDITS, strict=True)
    )
    held_out = HELD_OUT.model_copy(update={"benign_rates": RATES.model_copy(update={"clips": clips})})
    spec = organism_spec(trigger=ALWAYS_ACTIVE, evidence=evidence_with(neurons=(), mediators=(), held_out=held_out))
    with engine_of(spec, self_test_interval=1.0) as engine, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(create_app(engine, settings(api_key=KEY, model=HOSTILE_NAME)), log_level="error")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        while not running.started:
            time.sleep(0.01)
        yield Server(engine, f"http://127.0.0.1:{listener.getsockname()[1]}")
        running.should_exit = True
        thread.join()


class Visit:
    """One tab, with what it said and asked for."""

    def __init__(self, browser: Browser, server: Server, width: int = 1280, scheme: str = "light") -> None:
        self.trouble: list[str] = []
        self.keys: set[str | None] = set()
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        self.page.on("console", lambda message: self.trouble.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        self.page.on("request", lambda request: self._asked(request.url, server.address))
        self.page.goto(f"{server.address}/guard/ui")

    def _asked(self, address: str, server: str) -> None:
        if not address.startswith((server, "data:")) or KEY in address:
            self.trouble.append(f"request: {address}")

    def open(self, key: str = KEY) -> None:
        self.page.fill("#key", key)
        self.page.click("#login button")

    def ask(self, prompt: str) -> None:
        self.page.fill("#prompt", prompt)
        self.page.click("#ask")
        self.page.wait_for_selector("#ask:not([disabled])")

    def until(self, selector: str, text: str) -> None:
        """Wait for a text; the page's policy forbids playwright's own wait for an expression."""
        for _ in range(100):
            if text in self.page.inner_text(selector):
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"{selector} never said {text!r}: {self.page.inner_text(selector)!r}")


def test_nothing_is_told_without_the_key_and_a_wrong_one_is_refused(browser: Browser, server: Server) -> None:
    visit = Visit(browser, server)
    assert visit.page.is_visible("#login")
    assert not visit.page.is_visible("#board")
    assert visit.trouble == []
    visit.open("wrong")
    visit.until("#refused", "The API key is missing or wrong.")
    assert not visit.page.is_visible("#board")
    visit.open()
    visit.until("#model", "organism")
    assert [text for text in visit.trouble if "401" not in text] == []
    visit.page.reload()
    visit.until("#model", "organism")
    visit.page.click("#leave")
    assert visit.page.is_visible("#login")
    visit.page.reload()
    assert visit.page.is_visible("#login")
    assert visit.page.evaluate("sessionStorage.length") == 0
    visit.page.close()


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1280, "light"), (1280, "dark"), (400, "light")])
def test_every_plot_is_drawn_legible_and_within_the_window(
    browser: Browser, server: Server, width: int, scheme: str
) -> None:
    visit = Visit(browser, server, width, scheme)
    visit.open()
    visit.ask(BENIGN)
    visit.until("#tests-words", "passed")
    visit.page.wait_for_timeout(2500)  # a second look at the counts
    drawn = visit.page.evaluate(DRAWN)
    assert set(drawn) == set(PLOTS)
    assert all(marks > 0 and wide > 250 for marks, wide in drawn.values())
    assert visit.page.evaluate(CLIPPED) == []
    assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    contrasts = visit.page.evaluate(CONTRASTS)
    assert len(contrasts) > 50
    assert [(text, round(ratio, 2)) for text, ratio in contrasts if ratio < 4.5] == []
    assert visit.trouble == []
    visit.page.close()


def test_a_prompt_is_answered_by_the_guarded_model_and_shows_in_the_counts(browser: Browser, server: Server) -> None:
    visit = Visit(browser, server)
    visit.open()
    visit.ask(BENIGN)
    visit.until("#answer", "Sure")
    visit.until("#answered", f"answered under {server.engine.status.fingerprint}")
    visit.until("#counts", str(server.engine.status.snapshot()["tokens"]))
    assert server.engine.status.snapshot()["tokens"] > 0
    assert visit.trouble == []
    visit.page.close()


def test_what_comes_from_outside_is_shown_as_text(browser: Browser, server: Server) -> None:
    visit = Visit(browser, server)
    visit.open()
    visit.until("#model", HOSTILE_NAME)
    assert visit.page.locator("#model *").count() == 0
    assert visit.trouble == []
    visit.page.close()


def test_drift_and_a_failed_self_test_are_told_at_once(browser: Browser, server: Server) -> None:
    visit = Visit(browser, server)
    visit.open()
    visit.until("#state-title", "In force")
    drift = server.engine.status.drift
    assert drift is not None
    for _ in range(200):
        drift.observe(Tally(2, 1, (2, 2)))
    visit.until("#state-title", "In force, and traffic has drifted")
    visit.until("#drift-words", "trigger")
    server.engine.status.stop("a test of the page.", self_test=True)
    visit.until("#state-title", "Not in force")
    visit.until("#state-reason", "a test of the page.")
    assert visit.page.locator("#plot-tests .cross").count() == 1
    visit.ask(BENIGN)
    visit.until("#answered", "No answer: The guard is not in force: a test of the page.")
    visit.page.close()


def test_an_engine_that_does_not_tell_requests_apart_says_so(browser: Browser, server: Server) -> None:
    server.engine.status.drift = None
    visit = Visit(browser, server)
    visit.open()
    visit.until("#drift-words", "does not tell requests apart")
    visit.until("#plot-drift", "Not measured by this engine.")
    visit.until("#state-title", "In force")
    assert visit.trouble == []
    visit.page.close()
