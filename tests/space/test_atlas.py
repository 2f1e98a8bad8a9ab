"""The page's own functions on the embedded model: every sample answers, its code prints that answer, and edits are made."""

import io
from contextlib import redirect_stdout
from pathlib import Path

import gradio as gr
import pytest

from kedit_hub import KeditError
from kedit_hub.evaluate.beside import weights_digest
from space import page
from space.asking import Question, ask
from space.make_tab import example_wishes
from space.making import Wish, make
from space.state import Stop, Workshop, can_edit, embedded_bases, sample_patches
from space.take_home import python as take_home
from tests.space.tiny import handler

ROOT = Path(__file__).parents[2]
SAMPLES = sample_patches(ROOT / "patches")
LLAMA = "kedit-hub/atlas-llama"


@pytest.fixture(scope="module")
def atlas():
    return Workshop(embedded_bases(), SAMPLES)


@pytest.mark.parametrize("held", SAMPLES, ids=lambda held: held.name)
def test_a_sample_answers_and_its_code_prints_the_same(atlas, held, monkeypatch):
    edit = held.patch.edits[0]
    question = Question(edit.prompt, (held,), held.patch.manifest.base.id)
    answer = ask(atlas, question)
    assert edit.target in answer.patched.text and answer.patched.text != answer.base.text and answer.kl > 0
    monkeypatch.chdir(ROOT)
    with redirect_stdout(io.StringIO()) as printed:
        exec(take_home(question), {})
    assert printed.getvalue().strip() == answer.patched.text


def test_there_are_samples_that_agree_and_some_that_do_not(atlas):
    from space.state import clashes

    here = [held for held in SAMPLES if held.patch.manifest.base.id == LLAMA]
    assert len(here) >= 3 and len(clashes(here)) >= 1


def test_an_edit_is_made_scored_and_answers(atlas):
    steps = []
    done = make(atlas, Wish("The capital of Japan is", "Japan", "Oslo", LLAMA), lambda share, what: steps.append(share))
    assert "Oslo" in done.answer.patched.text and "Oslo" not in done.answer.base.text
    assert done.value_success == 1 and done.scores.protocols["generate"]["reliability"] == 1
    assert done.held.patch.evals["protocols"] and done.held.patch.edits[0].locality
    assert steps == sorted(steps) and len(steps) >= 3
    assert ask(atlas, Question("The capital of Japan is", (), LLAMA)).kl == 0  # the base is as it was


def unbound(atlas):
    """Nothing is left on the base or on a warm view, no weight is moved, and nobody is kept waiting."""
    loaded = atlas.load(LLAMA)
    views = [loaded.model, *(view.model for view in atlas._installed.values())]
    assert not any(view._forward_pre_hooks for view in views) and weights_digest(loaded.model) == loaded.digest
    assert loaded.lock.acquire(blocking=False)
    loaded.lock.release()


@pytest.mark.parametrize("method", ["memit", "ft", "grace", "wise"])
def test_making_stops_before_the_next_forward_pass(atlas, method):
    stop, seen = Stop(), 0

    def count(*_):
        nonlocal seen
        seen += 1
        stop.wished = seen >= 3

    handle = atlas.load(LLAMA).model.register_forward_hook(count)
    try:
        with pytest.raises(KeditError, match=r"Stopped\. No patch was made"):
            make(atlas, Wish("The capital of Japan is", "Japan", "Oslo", LLAMA, method), stop=stop)
    finally:
        handle.remove()
    assert seen == 3
    unbound(atlas)


def test_scoring_what_was_made_is_stopped_too(atlas):
    stop = Stop()

    def halt(share, what):
        stop.wished = share == 0.6  # the patch is there, and its probes are to be asked

    with pytest.raises(KeditError, match=r"Stopped\. No patch was made"):
        make(atlas, Wish("The capital of Japan is", "Japan", "Oslo", LLAMA), halt, stop=stop)
    unbound(atlas)


def test_making_ends_when_the_time_is_up_from_the_form_a_file_and_an_endpoint(atlas, tmp_path, monkeypatch):
    monkeypatch.setattr("space.making.MAX_SECONDS", 0.0)
    demo, edit = page.build(atlas), ("The capital of Japan is", "Japan", "Oslo")
    file = tmp_path / "e.csv"
    file.write_text("prompt,subject,target_new\n" + ",".join(edit) + "\n")
    for shown in (
        handler(demo, "on_make")(*edit, "", "", "memit", LLAMA, Stop())[1],
        handler(demo, "on_file")(str(file), "memit", LLAMA, Stop())[1],
    ):
        assert "longer than 0 s" in shown and "no patch was made" in shown
    with pytest.raises(gr.Error, match="longer than 0 s"):
        handler(demo, "make")(*edit, [], "", "memit", LLAMA)
    unbound(atlas)


def test_the_examples_of_the_form_are_edits_of_the_world(atlas):
    wishes = example_wishes(atlas)
    assert len(wishes) >= 3
    for prompt, subject, target, _, relation in wishes:
        assert subject in prompt and target and relation


def test_bases_without_a_shipped_profile_are_not_offered_for_making():
    assert can_edit(LLAMA) and not can_edit("user/other")
