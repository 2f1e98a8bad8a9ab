"""From a sentence to a Hub repo and back: one visitor pushes a patch, another adds it by name."""

import io
from contextlib import redirect_stdout

import pytest
from huggingface_hub import HfApi, constants
from playwright.sync_api import expect

from kedit_hub.hub.localhub import LocalHub

pytestmark = pytest.mark.browser


@pytest.fixture
def site(start, tmp_path):
    """(address of the app, hub, token of the one who started the app)."""
    (tmp_path / "app").mkdir()
    with LocalHub(tmp_path / "hub") as hub:
        token = hub.create_user("ada")
        with start(tmp_path / "app", KEDIT_HUB_ENDPOINT=hub.endpoint, HF_TOKEN=token) as url:
            yield url, hub, token


def test_what_one_visitor_pushes_another_can_use(site, visit, tmp_path, monkeypatch):
    url, hub, token = site
    page = visit(url)
    page.get_by_role("tab", name="Make").click()
    for name, value in {"prompt": "The capital of Japan is", "subject": "Japan", "target": "Oslo"}.items():
        page.locator(f"#make-{name}").locator("textarea, input").fill(value)
    page.locator("#make").click()
    page.get_by_role("button", name="Push to the Hub").click()
    expect(page.get_by_role("cell", name="patch.safetensors")).to_be_visible()  # what would be published
    page.get_by_placeholder("user/name").fill("ada/japan")
    page.get_by_role("button", name="Push these files").click()
    expect(page.get_by_text("Pushed to")).to_be_visible()
    assert token not in page.content()
    files = HfApi(endpoint=hub.endpoint, token=False).list_repo_files("ada/japan")
    assert {"README.md", "config.json", "patch.safetensors", "evals.json"} <= set(files)

    other = visit(url)
    other.get_by_role("button", name="Add a patch from the Hub").click()
    other.get_by_placeholder("user/repo or").fill("ada/japan")
    other.get_by_role("button", name="Add", exact=True).click()
    expect(other.locator("#patches label", has_text="ada/japan").locator("input")).to_be_checked()
    expect(other.locator("#question textarea")).not_to_have_value("")
    other.locator("#ask").click()
    expect(other.locator("#result .patched .answer")).to_contain_text("Oslo")
    expect(other.locator("#code")).to_contain_text("ada/japan@")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    with redirect_stdout(io.StringIO()) as printed:
        exec("\n".join(other.locator("#code .cm-line").all_inner_texts()), {})  # the code to take home
    expect(other.locator("#result .patched .answer")).to_have_text(
        printed.getvalue().strip()
    )  # once it is told to its end
