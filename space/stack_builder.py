"""The visitor's stack, one row a patch: order, switch, strength. Law: the ticked patches and their order are the list's own value; here
lies only what that cannot hold, and what is switched off keeps its place and its strength.

    tuning = {patch id: Tuned(0.5, on=True)}
    layers(["a...", "b..."], tuning)     # what is asked with: (ids, strengths)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from kedit_hub.hub.client import printable
from space.state import Held, Workshop, shortened
from space.words import say

LEAST = 0.05  # of a strength; none at all is the switch


@dataclass(frozen=True)
class Tuned:
    """How one ticked patch takes part."""

    strength: float = 1.0
    on: bool = True


Tuning = Mapping[str, Tuned]


def layers(keys: Sequence[str], tuning: Tuning) -> tuple[list[str], tuple[tuple[str, float], ...]]:
    """Ids of those that are on, in order, and the strengths that are not whole."""
    on = [key for key in keys if tuning.get(key, Tuned()).on]
    return on, shares(on, tuning)


def shares(keys: Sequence[str], tuning: Tuning) -> tuple[tuple[str, float], ...]:
    """The strengths of these that are not whole."""
    return tuple((key, tuning[key].strength) for key in keys if key in tuning and tuning[key].strength != 1)


def moved(keys: Sequence[str], key: str, by: int) -> list[str]:
    """The same ids with one of them earlier (-1) or later (+1)."""
    order = [one for one in keys if one != key]
    at = min(max(keys.index(key) + by, 0), len(order))
    return [*order[:at], key, *order[at:]]


def build(workshop: Workshop, patches: Any, own: Any, tuning: Any) -> None:
    """The rows below the list of patches. patches: the CheckboxGroup; own, tuning: gr.States."""

    @gr.render(inputs=[patches, own, tuning], triggers=[patches.change], show_progress="hidden", queue=False)  # type: ignore[untyped-decorator]
    def rows(keys: list[str], own: tuple[Held, ...], tuned: Tuning) -> None:
        offered = {held.patch.id: held for held in workshop.offered(own)}
        known = [key for key in keys if key in offered]
        for at, key in enumerate(known):
            _row(offered[key], at, known, tuned.get(key, Tuned()), patches, tuning)


def _row(held: Held, at: int, keys: list[str], tuned: Tuned, patches: Any, tuning: Any) -> None:
    """One patch. Its buttons change the order of the list, its switch and slider the tuning."""
    key, name = held.patch.id, shortened(printable(held.name), 40)
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    with gr.Column(elem_classes="layer"):
        on = gr.Checkbox(
            tuned.on, label=f"{at + 1}. {name}", key=("on", key), container=False, min_width=130, interactive=True
        )
        with gr.Row(equal_height=True):
            strength = gr.Slider(
                LEAST, 1.0, tuned.strength, step=0.05, label=say("strength"), key=("strength", key), scale=4, min_width=130,
                buttons=[], elem_classes="strength", interactive=True,
            )  # fmt: skip
            small: dict[str, Any] = {"size": "sm", "scale": 1, "min_width": 58}
            up = gr.Button(say("earlier"), interactive=at > 0, key=("up", key), **small)
            down = gr.Button(say("later"), interactive=at + 1 < len(keys), key=("down", key), **small)
            out = gr.Button(say("take_out"), key=("out", key), **small)
    up.click(lambda keys: moved(keys, key, -1), patches, patches, **quiet)
    down.click(lambda keys: moved(keys, key, 1), patches, patches, **quiet)
    out.click(lambda keys: [one for one in keys if one != key], patches, patches, **quiet)

    def switch(on: bool, tuned: Tuning) -> Tuning:
        return {**tuned, key: replace(tuned.get(key, Tuned()), on=bool(on))}

    def weigh(strength: float, tuned: Tuning) -> Tuning:
        return {**tuned, key: replace(tuned.get(key, Tuned()), strength=min(1.0, max(LEAST, float(strength))))}

    on.input(switch, [on, tuning], tuning, **quiet)
    strength.input(weigh, [strength, tuning], tuning, trigger_mode="always_last", **quiet)
