"""The conflicts of the chosen patches: the library's report, told whole, with nothing passed off as clean that was not looked at."""

import re
from base64 import b64decode
from contextlib import redirect_stdout
from dataclasses import replace
from html import unescape
from io import StringIO
from pathlib import Path

import pytest

from kedit_hub import Edit, KeditError, PatchStack
from kedit_hub.errors import ConflictError, LimitError
from kedit_hub.evaluate.conflicts import conflicts
from space import conflicts_tab, html, measure, page
from space.asking import Question, ask
from space.conflicts_tab import Winners, find, show
from space.state import Held, Workshop, embedded_bases, sample_patches
from space.take_home import python as take_home
from tests.space.test_ask import digest
from tests.space.test_html import HOSTILE, TAGS, Tags
from tests.space.tiny import PARIS, asked, handler, make_patch, make_workshop

ROOT = Path(__file__).parents[2]
ATLAS = "kedit-hub/atlas-llama"
SAMPLES = {held.name: held for held in sample_patches(ROOT / "patches")}
NANTES, MARSEILLE, TOWER, FIFTY = (
    SAMPLES[name]
    for name in ("capital-of-france-nantes", "capital-of-france-marseille", "eiffel-tower-in-rome", "fifty-facts")
)


@pytest.fixture(scope="module")
def atlas():
    return Workshop(embedded_bases(), list(SAMPLES.values()))


def test_it_is_the_report_of_the_library(atlas):
    found = find(atlas, [TOWER, FIFTY], Winners("error"))
    profiles = conflicts_tab._profiles([TOWER, FIFTY])
    assert found.report.to_dict() == conflicts(PatchStack([TOWER.patch, FIFTY.patch]), profiles=profiles).to_dict()
    assert found.refused is None and found.report.looked_at == ("textual", "geometric", "gate")
    shown = show(found)
    assert "fifty-facts" in shown and html.text(found.report.findings[0].remedy) in shown
    assert html.text("Not looked at: behaviour.") in shown
    (drawn,) = set(re.findall('data:image/svg[+]xml;base64,([^"]*)', shown))
    assert b64decode(drawn).decode() == found.report.svg()


def test_what_was_not_looked_at_is_never_passed_off_as_clean(shared):
    paris, madrid, _ = shared.samples  # neither has a profile
    found = find(shared, [paris, madrid], Winners("error"))
    assert found.report.looked_at == ("textual",) and found.report.findings == ()
    shown = show(found)
    assert html.text("Not looked at: keys, gate, behaviour.") in shown and "no base profile" in unescape(shown)
    with pytest.raises(KeditError, match="base profile"):
        find(shared, [paris, madrid], Winners("error"), behaviour=True)


def test_patches_that_disagree_are_reported_although_they_are_refused(atlas):
    found = find(atlas, [NANTES, MARSEILLE], Winners("error"))
    assert found.report.of("textual")[0].what.endswith("; the earlier is silent")
    assert found.refused and html.text(found.refused) in show(found)
    assert find(atlas, [NANTES, MARSEILLE], Winners("pin")).refused
    pinned = find(atlas, [NANTES, MARSEILLE], Winners("pin", (NANTES.patch.id,)))
    assert pinned.refused is None and pinned.report.of("textual")[0].what.endswith("; the later is silent")


def test_the_behaviour_is_asked_on_demand_and_the_base_stays_as_it_is(atlas):
    model = atlas.load(ATLAS).model
    before = digest(model)
    found = find(atlas, [TOWER, NANTES], Winners("error"), behaviour=True)
    assert found.report.looked_at[-1] == "behavioural" and found.report.behaviour.asked > 10
    assert "Not looked at" not in show(found) and "questions asked in mode" in show(found)
    assert digest(model) == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_it_is_ended_when_it_takes_too_long(atlas, monkeypatch):
    monkeypatch.setattr(measure, "MAX_SECONDS", -1.0)
    with pytest.raises(LimitError, match=r"evaluate\.conflicts"):
        find(atlas, [TOWER, NANTES], Winners("error"), behaviour=True)
    assert not atlas.load(ATLAS).model._forward_pre_hooks


def test_it_is_bounded(atlas, monkeypatch):
    monkeypatch.setattr(conflicts_tab, "MAX_EDITS", 50)
    monkeypatch.setattr(conflicts_tab, "MAX_ASKED_EDITS", 1)
    with pytest.raises(LimitError, match="51 edits"):
        find(atlas, [TOWER, FIFTY], Winners("error"))
    with pytest.raises(LimitError, match="2 edits"):
        find(atlas, [TOWER, NANTES], Winners("error"), behaviour=True)
    with pytest.raises(KeditError, match="different bases"):
        find(atlas, [TOWER, SAMPLES["gpt2-eiffel-tower-in-rome"]], Winners("error"))


def test_the_pinned_patch_answers_here_and_with_the_code_to_take_home(atlas, monkeypatch):
    prompt = NANTES.patch.edits[0].prompt
    alone = ask(atlas, Question(prompt, (NANTES,), ATLAS))
    wanted = Question(prompt, (NANTES, MARSEILLE), ATLAS, conflicts="pin", pinned=(NANTES.patch.id,))
    answer = ask(atlas, wanted).patched.text
    assert answer == alone.patched.text != ask(atlas, replace(wanted, conflicts="latest", pinned=())).patched.text
    monkeypatch.chdir(ROOT)
    with redirect_stdout(StringIO()) as printed:
        exec(take_home(wanted), {})
    assert printed.getvalue().strip() == answer
    with pytest.raises(ConflictError, match="pin the patch that shall win"):
        ask(atlas, replace(wanted, pinned=()))


def test_the_page_asks_under_the_policy_that_is_chosen(shared):
    paris, _, lyon = shared.samples
    keys, built = [lyon.patch.id, paris.patch.id], page.build(shared)

    def code(policy, pinned=()):
        return asked(built, PARIS.prompt, keys, policy=policy, pinned=list(pinned))

    assert "Untick one of them" in unescape(code("error")[0])
    assert "conflicts='latest'" in code("latest")[2]
    assert f"pinned=['{lyon.patch.id[:12]}']" in code("pin", [lyon.patch.id, "gone"])[2]
    assert 'class="note error"' in code("pin")[0]


def test_the_tab_shows_from_two_patches_on(shared):
    paris, madrid, _ = shared.samples
    on_report = handler(page.build(shared), "on_report")
    assert "Choose two or more" in on_report([paris.patch.id], (), "error", [])[0]
    assert "Looked at" in on_report([paris.patch.id, madrid.patch.id], (), "error", [])[0]


def test_a_pair_is_explained_and_settled(atlas):
    built = page.build(atlas)
    nantes, marseille = NANTES.patch.id, MARSEILLE.patch.id
    _, found, behave, group, pair, told = handler(built, "on_report")([nantes, marseille], (), "error", [])
    assert group.visible and behave.visible and pair.value == f"{nantes} {marseille}"
    assert "First&#58; capital-of-france-nantes" in told and "contradiction" in told
    assert told == handler(built, "on_pair")(pair.value, found)
    buttons = ("first_answers", "second_answers", "without_first", "without_second")
    settle = dict(zip(buttons, [fn.fn for fn in built.fns.values() if fn.name == "on_settle"], strict=True))
    stack, policy, pins, _, note = settle["second_answers"](None, pair.value, found, [nantes], [nantes, marseille], [])
    assert stack == [nantes, marseille] and policy == "pin" and pins.value == [marseille] and "it answers" in note
    stack, _, _, left, _ = settle["without_first"](
        None, pair.value, found, [nantes, marseille], [nantes, marseille], []
    )
    assert stack == [marseille] and left.value == [marseille]
    assert "note error" not in handler(built, "on_report")([nantes, marseille], (), "pin", [marseille])[0]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_patches_are_reported_as_text(hostile, base):
    held = [
        Held(make_patch([Edit(hostile, f"{hostile}{i}"), Edit(hostile, hostile)], i), f"{hostile}/{i}", "hub")
        for i in range(2)
    ]
    shown = show(find(make_workshop(base, held), held, Winners("latest")))
    parsed = Tags()
    parsed.feed(shown)
    assert set(parsed.tags) <= TAGS | {"img", "a"}
    assert {name for name, _ in parsed.attributes} <= {
        "class", "scope", "role", "aria-label", "tabindex", "src", "alt", "href", "download",
    }  # fmt: skip
    places = {value for name, value in parsed.attributes if name in ("src", "href")}
    assert all(place.startswith("data:image/svg+xml;base64,") for place in places)
    assert "${" not in shown and "{{" not in shown and "\u202e" not in shown and "\u200b" not in shown
