"""A real headless Chromium that reports everything a page should not do."""

import os
import shutil

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import pytest
from playwright.sync_api import sync_playwright

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def chromium():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine (chromium, chromium-browser, google-chrome)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


class Watch:
    """What went wrong on a page: errors in its console, and requests to anybody but the app."""

    def __init__(self, page, url):
        self.errors: list[str] = []
        self.strangers: list[str] = []
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: (self.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self._see(request.url, url))
        page.on("websocket", lambda socket: self._see(socket.url, url))

    def _see(self, address, url):
        if not address.startswith((url, "data:", "blob:")):
            self.strangers.append(address)

    def check(self):
        assert self.errors == [] and self.strangers == []


@pytest.fixture
def visit(chromium):
    """visit(url, **context) -> a page of a new visitor; at the end of the test nothing may have gone wrong on it."""
    opened = []

    def open_page(url, **how):
        context = chromium.new_context(**({"viewport": {"width": 1280, "height": 900}} | how))
        page = context.new_page()
        page.set_default_timeout(60_000)
        opened.append((context, Watch(page, url)))
        page.goto(url)
        page.wait_for_selector("#ask")
        return page

    yield open_page
    for context, watch in opened:
        context.close()
        watch.check()
