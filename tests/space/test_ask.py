"""One question: bounded, answered by base and patched base side by side, and the base stays as it was."""

import hashlib

import pytest

from kedit_hub import KeditError
from kedit_hub.errors import ConflictError, LimitError
from kedit_hub.evaluate.beside import TOP
from space import state
from space.answer_view import show
from space.asking import Question, ask
from space.choosing import examples
from space.state import MAX_PATCHES, clashes, kept
from space.take_home import python as take_home
from tests.space.tiny import BASE, PARIS

TEXT = "The capital of France is"


def digest(model):
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def test_the_patched_side_differs_and_the_base_side_does_not(shared):
    paris, madrid, _ = shared.samples
    plain = ask(shared, Question(TEXT, (), BASE))
    one = ask(shared, Question(TEXT, (paris,), BASE))
    two = ask(shared, Question(TEXT, (paris, madrid), BASE))
    assert plain.base == plain.patched == one.base == two.base
    assert plain.kl == 0 and plain.modules == ()
    assert one.kl > 0 and two.kl > 0 and one.patched != plain.patched and one.patched != two.patched
    assert one.modules == ("model.layers.1.mlp.down_proj",)
    assert len(one.base.top) == TOP
    assert [p for _, p in one.base.top] == sorted((p for _, p in one.base.top), reverse=True)


def test_the_base_is_never_changed(workshop):
    loaded = workshop.load(BASE)
    before = digest(loaded.model)
    ask(workshop, Question(TEXT, workshop.samples[:2], BASE))
    assert digest(loaded.model) == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in loaded.model.modules())


def test_a_base_is_loaded_once_for_each_precision(workshop):
    assert workshop.load(BASE) is workshop.load(BASE, "float32")


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_patches_work_on_quantized_bases(workshop, precision):
    pytest.importorskip("bitsandbytes")
    answer = ask(workshop, Question(TEXT, workshop.samples[:1], BASE, precision))
    assert answer.kl > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "  "}, "no question"),
        ({"text": "x" * 501}, "501 characters"),
        ({"text": "a b " * 120}, "tokens"),
        ({"max_new_tokens": 65}, "max_new_tokens is 65"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"base": "../etc"}, "no base '../etc'"),
        ({"precision": "float8"}, "no precision 'float8'"),
        ({"conflicts": "ignore"}, "conflicts is 'ignore'"),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_name(workshop, change, message):
    model = workshop.load(BASE).model
    model.config.max_position_embeddings = 128
    with pytest.raises(KeditError, match=message):
        ask(workshop, Question(**({"text": TEXT, "patches": (), "base": BASE} | change)))


def test_too_many_patches_are_refused(shared):
    with pytest.raises(LimitError, match=f"at most {MAX_PATCHES}"):
        shared.chosen(["0" * 64] * (MAX_PATCHES + 1))
    with pytest.raises(KeditError, match="not here any more"):
        shared.chosen(["0" * 64])


def test_what_a_visitor_holds_is_bounded(shared, monkeypatch):
    paris, madrid, _ = shared.samples
    assert kept(kept((), paris), paris) == (paris,)
    size = sum(delta.cost().bytes for delta in paris.patch.deltas.values())
    monkeypatch.setattr(state, "MAX_HELD_BYTES", size)
    with pytest.raises(LimitError, match="2 patches"):
        kept((paris,), madrid)
    monkeypatch.setattr(state, "MAX_HELD_BYTES", 2 * size)
    assert kept((paris,), madrid) == (paris, madrid)
    monkeypatch.setattr(state, "MAX_PATCHES", 1)
    with pytest.raises(LimitError, match="2 patches"):
        kept((paris,), madrid)


def test_conflicts_are_named_and_the_latest_wins_when_asked(shared):
    paris, _, lyon = shared.samples
    assert clashes((paris, lyon)) == ['"The capital of France is": paris says "Rome", lyon says "Lyon"']
    assert clashes((paris,)) == []
    with pytest.raises(ConflictError):
        ask(shared, Question(TEXT, (paris, lyon), BASE))
    assert ask(shared, Question(TEXT, (paris, lyon), BASE, conflicts="latest")).kl > 0


def test_a_patch_that_did_nothing_is_shown_in_red(shared):
    paris = shared.samples[0]
    applied = ask(shared, Question(TEXT, (paris,), BASE))
    nothing = ask(shared, Question(TEXT, (), BASE))
    assert 'class="note good"' in show(applied, 1) and "model&#46;" not in show(applied, 1)
    assert 'class="note error"' in show(nothing, 1) and "KL 0" in show(nothing, 1)
    assert 'class="note info"' in show(nothing, 0)


def test_take_home_code_says_all_that_the_answer_depends_on(shared):
    paris, madrid, _ = shared.samples
    code = take_home(Question(' say "it\'s" ', (paris, madrid), BASE, "nf4", "latest", 8))
    assert code.splitlines() == [
        "import kedit_hub",
        "print(kedit_hub.apply(['patches/paris', 'patches/madrid'], quantization='nf4', conflicts='latest')"
        ".ask('say \"it\\'s\"', max_new_tokens=8))",
    ]


def test_examples_are_about_the_chosen_patches(shared):
    first = examples(shared, BASE, [shared.samples[1].patch.id], ())
    assert first == [["The capital of Spain is"]]
    assert [PARIS.prompt] in examples(shared, BASE, [], ())
