"""Texts of a hostile patch are shown, and do nothing, in a real browser."""

import pytest
from playwright.sync_api import expect

from kedit_hub import Edit, Probe
from space import page as pages
from space.state import Held
from tests.space.tiny import make_patch, make_workshop, save_base

pytestmark = pytest.mark.browser

HOSTILE = (
    "<img src=x onerror=\"alert('img')\"> <script>alert('script')</script> ${alert('template')} "
    "{{alert}} [x](javascript:alert(1)) <style>*{display:none}</style>"
)


@pytest.fixture
def url(tmp_path):
    edit = Edit(
        HOSTILE, HOSTILE, rephrases=(HOSTILE + " two",), locality=(Probe(HOSTILE + " three", HOSTILE, HOSTILE),)
    )  # fmt: skip
    evals = {"protocols": {HOSTILE: {"reliability": 1.0, "locality": {HOSTILE: 0.5}}}}
    held = [Held(make_patch([edit], seed).replace_evals(evals), f"patches/{seed}", "sample") for seed in range(2)] + [
        Held(make_patch([Edit(HOSTILE, HOSTILE + "!")], 9), "user/repo@" + "a" * 40, "hub")
    ]
    demo = pages.build(make_workshop(save_base(tmp_path), held))
    _, url, _ = demo.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **pages.look()
    )  # fmt: skip
    yield url
    demo.close()


def test_nothing_of_a_patch_runs(url, visit):
    page = visit(url)
    for box in page.locator("#patches label").all():
        box.click()
    expect(page.locator("#clash")).to_contain_text("<script>alert('script')</script>")
    page.get_by_label("Latest: the patch chosen last answers").check()
    page.locator("#ask").click()
    expect(page.locator("#result .side")).to_have_count(3)
    page.get_by_role("tab", name="Patch", exact=True).click()
    expect(page.locator("#card")).to_contain_text("${alert('template')} {{alert}}")
    page.locator("#ask-again").click()
    expect(page.locator("#verdict .note")).to_be_visible()
    assert page.locator("img[src='x']").count() == 0 and page.locator("#root style, #card style").count() == 0
    assert page.locator("a[href^='javascript:']").count() == 0
