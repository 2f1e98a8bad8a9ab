"""The card of a patch: what it holds, what it claims, and what is known of it."""

from space import believe, score_view
from space.patch_tab import card, choices
from space.state import Held
from tests.space.tiny import PARIS, PROBED, make_patch, sample, score


def test_junk_claims_are_no_claims():
    patch = make_patch([PARIS]).replace_evals({"protocols": {"generate": {"reliability": "high"}, "tf-token": 3}})
    assert score_view.sheets(patch.evals) == {"generate": {}}
    assert card(sample(patch), [])


def test_a_score_says_how_sure_it_is():
    sheet = {"reliability": 0.5, "interval": {"reliability": [0.25, 0.75]}, "n": {"reliability": {"scored": 1200}}}
    assert "0.500 &#40;0.250 to 0.750&#41; · 1,200" in score_view.scores_table({"protocols": {"generate": sheet}})
    for junk in (
        {"interval": {"reliability": "<b>"}, "n": 3},
        {"interval": [1, 2], "n": {"reliability": {"scored": 1 << 90}}},
    ):
        table = score_view.scores_table({"protocols": {"generate": {"reliability": 0.5, **junk}}})
        assert "<td>0.500</td>" in table


def test_a_sheet_of_thousands_of_protocols_and_kinds_is_shown_in_part_and_counted():
    strange = {f"p{at}": {"locality": {f"k{at} {kind}": 1.0 for kind in range(40)}} for at in range(300)}
    table = score_view.scores_table({"protocols": {**strange, "generate": {"reliability": 0.5}}})
    assert len(table) < 100_000 and table.count("<tr>") == 1 + score_view.MAX_ROWS
    assert table.index(">generate<") < table.index(">p0<") and ">p6<" in table and ">p7<" not in table
    assert "and 221 more scores." in table and "and 293 more protocols." in table
    assert "more" not in score_view.scores_table({"protocols": {"generate": {"reliability": 0.5}}})


def test_the_card_names_what_a_reader_needs(shared):
    held = sample(score(shared, make_patch([PROBED], 5)), "probed")
    shown = card(held, believe.lines(shared, held, None))
    for needed in ("The capital of France is", "Rome", "tiny-llama", "random", "lowrank", held.patch.id):
        assert needed in shown
    for line in ("Files", "Signature", "Provenance", "Base", "Scores", "Measured here", "Format"):
        assert f"<dt>{line}</dt>" in shown


def test_patches_are_listed_by_name_and_with_what_is_known_against_them():
    patch = make_patch([PARIS])
    held = Held(patch, "patches/paris", "sample")
    title = "paris: The capital of France is → Rome · random"
    assert choices([held], {}) == [(title, patch.id)]
    asked = {patch.id: believe.Asked(False, "no")}
    assert choices([held], asked) == [(f"⚠ scores do NOT reproduce · {title}", patch.id)]
