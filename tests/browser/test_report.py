"""The report in a real browser that has no network: light, dark, on a phone, without scripts, and with hostile runs."""

import pytest
from playwright.sync_api import expect

from kedit_hub.evaluate.report import write_report
from tests.browser.conftest import Watch
from tests.evaluate.report_runs import make_run, many
from tests.evaluate.test_report_hostile import hostile_runs

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    runs = many(methods=("rome", "grace", "kedit"), ns=(1, 10, 100))
    return (write_report(runs, tmp_path_factory.mktemp("report") / "r") / "report.html").as_uri()


@pytest.fixture
def read(chromium):
    """read(address, **context) -> the page, in a browser without a network; at the end nothing may have gone wrong on it."""
    opened = []

    def open_page(address, **how):
        context = chromium.new_context(**({"viewport": {"width": 1280, "height": 900}, "offline": True} | how))
        page = context.new_page()
        opened.append((context, Watch(page, address)))
        page.goto(address)
        return page

    yield open_page
    for context, watch in opened:
        context.close()
        watch.check()


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_light_and_dark(address, read):
    pages = {scheme: read(address, color_scheme=scheme) for scheme in ("light", "dark")}
    assert background(pages["light"]) == "rgb(255, 255, 255)" and background(pages["dark"]) == "rgb(20, 23, 27)"
    for page in pages.values():
        expect(page.locator("h1")).to_be_visible()
        fill = "getComputedStyle(document.querySelector('svg text.name')).fill"
        assert page.evaluate(fill) == page.evaluate("getComputedStyle(document.body).color")


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_the_page_is_no_wider_than_the_screen(address, read, width):
    page = read(address, viewport={"width": width, "height": 800})
    for one in page.locator("details.place:not([open]) > summary").all():
        one.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_no_label_of_a_plot_leaves_it(address, read):
    page = read(address)
    outside = page.evaluate(
        """() => [...document.querySelectorAll('svg')].filter((svg) => svg.getBoundingClientRect().width).flatMap((svg) => {
            const own = svg.getBoundingClientRect();
            return [...svg.querySelectorAll('text')].filter((text) => {
                const box = text.getBoundingClientRect();
                return box.left < own.left - 2 || box.right > own.right + 2 || box.bottom > own.bottom + 2;
            }).map((text) => text.textContent);
        })"""
    )
    assert page.locator("svg").count() > 10 and outside == []


def test_edits_are_found(address, read):
    page = read(address)
    page.locator("#cell").select_option(label="grace · sequential · n = 100")
    expect(page.locator("#found")).to_have_text("100 of 100 edits")
    assert page.locator("#edit-list .edit").count() == 50
    page.get_by_role("button", name="Show more").click()
    assert page.locator("#edit-list .edit").count() == 100
    expect(page.locator("#more")).to_be_hidden()
    page.locator("#search").fill("tOWN 42 is TWINNED")
    expect(page.locator("#found")).to_have_text("1 of 100 edits")
    page.locator("#edit-list summary").click()
    table = page.locator("#edit-list table")
    expect(table).to_contain_text("The twin city of New Town 42 is")
    expect(table.locator("tbody tr")).to_have_count(6)


def test_filters_are_what_they_say(address, read):
    page = read(address)
    run = make_run("grace", 100)
    own = [edit["scores"] for edit in run.per_edit]
    page.locator("#cell").select_option(label="grace · sequential · n = 100")
    for label, wanted in (
        ("target not generated", sum(scores["generate"] == 0 for scores in own)),
        ("right under teacher forcing, not generated", sum(s["tf-token"] == 1 and s["generate"] == 0 for s in own)),
        ("some probe left out", sum(any(probe["dropped"] for probe in edit["probes"]) for edit in run.per_edit)),
    ):
        page.locator("#filter").select_option(label=label)
        expect(page.locator("#found")).to_have_text(f"{wanted} of 100 edits")
        assert 0 < wanted < 100


def test_by_keyboard(address, read):
    page = read(address)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the report"
    page.locator("#cell").select_option(label="kedit · batch · n = 10")
    page.locator("#search").focus()
    page.keyboard.type("Town 7 is twinned")
    expect(page.locator("#found")).to_have_text("1 of 10 edits")
    page.locator("#edit-list summary").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#edit-list table")).to_be_visible()


def test_without_scripts(address, read):
    page = read(address, java_script_enabled=False)
    expect(page.locator("#edit-controls")).to_be_hidden()
    run = page.locator("#edits details", has=page.get_by_text("rome · sequential · n = 10", exact=True)).first
    run.locator("summary").first.click()
    edit = run.locator("details", has_text="The twin city of Town 3 is")
    expect(edit.get_by_text("Town 3 is twinned with")).to_be_hidden()
    edit.locator("summary").click()
    expect(edit.get_by_text("Town 3 is twinned with")).to_be_visible()


def test_nothing_of_a_run_runs(tmp_path, read):
    folder = write_report(hostile_runs(), tmp_path / "r", title="<img src=x onerror=alert(1)>")
    page = read((folder / "report.html").as_uri())
    page.locator("#edit-list summary").click()
    expect(page.locator("#edit-list table")).to_contain_text("<script>alert('script')</script>")
    expect(page.locator("h1")).to_have_text("<img src=x onerror=alert(1)>")
    assert page.locator("img").count() == 0 and page.locator("script").count() == 2


def test_on_paper(address, read):
    page = read(address)
    page.emulate_media(media="print")
    expect(page.locator("#edits")).to_be_hidden()
    expect(page.locator("nav")).to_be_hidden()
