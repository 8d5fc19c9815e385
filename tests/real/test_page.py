"""The page at /, in a real browser."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from serving import Served

from gguf_embed import server

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.real

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KEY = "a-key-of-some-length"


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium."""
    if BROWSER is None:
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def served(starter, tmp_path_factory):
    with Served(tmp_path_factory.mktemp("served"), starter, "all-minilm-l6-v2") as one:
        yield one


@pytest.fixture
def page(browser):
    """A page that notes whatever goes wrong on it."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.wrong = []
    opened.on("console", lambda message: opened.wrong.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: opened.wrong.append(str(error)))
    yield opened
    opened.close()


def test_it_shows_the_model_and_its_memory(page, served):
    """Name, quantization, the parts of the plan, and that it is ready."""
    page.goto(served.url)
    page.wait_for_selector(".bar")
    assert "all-minilm-l6-v2 F16" in page.inner_text("#models")
    assert "384 components" in page.inner_text("#models")
    assert {"weights", "buffers", "program"} <= set(page.inner_text(".legend").replace(",", " ").split())
    assert page.inner_text("#status-words") == "ready"
    assert page.wrong == []


def test_texts_are_compared(page, served):
    """A heat map with a one on its diagonal; alike texts are nearer than others."""
    page.goto(served.url)
    page.wait_for_selector("#model option", state="attached")
    page.fill("#texts", "A cat sleeps.\nThe kitten is napping.\n\nInterest rates rose.")
    page.click("#try button")
    page.wait_for_selector("#heat table")
    cells = [float(text) for text in page.locator("#heat td").all_inner_texts()]
    assert [cells[0], cells[4], cells[8]] == [1, 1, 1]
    assert cells[1] > 0.5 > cells[2]
    assert "3 texts" in page.inner_text("#took")
    assert page.wrong == []


def test_what_goes_wrong_is_said(page, served):
    """In the server's words."""
    page.goto(served.url)
    page.wait_for_selector("#model option", state="attached")
    page.fill("#texts", "word " * 2000)
    page.click("#try button")
    page.wait_for_selector("#took:has-text('at most 256')")


def test_a_model_is_unloaded_and_loaded(page, served):
    """By its button."""
    page.goto(served.url)
    page.click("#models button:has-text('Unload')")
    page.wait_for_selector("text=not in memory")
    page.click("#models button:has-text('Load')")
    page.wait_for_selector("#models button:has-text('Unload')")
    assert page.wrong == []


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_nothing_is_wider_than_the_screen(page, served, width):
    """From a small phone on; a heat map scrolls inside its box."""
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(served.url)
    page.wait_for_selector("#model option", state="attached")
    page.click("#try button")
    page.wait_for_selector("#heat table")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_needs_nothing_from_outside_and_lets_nothing_in(page, served):
    """Every request goes to this server; the policy forbids the rest, and inline scripts."""
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    reply = page.goto(served.url)
    page.wait_for_selector(".bar")
    assert all(url.startswith((served.url, "data:")) for url in asked)
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.evil = 1'}))"
    )
    assert page.evaluate("window.evil") is None


def test_texts_are_text(page, served):
    """What a user types is never markup."""
    page.goto(served.url)
    page.wait_for_selector("#model option", state="attached")
    page.fill("#texts", "<img src=x onerror=alert(1)>\n<b>bold</b>")
    page.click("#try button")
    page.wait_for_selector("#heat table")
    assert page.locator("#heat img, #heat b").count() == 0
    assert "<b>bold</b>" in page.inner_text("#heat")


def test_the_key_is_asked_for(page, starter, tmp_path):
    """Where the server has one, and kept for this tab alone."""
    with Served(tmp_path, starter, "all-minilm-l6-v2", "--api-key", KEY) as own:
        page.goto(own.url)
        page.wait_for_selector("#key-form:not([hidden])")
        page.fill("#key", KEY)
        page.click("#key-form button")
        page.wait_for_selector(".bar")
        assert page.evaluate("localStorage.length") == 0


def test_the_files_are_in_the_package():
    """All three, for a wheel too."""
    folder = Path(server.__file__).parent / "page"
    assert {path.name for path in folder.iterdir()} == {"index.html", "page.css", "page.js"}
