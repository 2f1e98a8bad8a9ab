"""Wrong usage exits 2, quotes the input, and does so before anything is loaded."""

import pytest

from tests.cli.conftest import kedit


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bogus"], "bogus"),
        (["ask", "x", "--mode", "fancy"], "fancy"),
        (["ask", "x", "--quantization", "int3"], "int3"),
        (["ask", "x", "--max-new-tokens", "0"], "0"),
        (["ask"], "PROMPT"),
        (["show"], "PATCH"),
        (["edit", "--out", "x"], "--prompt"),
        (["edit", "--out", "x", "--prompt", "The capital of France is"], "--target"),
        (["edit", "--out", "x", "--prompt", "p", "--target", "t", "--from", "f.json"], "--from"),
        (["edit", "--out", "x", "--prompt", "p", "--target", "t", "--settings", "steps"], "'steps'"),
        (["edit", "--out", "x", "--prompt", "p", "--target", "t", "--settings", "=3"], "'=3'"),
        (["edit", "--out", "x", "--settings", "a=1", "--settings", "a.b=2"], "'a.b=2'"),
        (["edit", "--out", "x", "--settings", "a=1", "--settings", "a=2"], "'a=2'"),
        (["eval", "a", "b", "--write"], "a b"),
        (["eval", "me/france", "--write"], "me/france"),
        (["verify", "p", "--base", "m", "--no-base"], "--no-base"),
        (["stack", "status", "p", "--base", "m", "--no-base"], "--no-base"),
        (["export", "p", "--out", "x", "--format", "gguf"], "gguf"),
        (["profile", "m", "--out", "x", "--layer", "-1"], "'-1'"),
        (["push", "folder"], "REPO"),
        (["push", "folder", "me/france", "--token", "hf_secret"], "--token"),
        (["hub", "serve", "--port", "70000"], "'70000'"),
        (["demo", "edits", "train"], "train"),
        (["demo", "train", "bert", "--out", "x"], "bert"),
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = kedit(*arguments)
    assert done.code == 2 and done.out == ""
    assert said in done.err.splitlines()[-1] and "Traceback" not in done.err
    assert "hf_secret" not in done.err
    assert not list(tmp_path.glob("[!.]*")) or [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_nothing_at_all_is_answered_with_help():
    for group in ((), ("hub",), ("demo",)):
        done = kedit(*group)
        assert done.code == 2 and "Commands:" in done.err + done.out
