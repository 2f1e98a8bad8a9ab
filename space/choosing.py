"""What there is to choose from, and what the controls of the first tab say together. Law: a question is made of the controls alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from kedit_hub.errors import ConflictError
from kedit_hub.hub.client import printable
from space import believe
from space.asking import Question
from space.believe import Asked
from space.sentences import Language, both, language_of
from space.stack_builder import Tuning, layers
from space.state import MAX_PATCHES, MAX_QUESTION, Held, Policy, Workshop, clashes
from space.words import say

EXAMPLES = 8


def choices(offered: Sequence[Held], asked: dict[str, Asked], language: Language = "en") -> list[tuple[str, str]]:
    """asked: what asking again gave on this page, by patch id."""
    return [(believe.label(held, asked, language), held.patch.id) for held in offered]


def several(elem_id: str) -> gr.Dropdown:
    """Where patches are taken together to be looked at; filled when its tab is opened."""
    return gr.Dropdown(
        [], multiselect=True, label=say("look_at"), elem_id=elem_id, scale=5, max_choices=MAX_PATCHES, min_width=260
    )


def examples(workshop: Workshop, base: str, keys: Sequence[str], own: Sequence[Held]) -> list[list[str]]:
    """Questions to click: about the chosen patches and their neighbours; where none is chosen, about the first ones."""
    offered = workshop.offered(own, base)
    chosen = [held for held in offered if held.patch.id in keys] or offered
    prompts: list[str] = []
    for held in chosen[:4]:
        for edit in held.patch.edits[: 2 if len(chosen) > 1 else 4]:
            prompts += [edit.prompt, *edit.rephrases[:1], *[probe.prompt for probe in edit.locality[:1]]]
    return [[prompt] for prompt in dict.fromkeys(prompts) if len(prompt) <= MAX_QUESTION][:EXAMPLES]


def wanted(
    workshop: Workshop,
    text: str,
    keys: Sequence[str],
    own: tuple[Held, ...],
    tuning: Tuning,
    base: str,
    precision: str,
    policy: Policy,
    pinned: Sequence[str],
    mode: str,
    placebo: bool,
    seed: float | None,
    length: float | None,
) -> Question:
    """The question that the controls of the tab say. ConflictError where patches disagree and nobody was chosen."""
    on, strengths = layers(keys, tuning)
    chosen = workshop.chosen(on, own)
    disagree = bool(clashes(chosen))
    if disagree and policy == "error":
        raise ConflictError(both("disagree_refused"))
    wins = tuple(key for key in pinned if key in on) if disagree and policy == "pin" else ()
    return Question(
        text or "",
        chosen,
        base,
        precision,
        policy if disagree else "error",
        int(length or 32),
        wins,
        mode,
        strengths,
        int(seed or 0) if placebo else None,
    )


@dataclass(frozen=True)
class Widgets:
    """What other parts of the page read and update. policy, pinned: who wins where patches disagree."""

    base: Any
    precision: Any
    patches: Any
    policy: Any
    pinned: Any
    tuning: Any


def offer(workshop: Workshop, tab: gr.Tab, mine: Any, chosen: Any, own: Any, tried: Widgets) -> None:
    """A list on another tab to choose patches from: where nothing was chosen yet, or on the button `mine`, what is on in the stack."""

    def on_open(
        stack: list[str], tuning: Tuning, keys: list[str], own: tuple[Held, ...], base: str,
        request: gr.Request | None = None,
    ) -> Any:  # fmt: skip
        offered = workshop.offered(own, base)
        here = [key for key in keys or [] if key in {held.patch.id for held in offered}]
        names = [(printable(f"{held.name}: {held.titled(language_of(request))}"), held.patch.id) for held in offered]
        return gr.Dropdown(names, value=here or layers(stack, tuning)[0])

    def on_mine(stack: list[str], tuning: Tuning) -> Any:
        return gr.Dropdown(value=layers(stack, tuning)[0])

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    tab.select(on_open, [tried.patches, tried.tuning, chosen, own, tried.base], chosen, **quiet)
    mine.click(on_mine, [tried.patches, tried.tuning], chosen, **quiet)
