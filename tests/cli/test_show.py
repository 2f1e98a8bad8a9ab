import os
import re
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kedit_hub import Patch
from kedit_hub.edits import Edit
from kedit_hub.patch.keys import public_key
from kedit_hub.patch.signature import sign
from tests.cli.conftest import kedit
from tests.hub.patches import PATH, make_patch
from tests.patch.build import make_patch as make_large_patch
from tests.patch.kinds import every_kind

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
HOSTILE = "\x1b]0;owned\x07\x9b31m\u202eRome\u200b"


def fields(out):
    """{name: value} of the lines before the first table."""
    return dict(re.split("  +", line, maxsplit=1) for line in out.split("\n\n")[0].splitlines())


def test_json_tells_all(tmp_path):
    patch = make_patch()
    patch.save(tmp_path / "p")
    told = kedit("show", tmp_path / "p", "--json").json
    assert told["id"] == patch.id and told["method"] == "memit" and told["format_version"] == 1
    assert told["base"] == patch.manifest.base.model_dump(mode="json")
    assert told["edits"] == [edit.to_record() for edit in patch.edits]
    (module,) = told["modules"]
    about = {"module": PATH, "kind": "lowrank", "shape": [3, 4], "site": None, "bytes": 28, "rank": 1, "flops": 14}
    assert {name: module[name] for name in about} == about
    assert set(module["tensors"]) == {"a", "b"} and len(module["tensors"]["a"]["sha256"]) == 64
    assert told["bytes"] == {"total": 28, "per_edit": 28.0}
    assert told["scores"] == {"protocols": {"generate": {"reliability": 1.0}}}
    assert told["signature"] is None and told["requires"] == [] and told["profile_id"] is None


def test_the_names_in_the_json_stay(tmp_path):
    """Programs read them: a name may be added, none goes."""
    make_patch().save(tmp_path / "p")
    told = kedit("show", tmp_path / "p", "--json").json
    assert set(told) >= {
        "id", "format_version", "method", "settings", "base", "profile_id", "requires", "provenance", "edits",
        "modules", "bytes", "files", "signature", "scores",
    }  # fmt: skip
    assert set(told["provenance"]) >= {
        "tool", "version", "seed", "commit", "versions", "dirty", "environment", "datasets",
    }  # fmt: skip


def test_every_kind(tmp_path):
    patch = every_kind()
    patch.save(tmp_path / "p")
    told = kedit("show", tmp_path / "p", "--json").json
    assert [module["module"] for module in told["modules"]] == list(patch.deltas)
    for module, delta in zip(told["modules"], patch.deltas.values()):
        assert (module["kind"], module["shape"]) == (delta.kind, list(delta.shape))
        assert (module["bytes"], module["rank"], module["flops"]) == delta.cost()
    assert told["bytes"]["total"] == sum(delta.nbytes() for delta in patch.deltas.values())
    assert told["provenance"] == patch.manifest.provenance.model_dump(mode="json")
    out = kedit("show", tmp_path / "p").out
    lines = [line for line in out.splitlines() if line.startswith(tuple(patch.deltas))]
    assert [line.split()[1] for line in lines] == [delta.kind for delta in patch.deltas.values()]
    about = fields(out)
    assert about["made: dirty"] == "False" and about["made: environment.device"] == "cpu"
    assert about["made: datasets"] == "id org/facts, revision " + "3" * 40 + ", id mine"
    assert about["format"] == "2" and about["profile"] == "a" * 64


def test_for_people(tmp_path):
    make_patch().save(tmp_path / "p")
    done = kedit("show", tmp_path / "p")
    lines = [line.split() for line in done.out.splitlines()]
    assert ["generate", "reliability", "1.000"] in lines
    assert [PATH, "lowrank", "3", "x", "4", "-", "28", "1", "14"] in lines
    about = fields(done.out)
    assert about["made: tool"] == "kedit_hub" and about["bytes"] == "28 in all, 28 per edit"
    assert (about["format"], about["signed by"], about["signed as"]) == ("1", "nobody", "-")
    assert done.err == ""


def test_bytes_per_edit(tmp_path):
    patch = make_large_patch()
    patch.save(tmp_path / "p")
    told = kedit("show", tmp_path / "p", "--json").json["bytes"]
    total = sum(tensor.nbytes for delta in patch.deltas.values() for tensor in delta.to_tensors().values())
    assert told == {"total": total, "per_edit": total / 2}


def test_who_signed_what(tmp_path):
    sign(make_patch(), KEY, repo_id="ada/tower", version="1.2.0").save(tmp_path / "p")
    told = kedit("show", tmp_path / "p", "--json").json["signature"]
    assert told == {"signers": [public_key(KEY)], "repo_id": "ada/tower", "version": "1.2.0"}
    about = fields(kedit("show", tmp_path / "p").out)
    assert (about["signed by"], about["signed as"]) == (public_key(KEY), "ada/tower 1.2.0")


def test_files_of_the_folder(tmp_path):
    folder = make_patch().save(tmp_path / "p")
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    (folder / f"{HOSTILE}.bin").write_bytes(b"12345")
    (folder / "sub").mkdir()
    (folder / "link").symlink_to("/etc/hostname")
    told = {one["name"]: one for one in kedit("show", folder, "--json").json["files"]}
    assert {name: one["bytes"] for name, one in told.items() if one["of_patch"]} == sizes
    others = {name: (one["kind"], one["bytes"]) for name, one in told.items() if not one["of_patch"]}
    assert others == {f"{HOSTILE}.bin": ("file", 5), "sub": ("folder", None), "link": ("link", None)}
    out = kedit("show", folder).out
    assert "config.json" in out and "no part of a patch" in out
    assert all(char.isprintable() or char == "\n" for char in out)


def test_a_patch_of_a_hub_has_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("kedit_hub.pull", lambda ref: make_patch())
    assert kedit("show", "me/france", "--json").json["files"] is None
    assert "config.json" not in kedit("show", "me/france").out


def test_without_scores_it_says_how_to_get_some(tmp_path):
    make_patch(scores=False).save(tmp_path / "p")
    assert "kedit eval" in kedit("show", tmp_path / "p").err
    assert kedit("show", tmp_path / "p", "--json").json["scores"] == {}


@pytest.mark.parametrize("evals", [{"protocols": 1.0}, {"protocols": [1]}, {"protocols": {"a": None}, "rescored": 3}])
def test_odd_scores_are_passed_over(tmp_path, evals):
    make_patch().replace_evals(evals).save(tmp_path / "p")
    assert "kedit eval" in kedit("show", tmp_path / "p").err
    assert kedit("show", tmp_path / "p", "--json").json["scores"] == evals


@pytest.mark.parametrize(("reproduced", "said"), [(False, True), (True, False), (None, False)])
def test_scores_that_did_not_come_out_again(tmp_path, reproduced, said):
    patch = make_patch()
    patch.replace_evals({**patch.evals, "rescored": {"reproduced": reproduced}}).save(tmp_path / "p")
    assert ("did NOT" in kedit("show", tmp_path / "p").err) == said


def test_many_edits_are_counted_for_people_and_listed_for_programs(tmp_path):
    edits = [Edit(f"City {i} lies in", "Rome", f"City {i}") for i in range(50)]
    make_large_patch(edits=edits).save(tmp_path / "p")
    shown = kedit("show", tmp_path / "p").out
    assert "City 19 lies in" in shown and "City 20 lies in" not in shown and "and 30 more" in shown
    assert len(kedit("show", tmp_path / "p", "--json").json["edits"]) == 50


def test_long_lines_are_not_cut_in_a_pipe(tmp_path):
    make_patch("R" * 500).save(tmp_path / "p")
    assert "R" * 500 in kedit("show", tmp_path / "p").out


def test_no_text_of_a_patch_drives_the_terminal(tmp_path):
    make_large_patch(
        edits=[Edit(f"{HOSTILE} is", HOSTILE, ground_truth=HOSTILE), Edit("b", "c")], settings={"note": HOSTILE}
    ).replace_evals({"protocols": {HOSTILE: {HOSTILE: 1.0}}}).save(tmp_path / "p")
    done = kedit("show", tmp_path / "p")
    assert all(char.isprintable() or char == "\n" for char in done.out + done.err) and "Rome" in done.out
    assert kedit("show", tmp_path / "p", "--json").out.isascii()


def test_no_model_library_is_loaded(tmp_path):
    make_patch().save(tmp_path / "p")
    code = (
        "import sys\nfrom kedit_hub.cli import app\n"
        "for arguments in (['show', sys.argv[1]], ['diff', sys.argv[1], sys.argv[1]]):\n"
        "    try:\n        app(arguments)\n    except SystemExit as ended:\n        assert not ended.code\n"
        "heavy = {'transformers', 'accelerate', 'bitsandbytes', 'gradio'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "p")], capture_output=True, text=True, timeout=60, env=env
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert Patch.load(tmp_path / "p").id in done.stdout
