"""leaderboard submit, show and verify against a development hub."""

import json

import pytest

from kedit_hub.evaluate.run import RunsFile
from kedit_hub.hub.localhub import LocalHub
from kedit_hub.patch.keys import load_key, public_key
from kedit_hub.patch.trust import Rule, TrustPolicy
from tests.cli.conftest import ATLAS, kedit, refused
from tests.hub.boards import run

NAME = "ada/board"


@pytest.fixture
def hub(tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


def user(hub, tmp_path, name):
    """What a user adds to a command: the endpoint and the file of a token."""
    file = tmp_path / f"{name}.token"
    file.write_text(hub.create_user(name) + "\n")
    return ("--endpoint", hub.endpoint, "--token-file", file)


@pytest.fixture
def ada(hub, tmp_path):
    return user(hub, tmp_path, "ada")


@pytest.fixture
def keys(tmp_path):
    """{name: (file, public key)}"""
    for name in ("ada", "bob"):
        assert kedit("key", "new", "--out", tmp_path / f"{name}.pem").code == 0
    return {name: (tmp_path / f"{name}.pem", public_key(load_key(tmp_path / f"{name}.pem"))) for name in ("ada", "bob")}


def results(path, *runs):
    for one in runs:
        RunsFile(path).append(one)
    return path


def test_submit_and_show(hub, ada, keys, tmp_path):
    file = results(tmp_path / "runs.jsonl", run(0.5), run(0.75, "memit", base={"quantization": "nf4"}))
    done = kedit("leaderboard", "submit", file, NAME, "--key", keys["ada"][0], *ada, "--json")
    assert done.code == 0, done
    assert (done.json["runs"], done.json["signer"], done.json["is_new"]) == (2, keys["ada"][1], True)
    again = kedit("leaderboard", "submit", file, NAME, *ada)
    assert again.code == 0 and "already" in again.err

    at = ("--endpoint", hub.endpoint)
    told = kedit("leaderboard", "show", NAME, *at, "--json").json
    assert [contest["quantization"] for contest in told["contests"]] == [None, "nf4"]
    assert [row["value"]["mean"] for contest in told["contests"] for row in contest["rows"]] == [0.5, 0.75]
    shown = kedit("leaderboard", "show", NAME, *at, "--metric", "reliability")
    lines = shown.out.splitlines()
    assert lines[0].startswith("generate reliability · batch, 10 edit(s) · org/model") and "in nf4" in shown.out
    assert any(line.split()[:3] == ["1", "rome", "gated"] and "0.400 to 0.600" in line for line in lines)
    assert keys["ada"][1][:16] in shown.out and "2 rows at commit" in shown.err
    assert kedit("leaderboard", "show", NAME, *at, "--base", "org/none", "--json").json["contests"] == []
    assert (
        len(kedit("leaderboard", "show", NAME, *at, "--protocol", "tf-token", "--n", 10, "--json").json["contests"])
        == 2
    )


def test_show_works_without_a_hub(tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        ada = user(hub, tmp_path, "ada")
        assert kedit("leaderboard", "submit", results(tmp_path / "r.jsonl", run(0.5)), NAME, *ada).code == 0
        online = kedit("leaderboard", "show", NAME, "--endpoint", hub.endpoint)
    offline = kedit("leaderboard", "show", NAME, "--endpoint", hub.endpoint)
    assert offline.code == 0 and offline.out == online.out and "rome" in offline.out
    refused(
        kedit("leaderboard", "show", "bob/board", "--endpoint", hub.endpoint), "datasets/bob/board", "cannot be reached"
    )


def test_what_is_left_out_is_said_and_does_not_fail(hub, ada, tmp_path):
    from huggingface_hub import CommitOperationAdd, HfApi

    kedit("leaderboard", "submit", results(tmp_path / "r.jsonl", run(0.5)), NAME, *ada)
    bad = [CommitOperationAdd(path_in_repo=f"submissions/{i:064x}.jsonl", path_or_fileobj=b"{}\n") for i in range(13)]
    api = HfApi(endpoint=hub.endpoint, token=(tmp_path / "ada.token").read_text().strip())
    api.create_commit(NAME, bad, commit_message="bad", repo_type="dataset")
    done = kedit("leaderboard", "show", NAME, "--endpoint", hub.endpoint)
    assert done.code == 0 and done.err.count("Left out: submissions/") == 10 and "and 3 more files" in done.err
    told = kedit("leaderboard", "show", NAME, "--endpoint", hub.endpoint, "--json").json
    assert len(told["skipped"]) == 13 and "not those its name says" in told["skipped"][0]["reason"]


def test_refusals(hub, ada, keys, tmp_path):
    refused(kedit("leaderboard", "submit", tmp_path / "none.jsonl", NAME, *ada), "none.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n')
    refused(kedit("leaderboard", "submit", tmp_path / "bad.jsonl", NAME, *ada), "bad.jsonl", "kedit_run")
    file = results(tmp_path / "r.jsonl", run(0.5))
    refused(kedit("leaderboard", "submit", file, "board", *ada), "'board' is not the name of a board")
    refused(kedit("leaderboard", "show", NAME, "--endpoint", hub.endpoint), NAME)
    refused(kedit("leaderboard", "submit", file, NAME, "--endpoint", hub.endpoint))
    assert kedit("leaderboard", "submit", file, NAME, *ada).code == 0
    refused(
        kedit("leaderboard", "show", NAME, "--endpoint", hub.endpoint, "--metric", "speed"), "'speed'", "reliability"
    )
    for wrong in ((), ("--runs", file, "--run", "0" * 8), ("--run", "0" * 8), ("--runs", file, "--tolerance", "0.5")):
        assert kedit("leaderboard", "verify", NAME, "--key", keys["bob"][0], *wrong, *ada).code == 2
    for wrong in (("--suite", "batches"), ("--protocol", "generated"), ("--n", "0")):
        assert kedit("leaderboard", "show", NAME, *wrong).code == 2
    missing = ("--run", "0" * 8, "--edits", "test", "--out", tmp_path / "o")
    refused(kedit("leaderboard", "verify", NAME, "--key", keys["bob"][0], *missing, *ada), "names 0 runs")


def test_verify_with_runs_of_ones_own(hub, ada, keys, tmp_path):
    kedit(
        "leaderboard",
        "submit",
        results(tmp_path / "a.jsonl", run(0.5), run(0.9, "memit")),
        NAME,
        "--key",
        keys["ada"][0],
        *ada,
    )
    mine = results(tmp_path / "b.jsonl", run(0.51), run(0.5, "memit"))
    bob = user(hub, tmp_path, "bob")
    done = kedit("leaderboard", "verify", NAME, "--runs", mine, "--key", keys["bob"][0], "--pr", *bob)
    assert done.code == 1 and "reproduced" in done.out and "differs" in done.out and "Vouched for 1 run(s)" in done.err
    from huggingface_hub import HfApi

    HfApi(endpoint=hub.endpoint, token=(tmp_path / "ada.token").read_text().strip()).merge_pull_request(
        NAME, 1, repo_type="dataset"
    )
    policy = TrustPolicy(keys={"bob": keys["bob"][1]}, rules=[Rule(base="*", signers=["bob"])]).save(
        tmp_path / "kedit.trust"
    )
    shown = kedit("leaderboard", "show", NAME, "--endpoint", hub.endpoint, "--trust", policy).out
    assert [line.split()[1] for line in shown.splitlines() if "verified by bob" in line] == ["rome"]
    assert "attested by " + keys["bob"][1][:16] in kedit("leaderboard", "show", NAME, "--endpoint", hub.endpoint).out
    own = kedit("leaderboard", "verify", NAME, "--runs", mine, "--key", keys["ada"][0], *ada, "--json")
    assert own.code == 1 and len(own.json["own"]) == 2 and "nobody vouches for themselves" in own.err


def test_measure_submit_and_measure_again(hub, ada, keys, tmp_path):
    """The whole way on the demo model: Ada measures and submits, Bob measures that run again and vouches for it."""
    ask = (
        "--suite",
        "batch",
        "--method",
        "rome",
        "--base",
        ATLAS,
        "--edits",
        "test",
        "--n",
        "2",
        "--protocol",
        "generate",
    )
    assert kedit("bench", *ask, "--out", tmp_path / "a").code == 0
    done = kedit("leaderboard", "submit", tmp_path / "a" / "runs.jsonl", NAME, "--key", keys["ada"][0], *ada, "--json")
    assert done.code == 0 and "single edits are left out" in done.err
    (contest,) = kedit("leaderboard", "show", NAME, "--endpoint", hub.endpoint, "--json").json["contests"]
    (row,) = contest["rows"]
    assert (
        row["method"] == "rome"
        and row["mark"] == {"kind": "unchecked"}
        and contest["data"].startswith(("sha256 ", "edits "))
    )

    bob = user(hub, tmp_path, "bob")
    again = ("--run", row["runs"][0][:12], "--edits", "test", "--key", keys["bob"][0], "--pr", *bob)
    other = kedit("leaderboard", "verify", NAME, *again, "--limit", "5", "--out", tmp_path / "c")
    refused(other, "differs in: dataset")
    vouched = kedit("leaderboard", "verify", NAME, *again, "--out", tmp_path / "b", "--json")
    assert vouched.code == 0, vouched
    ((_, averages),) = vouched.json["reproduced"].items()
    assert averages["generate"]["score"] == row["value"]["mean"] and vouched.json["differs"] == {}
    proposed = kedit("leaderboard", "show", NAME, "--endpoint", hub.endpoint, "--revision", "refs/pr/1", "--json").json
    assert proposed["contests"][0]["rows"][0]["mark"] == {"kind": "attested", "keys": [keys["bob"][1]]}
    assert json.dumps(proposed).isascii()
