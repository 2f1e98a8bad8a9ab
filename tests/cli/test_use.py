"""ask, eval and export, on the demo model."""

import json
import shutil

from safetensors import safe_open

from kedit_hub import Patch, demo
from kedit_hub.commands import use
from kedit_hub.limits import Limits
from tests.cli.conftest import ATLAS, CAPITAL, kedit, refused


def test_ask_before_and_after(atlas):
    done = kedit("ask", CAPITAL, "--patch", atlas / "france", "--json")
    assert done.json == {"prompt": CAPITAL, "base": "Paris.", "patched": "Nantes."}
    done = kedit("ask", CAPITAL, "--patch", atlas / "france")
    assert [line.split() for line in done.out.splitlines()] == [["base", "patched"], ["Paris.", "Nantes."]]


def test_ask_the_base_alone():
    assert kedit("ask", CAPITAL, "--json").json == {"prompt": CAPITAL, "base": "Paris.", "patched": None}
    assert kedit("ask", CAPITAL, "--base", ATLAS).out == "Paris.\n"
    assert kedit("ask", CAPITAL, "--max-new-tokens", 1, "--json").json["base"] in "Paris"


def test_ask_a_stack_in_conflict(atlas):
    two = ("--patch", atlas / "france", "--patch", atlas / "lyon")
    refused(kedit("ask", CAPITAL, *two), "Nantes", "Lyon")
    assert kedit("ask", CAPITAL, *two, "--conflicts", "latest", "--json").json["patched"] == "Lyon."


def test_a_strength_is_a_share_of_the_change(atlas):
    two = ("ask", CAPITAL, "--patch", atlas / "france", "--patch", atlas / "tower", "--json", "--strength")
    assert kedit(*two, 1, "--strength", 1).json["patched"] == "Nantes."
    assert kedit(*two, 0.05, "--strength", 1).json["patched"] == "Paris."
    refused(kedit(*two, 0, "--strength", 1), "strength 0.0")
    assert kedit(*two, 0.5).code == 2 and kedit(*two, 2, "--strength", 1).code == 2


def test_eval_writes_the_scores(atlas, tmp_path):
    shutil.copytree(atlas / "france", tmp_path / "p")
    before = Patch.load(tmp_path / "p")
    done = kedit("eval", tmp_path / "p", "--write", "--json")
    assert done.code == 0
    sheet = done.json
    assert sheet["protocols"]["generate"]["reliability"] == sheet["protocols"]["tf-token"]["reliability"] == 1.0
    assert sheet["stack"] == {"patches": [before.id], "mode": "gated"}
    after = Patch.load(tmp_path / "p")
    assert after.id == before.id
    assert after.evals == {**before.evals, **sheet} and after.evals["making"] == before.evals["making"]
    assert "reliability" in (tmp_path / "p" / "README.md").read_text("utf-8")
    assert "1.000" in kedit("show", tmp_path / "p").out


def test_eval_of_a_stack_on_given_edits_by_one_protocol(atlas, tmp_path):
    records = [{"prompt": CAPITAL, "target_new": "Nantes", "subject": "France"}]
    (tmp_path / "edits.json").write_text(json.dumps(records))
    done = kedit(
        "eval", atlas / "france", atlas / "tower", "--edits", tmp_path / "edits.json", "--protocol", "tf-token",
        "--mode", "joint", "--json",
    )  # fmt: skip
    assert done.code == 0
    assert list(done.json["protocols"]) == ["tf-token"] and len(done.json["per_edit"]) == 1
    assert done.json["stack"]["mode"] == "joint" and len(done.json["stack"]["patches"]) == 2


def test_a_sheet_too_large_to_store_keeps_its_averages(monkeypatch, capsys):
    sheet = {"protocols": {"generate": {"reliability": 1.0}}, "per_edit": [{"prompt": "p" * 5000}]}
    assert use._fitting(sheet) is sheet
    monkeypatch.setattr("kedit_hub.limits.DEFAULT", Limits(max_evals_bytes=3000))
    assert use._fitting(sheet) == {"protocols": {"generate": {"reliability": 1.0}}}
    assert "3,000" in capsys.readouterr().err


def test_export(atlas, tmp_path):
    done = kedit("export", atlas / "france", atlas / "tower", "--out", tmp_path / "lora", "--json")
    assert done.code == 0
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    assert set(done.json["files"]) == {"README.md", "kedit_export.json", *adapter}
    with safe_open(tmp_path / "lora" / "adapter_model.safetensors", "pt") as tensors:
        assert len(tensors.keys()) == 2
    again = kedit("export", atlas / "france", "--out", tmp_path / "lora")
    refused(again, "not empty")


def test_a_patch_of_serac_is_handed_its_trained_editor(tmp_path, monkeypatch):
    shutil.copytree(demo.editor_path("serac", "llama"), tmp_path / "serac")
    request = ("--prompt", CAPITAL, "--subject", "France", "--target", "Nantes")
    assert kedit("edit", *request, "--editor", tmp_path / "serac", "--out", tmp_path / "p").code == 0
    assert kedit("stack", "add", tmp_path / "p", "--lock", tmp_path / "kedit.lock").code == 0
    monkeypatch.setattr(demo, "editor_path", lambda *_: None)  # as on a base that no editor comes with
    given, locked = ("--editor", tmp_path / "serac"), ("--lock", tmp_path / "kedit.lock")
    asked = ("ask", CAPITAL, "--patch", tmp_path / "p", "--json")
    refused(kedit(*asked), "serac", "--editor")
    refused(kedit(*asked, "--editor", tmp_path), "config.json")
    assert kedit(*asked, *given).json["patched"] == "Nantes."
    refused(kedit("stack", "status", *locked), "--editor")
    assert kedit("stack", "status", *locked, *given, "--json").json["edits"] == 1
    assert kedit("stack", "solve", *locked, *given, "--json").json["edits"] == 1
    for command in ("export", "stack export"):
        named = (tmp_path / "p",) if command == "export" else locked
        refused(kedit(*command.split(), *named, *given, "--out", tmp_path / "out"), "facts")
    done = kedit("eval", tmp_path / "p", "--protocol", "tf-token", "--json", *given)
    assert done.json["protocols"]["tf-token"]["reliability"] == 1.0
    refused(kedit("verify", tmp_path / "p", "--rescore"), "--editor")
    assert kedit("verify", tmp_path / "p", "--rescore", *given).code == 0
    assert kedit("screen", tmp_path / "p", "--n", 2, *given, "--json").json["findings"] == []
    conflicts = kedit("stack", "conflicts", tmp_path / "p", "--behaviour", *given, "--json")
    assert conflicts.json["looked_at"][-1] == "behavioural" and conflicts.json["behavioural"] == []
    on_it = (
        "edit",
        "--prompt",
        "The capital of Peru is",
        "--target",
        "Oslo",
        "--method",
        "ft-m",
        "--settings",
        "epochs=1",
    )
    on_it += ("--on", tmp_path / "p", "--out", tmp_path / "q")
    refused(kedit(*on_it), "serac", "--on-editor")
    done = kedit(*on_it, "--on-editor", tmp_path / "serac", "--json")
    assert done.code == 0, done.err
    assert Patch.load(tmp_path / "q").manifest.requires == (Patch.load(tmp_path / "p").id,)
