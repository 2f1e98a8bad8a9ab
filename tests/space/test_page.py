"""The page is built from whatever is there, and never asks for a token."""

import gradio as gr
import pytest

from kedit_hub import KeditError
from space import page, theme
from space.state import Workshop, sample_patches
from tests.space.tiny import PARIS, asked, make_patch, make_workshop


def test_an_empty_folder_of_patches_is_no_trouble(base, tmp_path):
    assert sample_patches(tmp_path / "absent") == [] and sample_patches(tmp_path) == []
    assert page.build(make_workshop(base, []))


def test_a_broken_sample_is_left_out_and_named(tmp_path, caplog):
    make_patch([PARIS]).save(tmp_path / "patches" / "good")
    make_patch([PARIS], 1).save(tmp_path / "patches" / "broken")
    (tmp_path / "patches" / "broken" / "patch.safetensors").write_bytes(b"")
    (tmp_path / "patches" / "notes").mkdir()
    found = sample_patches(tmp_path / "patches")
    assert [held.where for held in found] == ["patches/good"] and "broken is left out" in caplog.text


def test_without_a_base_it_says_so():
    with pytest.raises(KeditError, match="no base model"):
        Workshop([], [])


def test_labels_are_plain_text_with_the_first_edit_and_the_method(shared):
    assert shared.samples[0].title == "The capital of France is → Rome · random"


def test_there_is_no_login_button_off_the_hub_and_never_a_field_for_tokens(base, monkeypatch):
    monkeypatch.delenv("OAUTH_CLIENT_ID", raising=False)
    demo = page.build(make_workshop(base))
    blocks = demo.blocks.values()
    assert not any(isinstance(block, gr.LoginButton) for block in blocks)
    assert not any(getattr(block, "type", None) == "password" for block in blocks)
    assert not any("token" in str(getattr(b, "label", "")).lower() for b in blocks if isinstance(b, gr.Textbox))


def test_everything_that_runs_a_model_waits_in_one_line(base):
    demo = page.build(make_workshop(base))
    running = [
        fn
        for fn in demo.fns.values()
        if fn.name in ("on_ask", "on_change", "on_make", "on_again", "on_look", "ask", "make")
    ]
    assert len(running) >= 8
    assert {fn.concurrency_id for fn in running} == {"model"} and {fn.concurrency_limit for fn in running} == {1}


def test_the_theme_fetches_nothing():
    made = theme.theme()
    assert made._stylesheets == [] and "url(" not in theme.CSS.read_text() and "@import" not in theme.CSS.read_text()
    assert "@font-face" not in "".join(made._font_css)


def test_a_choice_never_wipes_out_an_answer_that_is_on_its_way(base):
    demo = page.build(make_workshop(base))
    text = "The capital of France is"
    assert set(map(str, asked(demo, text, [], name="on_change", before=("",)))) == {str(gr.skip())}
    assert "patched" in asked(demo, text, [], name="on_change", before=("<p>an answer</p>",))[0]
