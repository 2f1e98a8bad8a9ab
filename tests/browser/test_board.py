"""A visitor reads a leaderboard: filters it, sees who measured again, and is told what to do where there is none."""

import pytest
from huggingface_hub import HfApi
from playwright.sync_api import expect

from kedit_hub.hub.leaderboard import mark_verified, submit
from kedit_hub.hub.localhub import LocalHub
from tests.browser.conftest import tab
from tests.hub.boards import ADA, BOB, run

pytestmark = pytest.mark.browser
BOARD = "ada/board"
HOSTILE = "${alert('template')} {{alert}} &lt;img src=x&gt;.jsonl"  # a name that a hub takes
RUNS = (run(0.5), run(0.7, "memit"), run(0.6, suite="single"), run(0.4, base={"id": "org/other"}))


@pytest.fixture(scope="module")
def app(start, tmp_path_factory):
    """Address of a page beside a hub with a board, one row of which somebody else measured again, and a file that does not count."""
    folder = tmp_path_factory.mktemp("app")
    with LocalHub(folder / "hub") as hub:
        ada, bob = hub.create_user("ada"), hub.create_user("bob")
        submit(RUNS, BOARD, key=ADA, token=ada, endpoint=hub.endpoint)
        mark_verified(BOARD, RUNS[:1], key=BOB, create_pr=True, token=bob, endpoint=hub.endpoint)
        api = HfApi(endpoint=hub.endpoint, token=ada)
        api.merge_pull_request(BOARD, 1, repo_type="dataset")
        api.upload_file(
            path_or_fileobj=b"{}", path_in_repo=f"submissions/{HOSTILE}", repo_id=BOARD, repo_type="dataset"
        )
        with start(folder, KEDIT_HUB_ENDPOINT=hub.endpoint, KEDIT_BOARD=BOARD) as url:
            yield url


def board(page):
    tab(page, "Find")
    return page.locator("#board")


def choose(page, label, option):
    names = {"Base": "base", "Suite": "suite", "Protocol": "protocol", "Ranked by": "metric"}
    page.locator(f"#board-{names[label]} input").click()
    page.get_by_role("option", name=option).click()


def test_a_board_is_ranked_marked_and_filtered(app, visit):
    page = visit(app)
    shown = board(page)
    expect(shown.locator("table.digits")).to_have_count(3)  # contests are ranked apart
    first = shown.get_by_role("region", name="generate score · batch, 10 edit(s) · org/model ").locator("tbody tr")
    expect(first.nth(0)).to_contain_text("memit")
    expect(first.nth(1)).to_contain_text("✓ attested by")
    expect(shown.locator("details")).to_contain_text("1 file left out")
    expect(shown.locator("details")).to_contain_text(HOSTILE)
    assert page.locator("img[src='x']").count() == 0

    choose(page, "Base", "org/other")
    expect(shown.locator("table.digits")).to_have_count(1)
    expect(shown.locator("table.digits")).to_contain_text("0.400")
    choose(page, "Suite", "single")
    expect(shown.locator(".note.info")).to_contain_text("No run here matches")
    choose(page, "Base", "every base")
    expect(shown.locator("table.digits")).to_contain_text("0.600")
    choose(page, "Protocol", "tf-token")
    expect(shown.locator("h3")).to_contain_text("tf-token score")
    choose(page, "Ranked by", "reliability")
    expect(shown.locator("h3")).to_contain_text("tf-token reliability")


def test_a_board_that_is_not_there_is_told_of_and_how_to_begin_one(app, visit):
    page = visit(app)
    shown = board(page)
    expect(shown.locator("table.digits")).to_have_count(3)
    page.locator("#board-repo").locator("textarea, input").fill("ada/none")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(shown.locator(".note.error")).to_contain_text("has no repo 'datasets/ada/none'")
    page.get_by_role("button", name="Submit what you measured").click()
    expect(page.locator("#board-submit")).to_contain_text("kedit leaderboard submit results/runs.jsonl ada/none")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_is_scrolled_by_keyboard(app, visit, scheme):
    page = visit(app, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    tab(page, "Find")
    region = page.locator("#board").get_by_role("region").first
    expect(region).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert region.evaluate("(box) => box.scrollWidth > box.clientWidth")
    region.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("(box) => box.scrollLeft > 0", arg=region.element_handle())
