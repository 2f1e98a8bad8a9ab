"""scores.json of a trained editor: rows replace rows that were measured alike, and the card shows them."""

from kedit_hub import TrainedEditor, demo
from kedit_hub.editors.hyper.scores import COLUMNS, LISTS, ROWS, merged, tables


def row(edits: int, reliability: float, **how: object) -> dict[str, object]:
    return {"edits": edits, "turn": None, "reliability": reliability, "locality.neighbour": 0.5, **how}


def test_a_row_replaces_the_one_that_was_measured_alike() -> None:
    first = merged(None, "test", [row(1, 0.9), row(10, 0.8)])
    assert first == {"test": [row(1, 0.9), row(10, 0.8)]}
    told = merged({**first, "training": {"seconds": 3.0}}, "test", [row(10, 0.7), row(10, 0.6, turn=1)])
    assert told["test"] == [row(1, 0.9), row(10, 0.7), row(10, 0.6, turn=1)] and told["training"] == {"seconds": 3.0}
    assert merged(told, "dev", [row(1, 0.1)])["test"] == told["test"]


def test_the_card_shows_them_as_they_are_shipped() -> None:
    folder = demo.editor_path("mend")
    assert folder is not None
    editor = TrainedEditor.load(folder)
    lines = editor.files()["README.md"].decode().splitlines()
    [head] = [line for line in lines if line.startswith("| edits | turn |")]
    assert "| locality&#46;neighbour |" in head or "| locality.neighbour |" in head
    assert editor.scores is not None
    for told in editor.scores["test"]:
        turn = "" if told["turn"] is None else told["turn"]
        assert any(line.startswith(f"| {told['edits']} | {turn} | {told['generalization']:.3f} |") for line in lines)


def test_a_strangers_scores_are_inert_and_bounded() -> None:
    hostile = {
        f"<script>{n}": [{f"|c{k}": "a|b\n# c" * 50 for k in range(30)} | {"x": {}, "y": [1]}] * 90 for n in range(20)
    }
    lines = tables({**hostile, "odd": 3, "bad": [3, {}], "also": {"edits": 1}})
    assert not any(text in line for line in lines for text in ("<script>", "# c", "|c"))
    assert len(lines) <= LISTS * (ROWS + 6) and max(line.count("|") for line in lines) == COLUMNS + 1
