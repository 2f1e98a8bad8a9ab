"""The demo as a visitor meets it: `python app.py`, a browser, clicks."""

import re
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import expect

from kedit_hub import Patch
from tests.browser.conftest import label

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
expect.set_options(timeout=60_000)


def answers(page):
    return tuple(page.locator(f"#result .{side} .answer").inner_text() for side in ("base", "patched"))


def test_a_patch_changes_the_answer_and_its_removal_brings_it_back(app, visit):
    page = visit(app)
    tower = label(page, "Eiffel Tower")
    target = re.search("→ (.+?) · ", tower.inner_text()).group(1)

    tower.click()  # one
    expect(page.locator("#question textarea")).not_to_have_value("")
    page.locator("#ask").click()  # two clicks to a first edited answer
    expect(page.locator("#result .patched .answer")).to_contain_text(target)
    base, patched = answers(page)
    assert base != patched and target not in base
    expect(page.locator("#result .note.good")).to_contain_text("KL")
    expect(page.locator("#code")).to_contain_text("kedit_hub.apply('patches/")
    assert page.locator("#result .side").count() == 3 and page.locator("#result .bars li").count() == 24

    tower.click()
    expect(page.locator("#result .patched .answer")).to_have_text(base)
    expect(page.locator("#result .note.info")).to_be_visible()
    assert answers(page) == (base, base)


def test_another_base_has_its_own_patches(app, visit):
    page = visit(app)
    label(page, "Eiffel Tower").click()
    page.get_by_role("button", name="Base model, precision, mode").click()
    page.get_by_label("GPT-2").check()
    expect(page.locator("#patches label")).to_have_count(1)
    label(page, "Eiffel Tower").click()
    page.locator("#ask").click()
    expect(page.locator("#result .note.good")).to_contain_text("transformer.h.")
    page.get_by_label("nf4").check()
    expect(page.locator("#code")).to_contain_text("quantization='nf4'")
    expect(page.locator("#result .patched .answer")).to_contain_text("Rome")


def test_a_neighbour_is_left_alone_and_the_page_says_so(app, visit):
    page = visit(app)
    label(page, "Eiffel Tower").click()
    expect(page.locator("#question textarea")).not_to_have_value("")
    page.locator("#question textarea").fill("The capital of Italy is")
    page.locator("#ask").click()
    expect(page.locator("#result .note.error")).to_contain_text("KL 0")
    base, patched = answers(page)
    assert base == patched


def test_contradicting_patches_are_named_and_the_latest_wins_on_demand(app, visit):
    page = visit(app)
    label(page, "Nantes").click()
    expect(page.locator("#question textarea")).not_to_have_value("")
    assert not page.locator("#clash").is_visible()
    label(page, "Marseille").click()
    expect(page.locator("#clash")).to_contain_text("disagree")
    page.locator("#ask").click()
    expect(page.locator("#result .note.error")).to_contain_text("Untick one")
    page.get_by_label("Latest: the patch chosen last answers").check()
    expect(page.locator("#result .patched .answer")).to_contain_text("Marseille")
    label(page, "Marseille").click()
    expect(page.locator("#result .patched .answer")).to_contain_text("Nantes")
    expect(page.locator("#clash")).not_to_be_visible()


def test_a_patch_made_here_is_scored_stacked_and_taken_home(app, visit, tmp_path):
    page, other = visit(app), visit(app)
    page.get_by_role("tab", name="Make").click()
    page.locator("#make-prompt").locator("textarea, input").fill("The capital of Japan is")
    page.locator("#make-subject").locator("textarea, input").fill("Japan")
    page.locator("#make-target").locator("textarea, input").fill("Oslo")
    page.locator("#make").click()
    expect(page.locator("#made .note.good")).to_contain_text("Oslo")
    expect(page.locator("#made table.plain").first).to_contain_text("reliability")

    with page.expect_download() as download:
        page.locator("#download").click()
    archive = tmp_path / "patch.zip"
    download.value.save_as(archive)
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert Patch.load(folder).edits[0].target == "Oslo"

    page.locator("#stack").click()
    page.get_by_role("tab", name="Try").click()
    expect(label(page, "made here").locator("input")).to_be_checked()
    page.locator("#question textarea").fill("The capital of Japan is")
    page.locator("#ask").click()
    expect(page.locator("#result .patched .answer")).to_contain_text("Oslo")

    other.reload()  # another visitor sees nothing of it
    other.wait_for_selector("#ask")
    expect(label(other, "Eiffel Tower")).to_be_visible()
    assert label(other, "made here").count() == 0


def test_a_patch_keeps_its_claims_when_asked_again(app, visit):
    page = visit(app)
    page.get_by_role("tab", name="Patch", exact=True).click()
    expect(page.locator("#card")).to_contain_text("Edits")
    page.locator("#ask-again").click()
    expect(page.locator("#verdict .note")).to_contain_text("Reproduces its claims: yes")
    averages = page.locator("#verdict details", has_text="averages")
    averages.locator("summary").click()
    assert "reliability" in averages.locator("table").inner_text()


def test_a_path_is_not_a_patch(app, visit):
    page = visit(app)
    page.get_by_role("button", name="Add a patch from the Hub").click()
    page.get_by_placeholder("user/repo or").fill("../patches")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator(".note.error")).to_contain_text("not the name of a patch on the Hub")


def test_it_fits_a_phone_in_the_dark(app, visit):
    page = visit(app, viewport={"width": 360, "height": 740}, color_scheme="dark")
    label(page, "Eiffel Tower").click()
    expect(page.locator("#question textarea")).not_to_have_value("")
    page.locator("#ask").click()
    expect(page.locator("#result .patched .answer")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.body.classList.contains('dark')")
