"""docs/presets.md says what the tables say, row by row."""

from collections.abc import Sequence
from pathlib import Path

from kedit_hub.base.profile import ValueSettings
from kedit_hub.editors.presets import BREADTH_FIRST, FINETUNED, NEURONS, ONE_STEP, PUBLISHED, Sizes

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "presets.md").read_text()
NAMES = (
    "GPT-2 medium", "GPT-2 large", "GPT-2 XL", "GPT-J 6B", "Llama-2 7B", "Llama-3 8B", "Llama-3.2 3B", "Mistral 7B",
    "Qwen2, Qwen2.5 7B", "T5 3B", "Phi-4",
)  # fmt: skip
SIZES: tuple[Sizes, ...] = tuple(dict.fromkeys([*PUBLISHED, *FINETUNED, *ONE_STEP]))


def value(given: ValueSettings | None) -> str:
    return (
        ""
        if given is None
        else f"{given.lr:g} / {given.steps} / {given.weight_decay:g} / {given.clamp:g} / {given.kl:g}"
    )


def layers(given: Sequence[int] | None) -> str:
    if given is None:
        return ""
    run = len(given) > 2 and list(given) == list(range(given[0], given[-1] + 1))
    return f"{given[0]}-{given[-1]}" if run else ", ".join(map(str, given))


def valued(sizes: Sizes) -> tuple[str, ...]:
    row = PUBLISHED[sizes]
    emmet = "" if row.emmet is None else f"{row.emmet[0]} / {row.emmet[1]:,.0f}"
    null = "" if row.null is None else f"{row.null[0]:g} / {row.null[1]:g}"
    window = f"{row.window[0]}-{row.window[1]}"
    return str(row.layer), value(row.rome), window, value(row.memit), f"{row.lam:,.0f}", value(row.pmet), emmet, null


def tuned(sizes: Sizes) -> tuple[str, ...]:
    row, breadth, units, step = (table.get(sizes) for table in (FINETUNED, BREADTH_FIRST, NEURONS, ONE_STEP))
    return (
        "" if row is None else layers(row.layers),
        "" if row is None else layers(row.bounded),
        "" if row is None or row.bound is None else f"{row.bound:g}",
        "" if row is None else f"{row.lr:g} / {row.epochs}",
        "" if breadth is None else f"{layers(breadth.layers)} / {breadth.lr:g}",
        "" if units is None else f"{units.steps} / {units.threshold:g}",
        "" if step is None else ", ".join(f"{what} {layers(at)}" for what, at in step.maps.items()),
    )


def test_every_row_is_on_the_page() -> None:
    assert len(NAMES) == len(SIZES)
    for name, sizes in zip(NAMES, SIZES):
        for cells in (*([valued(sizes)] if sizes in PUBLISHED else []), tuned(sizes)):
            assert "| " + " | ".join((name, *cells)) + " |" in PAGE
