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
from space.sentences import Language, both, counted, language_of, told
from space.state import Held, Workshop, kept, shortened
from space.words import say

MAX_FOUND = 100
MAX_WORDS = 200  # characters of any one field


def search(workshop: Workshop, query: str, base: str, author: str, limit: int = 50) -> list[Found]:
    """Public patches alone, the newest first. KeditError, HubError."""
    if not 1 <= limit <= MAX_FOUND:
        raise KeditError(both("limit_out", limit=limit, most=MAX_FOUND))
    said = [(text or "").strip() for text in (query, base, author)]
    long = [text for text in said if len(text) > MAX_WORDS]
    if long:
        raise KeditError(both("one_field_long", count=len(long[0]), most=MAX_WORDS))
    words, model, user = said
    return find(model or None, words or None, user or None, limit=limit, endpoint=workshop.endpoint, token=False)


def as_json(found: Found) -> dict[str, Any]:
    return {
        **vars(found),
        "tags": list(found.tags),
        "last_modified": found.last_modified and found.last_modified.isoformat(),
    }


def show(found: list[Found], language: Language = "en") -> str:
    if not found:
        return html.note("info", told(language, "no_match"))
    unsaid = told(language, "not_said")
    rows = [
        (
            one.repo_id,
            one.base or unsaid,
            one.method or unsaid,
            one.last_modified.date().isoformat() if one.last_modified else unsaid,
            "–" if one.downloads is None else f"{one.downloads:,}",
            (one.commit or "")[:12],
        )
        for one in found
    ]
    keys = ("repo", "author_base", "head_method", "changed", "downloads", "commit_head")
    table = html.table([told(language, key) for key in keys], rows, label=told(language, "found_label"))
    count = told(language, "found_told", patches=counted(language, "patches", len(found)))
    return f'<p class="subtle">{html.text(count)}</p>{table}'


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
    result = gr.HTML(html.framed("info", say("find_empty")), elem_id="found")
    with gr.Row(visible=False, equal_height=True) as adding:
        choice = gr.Dropdown([], label=say("found"), elem_id="found-choice", scale=4)
        add = gr.Button(say("add_found"), elem_id="found-add", scale=1, min_width=160)
    added = gr.HTML(elem_id="found-added")
    gr.HTML('<hr class="rule">')
    board_tab.build(workshop, tab)

    def on_find(query: str, base: str, author: str, request: gr.Request | None = None) -> tuple[Any, ...]:
        language = language_of(request)
        try:
            found = search(workshop, query, base, author)
        except KeditError as error:
            return html.refusal(error, language), gr.Row(visible=False), gr.skip(), ""
        names = [
            (printable(shortened(one.repo_id, 120)), f"{one.repo_id}@{one.commit}" if one.commit else one.repo_id)
            for one in found
        ]
        listed = gr.Dropdown(names, value=names[0][1] if names else None)
        return show(found, language), gr.Row(visible=bool(found)), listed, ""

    def on_add(
        name: str | None,
        own: tuple[Held, ...],
        keys: list[str],
        base: str,
        asked: dict[str, Any],
        login: gr.OAuthToken | None = None,
        request: gr.Request | None = None,
    ) -> tuple[Any, ...]:
        language = language_of(request)
        try:
            held = workshop.from_hub(name or "", login.token if login is not None else False)
            own = kept(own, held)
        except KeditError as error:
            return own, gr.CheckboxGroup(), html.refusal(error, language)
        here = held.patch.manifest.base.id == base
        value = [*keys, held.patch.id] if here and held.patch.id not in keys else keys
        other = held.patch.manifest.base.id
        where = told(language, "found_in_stack") if here else told(language, "found_other_base", base=other)
        return (
            own,
            gr.CheckboxGroup(choices(workshop.offered(own, base), asked, language), value=value),
            html.note("good", told(language, "added", where=held.where), where),
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
