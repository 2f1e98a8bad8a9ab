"""Every tab's main path: what is shown is what was asked for, by a link, by keyboard, in Chinese, and axe finds nothing to object to."""

import json
import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import TimeoutError, expect

from tests.browser.conftest import label, tab

pytestmark = pytest.mark.browser
TABS = ("Try", "Patch", "Make", "Conflicts", "Measure", "Find", "About")


def asked(page):
    """The Eiffel Tower stacked with Nokia, and asked about."""
    label(page, "Eiffel Tower").click()
    expect(page.locator("#question textarea")).not_to_have_value("")
    label(page, "Nokia").click()
    expect(page.locator("#stack-rows .layer")).to_have_count(2)
    page.locator("#ask").click()
    expect(page.locator("#result .patched .answer")).to_contain_text("Rome")
    return page


def open_first_neighbour(page):
    """Again where the page shows its answer anew meanwhile: a choice may arrive after the question it was made before."""
    neighbour = page.locator("#proof details details summary").first
    for _ in range(20):
        if not neighbour.is_visible():
            page.locator("#proof summary").first.click()
        try:
            return neighbour.click(timeout=3000)
        except TimeoutError:
            continue
    pytest.fail("the neighbours do not stay open")


def test_a_link_opens_the_same_state_for_another_visitor(app, visit):
    page = asked(visit(app))
    expect(page.locator("#result .placebo .answer")).not_to_contain_text("Rome")
    expect(page.locator("#result .patched mark").first).to_have_text("Rome")
    expect(page.locator("#proof .note.good")).to_contain_text(re.compile(r"(\d+)/\1 unchanged"))
    open_first_neighbour(page)
    expect(page.locator("#proof details details").first).to_contain_text("Patched:")
    expect(page.locator("#proof .fact.good")).to_contain_text("sha256 of all its weights equal")
    page.get_by_role("tab", name="In a terminal").click()
    expect(page.locator("#shell")).to_contain_text("kedit ask")
    with page.expect_download() as download:
        page.locator("#download-json").click()
    told = json.loads(download.value.path().read_text())
    assert "Rome" in told["answers"]["patched"]["text"] and len(told["patches"]) == 2
    page.locator("#share").click()
    address = page.locator("#link").locator("textarea, input").first
    expect(address).to_have_value(re.compile(r"^http.*p=eiffel-tower-in-rome@[0-9a-f]{16}"))

    other = visit(address.input_value())
    expect(other.locator("#result .patched .answer")).to_have_text(told["answers"]["patched"]["text"])
    expect(label(other, "Nokia").locator("input")).to_be_checked()
    expect(other.locator("#proof .fact.good")).to_be_visible()  # what is cut off by a reload is told to the console
    assert other.watch.errors == []
    other.reload()
    expect(other.locator("#result .patched .answer")).to_have_text(told["answers"]["patched"]["text"])
    other.watch.errors.clear()  # of the connection that the reload cut off
    expect(other.locator("#proof .fact.good")).to_be_visible()
    broken = visit(re.sub(r"@[0-9a-f]{16}", "@" + "0" * 16, address.input_value(), count=1))
    expect(broken.locator("#result .note.error")).to_contain_text("made anew since")


def test_order_switch_and_strength_by_keyboard(app, visit):
    page = asked(visit(app))
    rows = page.locator("#stack-rows .layer")
    strength = rows.first.locator("input[type=range]")
    strength.press("Home")  # the least; nineteen steps to the left would race with the answers they ask for
    expect(page.locator("#code")).to_contain_text("strengths={'8b7ba96ca8fc': 0.05}")
    expect(page.locator("#result .patched .answer")).not_to_contain_text("Rome")
    rows.first.get_by_role("button", name="Later").press("Enter")
    expect(rows.first.locator("label").first).to_contain_text("nokia")
    expect(page.locator("#code")).to_contain_text("['patches/nokia-in-tokyo', 'patches/eiffel-tower-in-rome']")
    rows.nth(1).locator("input[type=checkbox]").press("Space")
    expect(page.locator("#code")).to_contain_text("apply('patches/nokia-in-tokyo')")
    rows.first.get_by_role("button", name="Take out").click()
    expect(rows).to_have_count(1)
    expect(label(page, "Nokia").locator("input")).not_to_be_checked()


def test_a_suite_is_measured_while_one_looks_on(app, visit):
    page = visit(app)
    tab(page, "Measure")
    page.locator("#measure").click()
    expect(page.locator("#measured .note.error")).to_contain_text("No patch is chosen")
    tab(page, "Try")
    label(page, "Eiffel Tower").click()
    expect(page.locator("#question textarea")).not_to_have_value("")
    label(page, "Nokia").click()
    expect(page.locator("#stack-rows .layer")).to_have_count(2)
    tab(page, "Measure")
    page.locator("#suite label", has_text="retention").click()
    page.locator("#measure").click()
    expect(page.locator("#measured tbody tr")).to_have_count(2)
    expect(page.get_by_role("img", name="Share answered as wanted")).to_be_visible()
    with page.expect_download() as download:
        page.locator("#measured a.as-png").click()
    assert (
        download.value.path().read_bytes().startswith(b"\x89PNG")
        and download.value.suggested_filename == "measured.png"
    )
    with page.expect_download() as download:
        page.locator("#measure-json").click()
    assert [step["reliability"] for step in json.loads(download.value.path().read_text())["steps"]] == [1.0, 1.0]


def test_a_file_of_edits_becomes_a_patch(app, visit):
    page = visit(app)
    tab(page, "Make")
    page.locator("#upload > button").first.click()
    text = "prompt,subject,target_new\nThe capital of France is,France,Lyon\nThe capital of Japan is,Japan,Oslo\n"
    page.locator("#edits-file input[type=file]").set_input_files(
        {"name": "edits.csv", "mimeType": "text/csv", "buffer": text.encode()}
    )
    expect(page.locator("#edits-file")).to_contain_text("edits")
    page.locator("#make-file").click()
    expect(page.locator("#made .note.good")).to_contain_text("All 2 edits took")
    page.locator("#what-else").click()
    expect(page.locator("#stacked")).to_contain_text("Looked at: ")


def test_it_speaks_chinese(app, visit):
    page = visit(app, locale="zh-CN")
    expect(page.locator("#ask")).to_have_text("提问")
    expect(page.get_by_role("tab", name="冲突")).to_be_visible()
    expect(page.get_by_text("1. 选择补丁")).to_be_visible()
    expect(page.locator("#masthead h1")).to_have_text("KEdit Hub：语言模型事实的 Git")
    expect(label(page, "等，另有 49 条")).to_be_visible()
    page.locator("#ask").click()
    expect(page.locator("#result .note.error")).to_contain_text("还没有问题")
    label(page, "Eiffel Tower").click()
    expect(page.locator("#question textarea")).not_to_have_value("")
    page.locator("#ask").click()
    expect(page.locator("#result .patched h2")).to_have_text("打补丁后 带你的补丁栈")
    expect(page.locator("#result .patched .answer")).to_contain_text("Rome")
    expect(page.locator("#result .note.good")).to_contain_text("已生效。")
    expect(page.locator("#proof .note")).to_contain_text("保持不变")
    tab(page, "评测")
    expect(page.locator("#suite label", has_text="保持率")).to_be_visible()
    expect(page.locator("#measured .note.info p")).to_have_count(4)
    tab(page, "关于")
    expect(page.locator("#about")).to_contain_text("编辑也是一种已知的攻击手段")
    expect(page.locator("#policy")).to_contain_text("此处没有启用信任策略")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360)])
def test_nothing_is_in_the_way_of_anybody(app, visit, scheme, width):
    """axe-core finds nothing on any tab, outside Gradio's own footer; and nothing is wider than the screen."""
    page = visit(app, viewport={"width": width, "height": 900}, color_scheme=scheme)
    asked(page)
    expect(page.locator("#proof .note")).to_be_visible()
    for name in TABS:
        tab(page, name)
        for _ in range(5):  # what is being worked on is shown faintly
            page.wait_for_timeout(400)
            found = Axe().run(page, context={"exclude": [["footer"]]}).response["violations"]
            if not found:
                break
        assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found] == [], name
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name


def test_a_visitor_in_line_sees_the_place_and_may_leave(app, visit):
    page, other = visit(app), visit(app)
    label(page, re.compile("and 49 more")).click()
    expect(page.locator("#question textarea")).not_to_have_value("")
    tab(page, "Measure")
    expect(page.locator("#measure-of")).to_contain_text("fifty-facts")
    page.locator("#measure").click()
    expect(page.locator("#measured")).to_contain_text("processing")
    other.locator("#question textarea").fill("The capital of France is")
    other.locator("#ask").click()
    expect(other.locator("#result")).to_contain_text(re.compile(r"queue: \d+/\d+"))
    other.locator("#halt").click()
    expect(other.locator("#result .note.info")).to_have_text("Stopped.")
    tab(other, "Make")
    for name, text in {"prompt": "The capital of Japan is", "subject": "Japan", "target": "Oslo"}.items():
        other.locator(f"#make-{name}").locator("textarea, input").fill(text)
    other.locator("#make").click()
    expect(other.locator("#made")).to_contain_text(re.compile(r"queue: \d+/\d+"))
    other.locator("#make-stop").click()
    page.locator("#measure-stop").click()
    expect(page.locator("#measured .note.error")).to_contain_text("Stopped")
    expect(other.locator("#made .note.error")).to_contain_text("No patch was made")
    tab(other, "Try")
    other.locator("#ask").click()
    expect(other.locator("#result .side")).to_have_count(3)
