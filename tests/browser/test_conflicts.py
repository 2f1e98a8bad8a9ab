"""A visitor stacks patches and reads how they get in each other's way."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import label, tab

pytestmark = pytest.mark.browser


def findings(page):
    return page.locator("#conflict-report table.findings tbody tr")


def test_the_stack_is_looked_at_explained_pair_by_pair_and_settled(app, visit):
    page = visit(app)
    tab(page, "Conflicts")
    expect(page.locator("#conflict-report .note.info")).to_contain_text("Choose two or more")
    tab(page, "Try")
    label(page, "Nantes").click()
    expect(page.locator("#question textarea")).not_to_have_value("")
    label(page, "Marseille").click()
    expect(page.locator("#clash")).to_contain_text("disagree")
    tab(page, "Conflicts")
    expect(page.locator("#conflict-report .note.error")).to_contain_text("these patches are refused")
    expect(findings(page).first).to_contain_text("capital-of-france-nantes, capital-of-france-marseille")
    expect(page.locator("#pair-told")).to_contain_text("First: capital-of-france-nantes")
    page.locator("#settle-first-answers").click()
    expect(page.locator("#settled")).to_contain_text("capital-of-france-nantes is pinned in your stack")
    expect(findings(page).first).to_contain_text("the later is silent")
    expect(page.locator("#conflict-report .note.error")).to_have_count(0)
    tab(page, "Try")
    page.locator("#ask").click()
    expect(page.locator("#result .patched .answer")).to_contain_text("Nantes")
    expect(page.locator("#code")).to_contain_text("conflicts='pin', pinned=")
    tab(page, "Conflicts")
    page.locator("#settle-without-second").click()
    tab(page, "Try")
    expect(label(page, "Marseille").locator("input")).not_to_be_checked()
    expect(page.locator("#pinned")).not_to_be_visible()


def test_behaviour_is_asked_on_a_button(app, visit):
    page = visit(app)
    label(page, "Eiffel Tower").click()
    expect(page.locator("#question textarea")).not_to_have_value("")
    label(page, "Nokia").click()
    expect(page.locator("#stack-rows .layer")).to_have_count(2)
    tab(page, "Conflicts")
    expect(page.locator("#conflict-report")).to_contain_text("Not looked at: behaviour")
    page.get_by_role("button", name="Ask whether they break").click()
    expect(page.locator("#conflict-report")).to_contain_text("questions asked in mode")
    assert "Not looked at" not in page.locator("#conflict-report").inner_text()


@pytest.mark.parametrize(("scheme", "paper"), [("light", (255, 255, 255)), ("dark", (20, 23, 27))])
def test_the_drawing_has_the_colours_of_the_page_and_fits_a_phone(app, visit, scheme, paper):
    page = visit(app, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    label(page, "Eiffel Tower").click()
    expect(page.locator("#question textarea")).not_to_have_value("")
    label(page, re.compile("and 49 more")).click()
    expect(page.locator("#stack-rows .layer")).to_have_count(2)
    tab(page, "Conflicts")
    drawing = page.get_by_role("img", name="Heat map of the overlap")
    expect(drawing).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    found = drawing.evaluate(
        """async (image) => {
          await image.decode();
          const canvas = Object.assign(document.createElement("canvas"), {width: 20, height: 20});
          const pen = canvas.getContext("2d");
          pen.drawImage(image, 0, 0);
          return [image.naturalWidth, getComputedStyle(image).colorScheme, ...pen.getImageData(2, 2, 1, 1).data];
        }"""
    )
    assert found[0] > 360 and found[1] == scheme  # in its own size, in a region that scrolls
    region = page.get_by_role("region", name="Heat map of the overlap")
    assert region.evaluate("(box) => box.scrollWidth > box.clientWidth") and region.get_attribute("tabindex") == "0"
    assert tuple(found[2:5]) == paper
    with page.expect_download() as download:
        page.get_by_role("link", name="Keep the drawing").click()
    assert download.value.suggested_filename == "overlap.svg"
