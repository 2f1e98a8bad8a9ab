"""The whole page: seven tabs over one workshop, and the same things for programs."""

from typing import Any

import gradio as gr

from space import about_tab, conflicts_tab, find_tab, make_tab, measure_tab, patch_tab, programs, theme, try_tab
from space.state import Workshop
from space.words import TRANSLATIONS, say

TITLE = "KEdit Hub"
DOWNLOAD_SECONDS = 3600  # how long a zip is kept for its download


def look() -> dict[str, Any]:
    """How the page is launched: its theme and style, its languages, and no address of anybody else's."""
    return {
        "theme": theme.theme(),
        "css_paths": theme.CSS,
        "head": f"<script>{theme.SCRIPT.read_text('utf-8')}</script>",
        "i18n": TRANSLATIONS,
        "ssr_mode": False,
        "footer_links": ["api", "settings"],
    }


def build(workshop: Workshop) -> gr.Blocks:
    """The app, not launched: `build(workshop).launch(**look())`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(DOWNLOAD_SECONDS, DOWNLOAD_SECONDS)) as demo:
        gr.HTML(say("masthead"), elem_id="masthead")
        own = gr.State(())  # the visitor's patches: a tuple of Held
        asked = gr.State({})  # what asking their probes again gave this visitor: {patch id: Asked}
        with gr.Tab(say("tab_try"), elem_id="tab-try"):
            tried = try_tab.build(workshop, own, asked, demo)
        with gr.Tab(say("tab_patch")) as tab:
            patch_tab.build(workshop, own, asked, tab)
        with gr.Tab(say("tab_make")):
            make_tab.build(workshop, own, asked, tried)
        with gr.Tab(say("tab_conflicts")) as tab:
            conflicts_tab.build(workshop, own, tried, tab)
        with gr.Tab(say("tab_measure")) as tab:
            measure_tab.build(workshop, own, tried, tab)
        with gr.Tab(say("tab_find")) as tab:
            find_tab.build(workshop, own, asked, tried, tab)
        with gr.Tab(say("tab_about")) as tab:
            about_tab.build(tab)
        programs.build(workshop)
    return demo.queue(max_size=64, default_concurrency_limit=1)
