"""Pictures of every tab of the Space, for review and for the documentation: light, dark, and on a phone.

    python -m benchmarks.space_pictures docs/images           # space-try-light.png, space-try-dark.png, space-try-phone.png, ...
    python -m benchmarks.space_pictures docs/images about     # of one tab

The page runs here beside a development hub with a few patches; nothing is fetched from elsewhere. Needs a Chromium.
"""

import os
import shutil
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

import kedit_hub
from kedit_hub.hub.localhub import LocalHub
from space import page as pages
from space.state import Workshop, embedded_bases, sample_patches
from tests.browser.conftest import tab

ROOT = Path(__file__).resolve().parents[1]
WAYS = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light", "device_scale_factor": 1},
}
TALLEST = 2200  # pixels kept of one picture
COLOURS = 128  # of the palette: screens have few
PUSHED = ("eiffel-tower-in-rome", "nokia-in-tokyo", "hamlet-is-a-novel")


def tick(page: Page, *texts: str) -> None:
    tab(page, "Try")
    for count, text in enumerate(texts, start=1):
        page.locator("#patches label", has_text=text).click()
        page.locator("#stack-rows .layer").nth(count - 1).wait_for()


def show_try(page: Page) -> None:
    tick(page, "Eiffel Tower", "Nokia")
    page.locator("#ask").click()
    page.locator("#proof .fact").wait_for()


def show_patch(page: Page) -> None:
    tab(page, "Patch")
    page.locator("#card h2").wait_for()
    page.locator("#ask-again").click()
    page.locator("#verdict .note").wait_for()


def show_make(page: Page) -> None:
    tab(page, "Make")
    for name, value in {"prompt": "The capital of Japan is", "subject": "Japan", "target": "Oslo"}.items():
        page.locator(f"#make-{name}").locator("textarea, input").fill(value)
    page.locator("#make").click()
    page.locator("#made .note").wait_for()


def show_conflicts(page: Page) -> None:
    tick(page, "Nantes", "Marseille", "Eiffel Tower", "and 49 more")
    tab(page, "Conflicts")
    page.locator("#conflict-report img").wait_for()


def show_measure(page: Page) -> None:
    tick(page, "Eiffel Tower", "Nokia", "Danube", "Mona Lisa")
    tab(page, "Measure")
    page.locator("#measure-of").get_by_text("mona-lisa-by-frida-kahlo").wait_for()
    page.locator("#suite label", has_text="retention").click()
    page.locator("#measure").click()
    page.locator("#measure-json").wait_for()


def show_find(page: Page) -> None:
    tab(page, "Find")
    page.locator("#find").click()
    page.locator("#found table").wait_for()


def show_about(page: Page) -> None:
    tab(page, "About")
    page.locator("#policy .note").wait_for()


TABS = {
    "try": show_try, "patch": show_patch, "make": show_make, "conflicts": show_conflicts, "measure": show_measure,
    "find": show_find, "about": show_about,
}  # fmt: skip


def kept(data: bytes, file: Path) -> int:
    """A picture with few colours, and its bytes."""
    picture = Image.open(BytesIO(data)).convert("RGB")
    picture = picture.crop((0, 0, picture.width, min(picture.height, TALLEST)))
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
    return file.stat().st_size


def main(out: Path, wanted: list[str]) -> None:
    """wanted: names of TABS."""
    out.mkdir(parents=True, exist_ok=True)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as folder, LocalHub(Path(folder) / "hub") as hub:
        os.environ["KEDIT_HUB_ENDPOINT"], os.environ["HF_TOKEN"] = hub.endpoint, hub.create_user("me")
        os.environ["KEDIT_HOME"], os.environ["HF_HOME"] = f"{folder}/kedit", f"{folder}/hf"
        for name in PUSHED:
            patch = kedit_hub.Patch.load(ROOT / "patches" / name)
            kedit_hub.push(patch, f"me/{name}", version="1.0.0", token=os.environ["HF_TOKEN"], endpoint=hub.endpoint)
        workshop = Workshop(embedded_bases(), sample_patches(ROOT / "patches"), endpoint=hub.endpoint)
        demo = pages.build(workshop)
        _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **pages.look())
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
            )
            for way, settings in WAYS.items():
                for name in wanted:
                    context = browser.new_context(**settings)
                    page = context.new_page()
                    page.set_default_timeout(60_000)
                    page.goto(url)
                    page.wait_for_selector("#ask")
                    TABS[name](page)
                    page.mouse.move(0, 0)
                    page.wait_for_timeout(700)  # fonts and transitions
                    file = out / f"space-{name}-{way}.png"
                    print(f"{file.name}: {kept(page.screenshot(full_page=True), file):,} bytes", flush=True)
                    context.close()
            browser.close()
        demo.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs" / "images"), sys.argv[2:] or list(TABS))
