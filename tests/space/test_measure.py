"""A patch keeps its claims, or the page says which number differs; and nobody waits for ever."""

from dataclasses import replace

import pytest

from kedit_hub import KeditError, PatchedModel
from kedit_hub.errors import LimitError, WrongBaseError
from kedit_hub.evaluate.claims import Consistent, NotComparable
from kedit_hub.evaluate.rescore import NotReproduced, Reproduced, claimed_mode
from kedit_hub.evaluate.scores import Scores
from kedit_hub.evaluate.screen import Finding
from space import measure, page
from space.measure import any_seed, ask_again, look, show, show_look, told
from space.state import Stop
from tests.space.tiny import BASE, PARIS, PROBED, handler, make_patch, make_workshop, sample, score


@pytest.fixture(scope="module")
def honest(shared):
    return sample(score(shared, make_patch([PROBED], 5)), "honest")


@pytest.fixture(scope="module")
def invented(shared):
    """Scores that hang together, of another patch that leaves the neighbours alone."""
    harmless = make_patch([PROBED], 6, size=1e-6)
    return sample(score(shared, make_patch([PROBED], 5), on=harmless), "invented")


def test_true_claims_are_reproduced(shared, honest):
    found = ask_again(shared, honest, Stop())
    assert isinstance(found, Reproduced) and found.mismatches == () and found.probes == 3
    assert told(found).reproduced is True
    shown = show(honest, found)
    assert 'class="note good"' in shown and "Reproduces its claims&#58; yes" in shown
    assert "Probes that came out otherwise" not in shown


def test_invented_claims_are_shown_with_both_numbers(shared, invented):
    assert isinstance(invented.claims, Consistent)  # nothing in the files tells
    found = ask_again(shared, invented, Stop())
    assert isinstance(found, NotReproduced) and told(found).reproduced is False
    shown = show(invented, found)
    assert 'class="note error"' in shown and "Reproduces its claims&#58; NO" in shown
    assert "Probes that came out otherwise" in shown and "The author of Hamlet is" in shown
    assert "1.000" in shown and "0.000" in shown


def test_what_cannot_be_compared_says_why(shared, honest):
    averages = sample(honest.patch.replace_evals({"protocols": honest.patch.evals["protocols"]}))
    found = ask_again(shared, averages, Stop())
    assert isinstance(found, NotComparable) and told(found).reproduced is None
    assert 'class="note warning"' in show(averages, found) and "only averages are stored" in show(averages, found)


def test_a_patch_that_claims_nothing_is_measured_all_the_same(shared):
    held = sample(make_patch([PARIS]))
    found = ask_again(shared, held, Stop())
    assert isinstance(found, Scores) and told(found).reproduced is None
    assert "it came without scores" in show(held, found) and "reliability" in show(held, found)


def test_large_patches_are_left_to_the_visitors_own_machine(shared, honest, monkeypatch):
    monkeypatch.setattr(measure, "MAX_PROBED_EDITS", 0)
    with pytest.raises(LimitError, match="kedit verify"):
        ask_again(shared, honest, Stop())


def test_a_patch_of_other_weights_is_refused(workshop, honest):
    workshop.load(BASE).model.model.layers[1].mlp.down_proj.weight.data.mul_(1.01)
    with pytest.raises(WrongBaseError):
        ask_again(workshop, honest, Stop())


def test_it_ends_when_the_time_is_up(shared, honest, monkeypatch):
    monkeypatch.setattr(measure, "MAX_SECONDS", 0.0)
    with pytest.raises(LimitError, match="longer than 0 s"):
        ask_again(shared, honest, Stop())


def passes(workshop, held, stop_after):
    """Forward passes of one `ask_again` that is stopped in the midst of one of them."""
    stop, seen = Stop(), 0
    loaded = workshop.load(BASE)
    view: PatchedModel = workshop.patched(loaded, [held], mode=claimed_mode(held.patch))

    def count(*_):
        nonlocal seen
        seen += 1
        stop.wished = seen >= stop_after

    handle = view.model.register_forward_hook(count)
    try:
        with pytest.raises(KeditError, match="Stopped"):
            ask_again(workshop, held, stop)
    finally:
        handle.remove()
    return seen


@pytest.mark.parametrize("after", [1, 5])
def test_it_stops_before_the_next_forward_pass_and_leaves_the_model_usable(shared, honest, after):
    assert passes(shared, honest, after) == after
    view = shared.patched(shared.load(BASE), [honest], mode=claimed_mode(honest.patch))
    assert not view.model._forward_pre_hooks
    assert isinstance(ask_again(shared, honest, Stop()), Reproduced)


def test_a_wish_to_stop_while_waiting_in_line_is_heard(base, honest):
    demo = page.build(make_workshop(base, [honest]))
    stop = Stop(own=True)
    handler(demo, "begin")(stop)  # a new start takes an old wish back
    assert stop.wished is False
    handler(demo, "on_stop")(stop)
    shown, asked = handler(demo, "on_again")(honest.patch.id, (), {}, stop)
    assert "Stopped" in shown and asked == {}


def test_the_result_is_remembered_for_this_visitor_alone(base, honest, invented):
    demo = page.build(make_workshop(base, [invented]))
    shown, asked = handler(demo, "on_again")(invented.patch.id, (), {}, Stop())
    assert "NO" in shown and asked[invented.patch.id].reproduced is False
    _, other = handler(demo, "on_again")(None, (), {}, Stop())
    assert other == {}


# --- undeclared effects -------------------------------------------------------------------------------------------


def test_a_patch_that_changes_every_answer_is_found_out(shared, honest):
    found = look(shared, honest, Stop(), seed=3)
    assert any(finding.kind == "other-fact" for finding in found.findings)
    assert 30 <= found.asked["undeclared facts"] <= 60
    shown = show_look(honest, found, 3)
    assert 'class="note warning"' in shown and "Without it" in shown and "answers about subjects" in shown
    assert "drawn by seed 3" in shown


def test_nothing_found_is_called_no_proof_and_never_safe(shared, invented):
    harmless = sample(make_patch([PROBED], 6, size=1e-6))
    found = look(shared, harmless, Stop(), seed=3)
    assert {finding.kind for finding in found.findings} <= {"not-done"}
    found = replace(found, findings=())
    shown = show_look(harmless, found, 3)
    assert 'class="note info"' in shown and "Nothing found is no proof" in shown and "not looked at" in shown
    everything = shown + show_look(invented, look(shared, invented, Stop(), seed=4), 4)
    assert "safe" not in everything.lower().replace("safetensors", "") and "good" not in everything


def test_what_is_no_answer_is_told_in_a_sentence(shared, honest):
    found = look(shared, honest, Stop(), seed=3)
    evidence = {"measured": 0.5, "bound": 0.1}
    shown = show_look(honest, replace(found, findings=(Finding("damage", ("0" * 64,), "KL", evidence),)), 3)
    assert "KL&#58; 0.5, bound 0.1" in shown and "damage to ordinary text" in shown


def test_many_findings_are_counted(shared, honest):
    found = look(shared, honest, Stop(), seed=3)
    one = Finding("other-fact", ("0" * 64,), "Q", {"before": "a", "after": "", "family": "x"})
    shown = show_look(honest, replace(found, findings=(one,) * 70), 3)
    assert "and 20 more." in shown and "&#40;nothing&#41;" in shown and "Found&#58; 70 effects" in shown


def test_every_look_draws_other_questions(shared, honest):
    assert any_seed() != any_seed()
    a, b, c = (look(shared, honest, Stop(), seed) for seed in (3, 3, 4))
    assert a == b and [f.where for f in a.findings] != [f.where for f in c.findings]


def test_a_look_is_bounded_like_the_probes(shared, honest, monkeypatch):
    with pytest.raises(KeditError, match="Stopped"):
        look(shared, honest, Stop(own=True), 0)
    monkeypatch.setattr(measure, "MAX_PROBED_EDITS", 0)
    with pytest.raises(LimitError, match="kedit screen"):
        look(shared, honest, Stop(), 0)


def test_the_button_looks_or_says_why_not(base, honest):
    demo = page.build(make_workshop(base, [honest]))
    assert "drawn by seed" in handler(demo, "on_look")(honest.patch.id, (), Stop())
    assert "not here any more" in handler(demo, "on_look")("0" * 64, (), Stop())
    assert handler(demo, "on_look")(None, (), Stop()) == ""
