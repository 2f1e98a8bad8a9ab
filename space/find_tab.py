"""Find: patches on the Hub as their authors describe them, and below them the leaderboard. Law: nothing is downloaded by looking; what
is found becomes a patch of the visitor only through the same door as one added by name.
"""

from typing import Any

import gradio as gr

from kedit_hub import KeditError
from kedit_hub.hub.client import printable
from kedit_hub.hub.search import Found, find
from space import board_tab, html
from space.choosing import Widgets, choices
from space.state import Held, Workshop, kept, shortened
from space.words import say

MAX_FOUND = 100
MAX_WORDS = 200  # characters of any one field


def search(workshop: Workshop, query: str, base: str, author: str, limit: int = 50) -> list[Found]:
    """Public patches alone, the newest first. KeditError, HubError."""
    if not 1 <= limit <= MAX_FOUND:
        raise KeditError(f"limit is {limit}; it has to lie in 1 to {MAX_FOUND}.")
    said = [(text or "").strip() for text in (query, base, author)]
    long = [text for text in said if len(text) > MAX_WORDS]
    if long:
        raise KeditError(f"One field has {len(long[0]):,} characters; at most {MAX_WORDS} are taken here.")
    words, model, user = said
    return find(model or None, words or None, user or None, limit=limit, endpoint=workshop.endpoint, token=False)


def as_json(found: Found) -> dict[str, Any]:
    return {
        **vars(found),
        "tags": list(found.tags),
        "last_modified": found.last_modified and found.last_modified.isoformat(),
    }


def show(found: list[Found]) -> str:
    if not found:
        return html.note("info", "Nothing on the Hub matches. Patches carry the tag kedit; fewer words find more.")
    rows = [
        (
            one.repo_id,
            one.base or "not said",
            one.method or "not said",
            one.last_modified.date().isoformat() if one.last_modified else "not said",
            "–" if one.downloads is None else f"{one.downloads:,}",
            (one.commit or "")[:12],
        )
        for one in found
    ]
    head = ("Repo", "Base, says its author", "Method", "Changed", "Downloads", "Commit")
    count = f"{len(found)} {'patch' if len(found) == 1 else 'patches'}, the newest first. Nothing was downloaded, and nothing checked."
    return f'<p class="subtle">{html.text(count)}</p>{html.table(head, rows, label="Patches found")}'


def build(workshop: Workshop, own: Any, asked: Any, tried: Widgets, tab: gr.Tab) -> None:
    """The tab. Nothing is asked of the Hub before somebody asks."""
    with gr.Row(equal_height=True):
        query = gr.Textbox(label=say("query"), max_lines=1, max_length=MAX_WORDS, elem_id="find-query", min_width=160)
        base = gr.Dropdown(
            ["", *workshop.bases], value="", label=say("any_base"), allow_custom_value=True, elem_id="find-base",
            min_width=160,
        )  # fmt: skip
        author = gr.Textbox(
            label=say("author"), max_lines=1, max_length=MAX_WORDS, elem_id="find-author", min_width=120
        )
        go = gr.Button(say("search"), variant="primary", elem_id="find", min_width=120)
    result = gr.HTML(
        html.note("info", "Search patches on the Hub, or add one by its name on the first tab."), elem_id="found"
    )
    with gr.Row(visible=False, equal_height=True) as adding:
        choice = gr.Dropdown([], label=say("found"), elem_id="found-choice", scale=4)
        add = gr.Button(say("add_found"), elem_id="found-add", scale=1, min_width=160)
    added = gr.HTML(elem_id="found-added")
    gr.HTML('<hr class="rule">')
    board_tab.build(workshop, tab)

    def on_find(query: str, base: str, author: str) -> tuple[Any, ...]:
        try:
            found = search(workshop, query, base, author)
        except KeditError as error:
            return html.refusal(error), gr.Row(visible=False), gr.skip(), ""
        names = [
            (printable(shortened(one.repo_id, 120)), f"{one.repo_id}@{one.commit}" if one.commit else one.repo_id)
            for one in found
        ]
        return show(found), gr.Row(visible=bool(found)), gr.Dropdown(names, value=names[0][1] if names else None), ""

    def on_add(
        name: str | None,
        own: tuple[Held, ...],
        keys: list[str],
        base: str,
        asked: dict[str, Any],
        login: gr.OAuthToken | None = None,
    ) -> tuple[Any, ...]:
        try:
            held = workshop.from_hub(name or "", login.token if login is not None else False)
            own = kept(own, held)
        except KeditError as error:
            return own, gr.CheckboxGroup(), html.refusal(error)
        here = held.patch.manifest.base.id == base
        value = [*keys, held.patch.id] if here and held.patch.id not in keys else keys
        told = (
            "It is in your stack, on the first tab."
            if here
            else f"It was made for {held.patch.manifest.base.id}: choose that base."
        )
        return (
            own,
            gr.CheckboxGroup(choices(workshop.offered(own, base), asked), value=value),
            html.note("good", f"Added {held.where}.", told),
        )

    hub: dict[str, Any] = {"concurrency_id": "hub", "concurrency_limit": 2, "api_visibility": "private"}
    gr.on(
        [go.click, query.submit, author.submit],
        on_find,
        [query, base, author],
        [result, adding, choice, added],
        show_progress_on=[result],
        **hub,
    )
    add.click(on_add, [choice, own, tried.patches, tried.base, asked], [own, tried.patches, added], **hub)
