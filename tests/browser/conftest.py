"""A real headless Chromium that reports everything a page should not do."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
]


# This and the demo use a processor even when nobody asks, and an event loop runs until this one ends: neither outlives these tests.
@pytest.fixture(scope="package")
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
        page.watch = Watch(page, url.partition("?")[0])
        opened.append((context, page.watch))
        page.goto(url)
        page.wait_for_selector("#ask")
        return page

    yield open_page
    for context, watch in opened:
        context.close()
        watch.check()


@pytest.fixture(scope="session")
def start():
    """`with start(folder, **environment) as url`: `python app.py` in a process of its own, until the block ends.

    A proxy that leads nowhere stands for a machine without a network.
    """
    return _started


@contextmanager
def _started(folder, **environment):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ours = ("SPACE_ID", "OAUTH_CLIENT_ID", "HF_ENDPOINT", "HF_TOKEN", "KEDIT_HUB_ENDPOINT")
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    inherited = {name: value for name, value in inherited.items() if not name.lower().endswith("_proxy")}
    env = inherited | {
        "PORT": str(port),
        "KEDIT_HOME": str(folder / "kedit"),
        "HF_HOME": str(folder / "hf"),
        "GRADIO_TEMP_DIR": str(folder / "gradio"),
        "HTTPS_PROXY": "http://127.0.0.1:1",
        "HTTP_PROXY": "http://127.0.0.1:1",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    url, log = f"http://127.0.0.1:{port}/", folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=env | environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            _await(url, process, log)
            assert url.rstrip("/") in log.read_text()  # it prints its address
            yield url
        finally:
            process.terminate()
            process.wait(20)


def _await(url, process, log, seconds=200):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + seconds
    while True:
        try:
            opener.open(url, timeout=5).read()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.25)


@pytest.fixture(scope="package")
def app(start, tmp_path_factory):
    """Address of the running demo, one for all tests that need nothing beside it."""
    with start(tmp_path_factory.mktemp("app")) as url:
        yield url


def tab(page, name):
    """Open a tab, from the menu where it has no room."""
    shown = page.get_by_role("tab", name=name, exact=True)
    if shown.locator("visible=true").count():
        shown.click()
    else:
        page.locator(".overflow-menu > button").first.click()
        page.locator(".overflow-dropdown button", has_text=name).click()


def label(page, text):
    """A patch of the list on the first tab."""
    return page.locator("#patches label", has_text=text)
