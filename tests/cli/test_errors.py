"""What is refused exits 1 with one message on standard error and leaves nothing behind."""

import pytest

from kedit_hub.errors import KeditError
from tests.cli.conftest import CAPITAL, kedit, refused
from tests.hub.patches import make_patch


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "./nowhere"], "nowhere"),
        (["show", "a/b/c"], "a/b/c"),
        (["verify", "./nowhere", "--no-base"], "nowhere"),
        (["eval", "./nowhere"], "nowhere"),
        (["stack", "status", "./nowhere", "--no-base"], "nowhere"),
        (["export", "./nowhere", "--out", "x"], "nowhere"),
        (["push", "nowhere", "me/france"], "nowhere"),
        (["pull", "./nowhere"], "nowhere"),
        (["ask", "x", "--base", "./nowhere"], "nowhere"),
        (["ask", "x", "--patch", "./nowhere"], "nowhere"),
        (["ask", "x", "--profile", "./nowhere"], "nowhere"),
        (["edit", "--out", "x", "--from", "nowhere.json"], "nowhere.json"),
        (["edit", "--out", "x", "--prompt", CAPITAL, "--target", "Rome", "--subject", "Spain"], "Spain"),
        (["edit", "--out", "x", "--prompt", CAPITAL, "--target", "Rome", "--base", "./nowhere"], "nowhere"),
        (["edit", "--out", "x", "--prompt", CAPITAL, "--target", "Rome", "--profile", "nowhere"], "nowhere"),
        (["edit", "--out", "x", "--prompt", CAPITAL, "--target", "Rome", "--on", "./nowhere"], "nowhere"),
        (["profile", "./nowhere", "--out", "x"], "nowhere"),
        (["profile", "kedit-hub/atlas-llama", "--out", "x", "--texts", "nowhere.txt"], "nowhere.txt"),
        (["profile", "kedit-hub/atlas-llama", "--out", "x", "--edits", "nowhere.json"], "nowhere.json"),
        (["pull", "me/france", "--token-file", "nowhere.txt"], "nowhere.txt"),
        (["hub", "serve", "--host", "0.0.0.0"], "0.0.0.0"),
        (["hub", "serve", "--user", "../me"], "../me"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_refused(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(kedit(*arguments), said)
    assert not (tmp_path / "x").exists()


def test_text_that_is_no_text(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"good\n\xff\xfe\n")
    (tmp_path / "folder").mkdir()
    done = kedit("profile", "kedit-hub/atlas-llama", "--out", tmp_path / "x", "--texts", tmp_path / "t.txt")
    refused(done, "not UTF-8", "byte 5")
    done = kedit("profile", "kedit-hub/atlas-llama", "--out", tmp_path / "x", "--texts", tmp_path / "folder")
    refused(done, "folder")


def test_a_bug_is_not_dressed_up_as_a_refusal(monkeypatch, tmp_path):
    def broken(*_, **__):
        raise ZeroDivisionError("bug")

    monkeypatch.setattr("kedit_hub.demo.edits", broken)
    with pytest.raises(ZeroDivisionError):
        kedit("demo", "edits")


def test_every_error_made_on_purpose_is_one_message(monkeypatch):
    def refuse(*_, **__):
        raise KeditError("no\nway \x1b[31m\u202e")

    monkeypatch.setattr("kedit_hub.demo.edits", refuse)
    done = kedit("demo", "edits")
    assert (done.code, done.out, done.err) == (1, "", "Error: no\nway  [31m \n")


def test_ctrl_c(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("kedit_hub.demo.edits", interrupted)
    done = kedit("demo", "edits")
    assert (done.code, done.out, done.err) == (130, "", "Interrupted.\n")


def test_no_text_of_a_patch_drives_the_terminal(tmp_path):
    make_patch("\x1b]0;owned\x07\x9b31mRome\u202e").save(tmp_path / "p")
    for arguments in (
        ["show", tmp_path / "p"],
        ["show", tmp_path / "p", "--json"],
        ["stack", "status", tmp_path / "p", "--no-base"],
    ):
        done = kedit(*arguments)
        assert done.code == 0
        assert not [char for char in done.out + done.err if not char.isprintable() and char != "\n"]
    assert kedit("show", tmp_path / "p", "--json").json["edits"][0]["target_new"].endswith("Rome\u202e")
