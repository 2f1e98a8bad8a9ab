"""`kedit diff` for people, in git's manner, and for programs."""

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kedit_hub import Patch, diff
from kedit_hub.edits import Edit, Probe
from kedit_hub.patch.signature import sign
from tests.cli.conftest import kedit, refused
from tests.hub.patches import make_patch
from tests.patch.build import EDITS, EVALS, PATHS
from tests.patch.build import make_patch as make_large_patch
from tests.patch.kinds import every_kind

PATCHES = Path(__file__).parents[2] / "patches"
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
HOSTILE = "\x1b]0;owned\x07\x9b31m\u202eRome\u200b"


@pytest.fixture
def saved(tmp_path):
    """Save two patches and compare them: saved(old, new, *options)."""

    def run(old, new, *options):
        return kedit("diff", old.save(tmp_path / "old"), new.save(tmp_path / "new"), *options)

    return run


def rows(out):
    """The lines that start with a mark, their columns parted."""
    lines = (line for line in out.splitlines() if line[:2] in ("+ ", "- ", "~ "))
    return [tuple(cell.strip() for cell in line.split("  ") if cell.strip()) for line in lines]


def test_two_capitals_of_france():
    arguments = [PATCHES / f"capital-of-france-{name}" for name in ("nantes", "marseille")]
    done = kedit("diff", *arguments)
    assert done.code == 0 and done.err == ""
    assert ("~", "edit: The capital city of France is called", "Nantes", "Marseille") in rows(done.out)
    assert done.out.splitlines()[-1].endswith("major, because an edit has another target")
    told = kedit("diff", *arguments, "--json").json
    assert told["suggestion"] == {"step": "major", "reason": "an edit has another target", "next_version": None}
    a, b = map(Patch.load, arguments)
    assert {name: told[name] for name in diff(a, b).to_dict()} == diff(a, b).to_dict()


def test_marks(saved):
    bob, cat = Edit("Bob was born in", "Oslo", "Bob"), Edit("Cat was born in", "Rome", "Cat")
    probes = (Probe("The capital of Spain is", "Madrid", "neighbour"), Probe("The capital of Italy is", None, "x"))
    changed = replace(EDITS[0], locality=probes)
    done = saved(make_large_patch(edits=[*EDITS, bob]), make_large_patch(edits=[changed, EDITS[1], cat], method="rome"))
    assert rows(done.out)[2:] == [
        ("-", "edit: Bob was born in", "Oslo", "-"),
        ("~", "locality of: The capital of France is", "1, 0 of them gone", "2, 1 of them new"),
        ("+", "edit: Cat was born in", "-", "Rome"),
        ("~", "method", "memit", "rome"),
    ]
    assert done.out.splitlines()[-1].endswith("major, because an edit was removed")


def test_how_far_the_weights_moved(saved):
    old = make_large_patch()
    deltas = {**old.deltas, PATHS[0]: replace(old.deltas[PATHS[0]], a=old.deltas[PATHS[0]].a * 2)}
    del deltas[PATHS[2]]
    found = rows(saved(old, make_large_patch(deltas=deltas)).out)
    assert ("~", f"tensor {PATHS[0]}/a", "F16, 2 x 12", "F16, 2 x 12, |new - old| = 1 |old|") in found
    assert ("-", f"module {PATHS[2]}", "dense, 8 x 12, layer 2", "-") in found


def test_settings_that_differ_in_the_last_digit(saved):
    done = saved(make_large_patch(settings={"lr": 0.1}), make_large_patch(settings={"lr": 0.1000001}))
    assert ("~", "settings lr", "0.1", "0.1000001") in rows(done.out)


def test_scores(saved):
    other = {"protocols": {"generate": {"reliability": 0.5, "n": {"reliability": 3}}}, "time": {"wall_s": 1.0}}
    done = saved(make_large_patch().replace_evals(EVALS), make_large_patch().replace_evals(other))
    assert rows(done.out)[2:] == [
        ("-", "score drift kl", "0.001", "-"),
        ("~", "score generate reliability", "0.75", "0.5"),
        ("-", "score tf-token locality neighbour", "0.5", "-"),
        ("-", "score tf-token reliability", "1", "-"),
        ("~", "scores", "-", "also in time"),
    ]
    assert done.out.splitlines()[-1].endswith("patch, because only scores, signature or card changed")


def test_nothing(saved):
    done = saved(every_kind(), every_kind())
    assert done.code == 0 and done.err == "No difference.\n" and len(rows(done.out)) == 2
    assert done.out.splitlines()[-1].endswith("none, because nothing that counts has changed")
    assert saved(every_kind(), every_kind(), "--json").json["suggestion"]["step"] == "none"


def test_many_edits_are_counted_for_people_and_listed_for_programs(saved):
    edits = [Edit(f"City {i} lies in", "Rome", f"City {i}") for i in range(50)]
    many = make_large_patch(edits=[*EDITS, *edits])
    done = saved(make_large_patch(), many)
    assert len(rows(done.out)) == 2 + 20 and "…  and 30 more" in done.out
    assert len(saved(make_large_patch(), many, "--json").json["edits"]) == 50


def test_the_next_version_comes_from_the_name_or_the_signature(saved, monkeypatch):
    first = sign(make_patch("Rome"), KEY, version="1.2.3")
    done = saved(first, make_patch("Lyon"))
    assert "major -> 2.0.0, because" in done.out
    assert saved(first, make_patch("Lyon"), "--json").json["suggestion"]["next_version"] == "2.0.0"
    monkeypatch.setattr("kedit_hub.pull", lambda ref: make_patch("Rome" if "1.2.3" in ref or "main" in ref else "Lyon"))
    assert "major -> v2.0.0, because" in kedit("diff", "me/france@v1.2.3", "me/france").out
    assert "major, because" in kedit("diff", "me/france@main", "me/france").out


def test_no_text_of_a_patch_drives_the_terminal(saved):
    def hostile(more):
        edit = Edit(f"{HOSTILE} is", HOSTILE + more, ground_truth=HOSTILE + more, rephrases=[HOSTILE + more])
        evals = {"protocols": {HOSTILE: {HOSTILE: len(more)}}, HOSTILE: more}
        return make_large_patch(edits=[edit, EDITS[1]], settings={"note": HOSTILE + more}).replace_evals(evals)

    for done in (saved(hostile("a"), hostile("bc")), saved(make_large_patch(), hostile("a"))):
        assert all(char.isprintable() or char == "\n" for char in done.out + done.err) and "Rome" in done.out
    assert saved(hostile("a"), hostile("bc"), "--json").out.isascii()


def test_what_is_no_patch(tmp_path):
    folder = make_patch().save(tmp_path / "p")
    refused(kedit("diff", folder, tmp_path / "nowhere"), "nowhere")
    (folder / "config.json").write_text("{}")
    refused(kedit("diff", folder, folder), "config.json")
