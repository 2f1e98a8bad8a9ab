"""`kedit trust`, and --trust wherever a patch is used."""

import os
import re
import shlex
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from huggingface_hub import constants

from kedit_hub import Patch
from kedit_hub.hub.localhub import LocalHub
from kedit_hub.hub.repo import push
from kedit_hub.patch.keys import public_key
from kedit_hub.patch.signature import sign
from kedit_hub.patch.trust import TrustPolicy
from tests.cli.conftest import ATLAS, CAPITAL, kedit, refused
from tests.hub.patches import make_patch

ADA, EVE = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
FRANCE = Path(__file__).resolve().parents[2] / "patches" / "capital-of-france-nantes"


@pytest.fixture(autouse=True)
def no_policy(monkeypatch):
    monkeypatch.delenv("KEDIT_TRUST", raising=False)


@pytest.fixture
def policy(tmp_path):
    """A file that trusts Ada's key."""
    file = tmp_path / "kedit.trust"
    assert kedit("trust", "new", "--out", file, "--key", f"ada={public_key(ADA)}").code == 0
    return file


@pytest.fixture
def france(tmp_path):
    """A patch of the demo model, unsigned and signed by Ada and by Eve."""
    patch = Patch.load(FRANCE)
    return {
        "nobody": patch.save(tmp_path / "plain"),
        "ada": sign(patch, ADA).save(tmp_path / "by-ada"),
        "eve": sign(patch, EVE).save(tmp_path / "by-eve"),
    }


# --- new ----------------------------------------------------------------------------------------------------------


def test_a_new_policy(tmp_path):
    file = tmp_path / "kedit.trust"
    done = kedit(
        "trust", "new", "--out", file, "--key", f"ada={public_key(ADA)}", "--key", f"eve={public_key(EVE)}",
        "--author", "our-lab", "--base", "org/model", "--json",
    )  # fmt: skip
    assert done.code == 0, done
    keys = {"ada": public_key(ADA), "eve": public_key(EVE)}
    rule = {"base": "org/model", "signers": ["ada", "eve"], "authors": ["our-lab"]}
    assert done.json == {"file": str(file), "keys": keys, "rules": [rule]}
    read = TrustPolicy.load(file)
    assert read.keys == keys and [one.model_dump(mode="json") for one in read.rules] == [rule]
    assert f"--trust {file}" in done.err


def test_a_policy_is_never_overwritten(policy):
    before = policy.read_bytes()
    refused(kedit("trust", "new", "--out", policy, "--author", "eve"), str(policy), "exists")
    assert policy.read_bytes() == before


@pytest.mark.parametrize(
    "wrong",
    [
        (),  # would trust everybody
        ("--base", "org/model"),
        ("--key", public_key(ADA)),
        ("--key", f"={public_key(ADA)}"),
        ("--key", "ada="),
        ("--key", f"ada={public_key(ADA)}", "--key", f"ada={public_key(EVE)}"),
    ],
)
def test_wrong_usage_of_new(tmp_path, wrong):
    done = kedit("trust", "new", "--out", tmp_path / "kedit.trust", *wrong)
    assert done.code == 2 and done.out == "" and not (tmp_path / "kedit.trust").exists()


@pytest.mark.parametrize(
    ("wrong", "quoted"),
    [
        (("--key", "ada=abc"), "'abc'"),
        (("--key", f"a da={public_key(ADA)}"), "a da"),
        (("--key", f"a={public_key(ADA)}", "--key", f"b={public_key(ADA)}"), public_key(ADA)),
        (("--author", "ada/tower"), "'ada/tower'"),
        (("--author", "ada", "--base", "../model"), "'../model'"),
        (("--author", "ada", "--author", "Ada"), "'ada'"),
    ],
)
def test_a_policy_that_would_not_hold_is_not_written(tmp_path, wrong, quoted):
    refused(kedit("trust", "new", "--out", tmp_path / "kedit.trust", *wrong), quoted)
    assert not (tmp_path / "kedit.trust").exists()


# --- check --------------------------------------------------------------------------------------------------------


def test_check_prints_the_trace(policy, france):
    done = kedit("trust", "check", france["ada"], "--trust", policy)
    assert done.code == 0 and "holds: signed by ada" in done.out and "Trusted by rule 1." in done.err
    told = kedit("trust", "check", france["ada"], "--trust", policy, "--json").json
    assert told == {
        "patch": str(france["ada"]), "id": Patch.load(FRANCE).id, "base": ATLAS, "author": None,
        "signers": [public_key(ADA)], "trusted": True,
        "reasons": [{"rule": 1, "holds": True, "why": "holds: signed by ada"}],
    }  # fmt: skip


def test_check_of_a_distrusted_patch_exits_1_and_prints_the_trace_too(policy, france):
    done = kedit("trust", "check", france["eve"], "--trust", policy)
    assert done.code == 1 and f"the patch is signed by {public_key(EVE)}" in done.out
    assert "refuses patch" in done.err and "rule 1: wants a signature by ada" in done.err
    done = kedit("trust", "check", france["nobody"], "--trust", policy, "--json")
    assert done.code == 1 and (done.json["trusted"], done.json["signers"]) == (False, [])


def test_check_without_a_policy_or_with_a_bad_one(tmp_path, france, monkeypatch):
    refused(kedit("trust", "check", france["ada"]), "--trust", "KEDIT_TRUST")
    refused(kedit("trust", "check", france["ada"], "--trust", tmp_path / "missing"), "missing")
    monkeypatch.setenv("KEDIT_TRUST", "")
    refused(kedit("trust", "check", france["ada"]), "KEDIT_TRUST")


# --- using patches ------------------------------------------------------------------------------------------------


def use(command, folder, tmp_path):
    return {
        "ask": ("ask", CAPITAL, "--patch", folder),
        "eval": ("eval", folder),
        "stack": ("stack", "status", folder),
        "stack --no-base": ("stack", "status", folder, "--no-base"),
        "export": ("export", folder, "--out", tmp_path / "out"),
    }[command]


COMMANDS = ["ask", "eval", "stack", "stack --no-base", "export"]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_uses_what_is_not_trusted(command, policy, france, tmp_path, monkeypatch):
    line = use(command, france["nobody"], tmp_path)
    refused(kedit(*line, "--trust", policy), "refuses patch", "not trusted")
    monkeypatch.setenv("KEDIT_TRUST", str(policy))
    refused(kedit(*line), "refuses patch", "not trusted")
    refused(kedit(*use(command, france["eve"], tmp_path)), "refuses patch")
    monkeypatch.setenv("KEDIT_TRUST", str(tmp_path / "missing"))
    refused(kedit(*line), "missing")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["ask", "stack", "stack --no-base", "export"])
def test_commands_use_what_is_trusted(command, policy, france, tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_TRUST", str(tmp_path / "missing"))  # the option comes first
    done = kedit(*use(command, france["ada"], tmp_path), "--trust", policy)
    assert done.code == 0, done


def test_asking_the_base_alone_needs_no_trust(policy):
    assert kedit("ask", CAPITAL, "--trust", policy).code == 0


# --- hubs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


def test_pull_obeys_a_policy(hub, tmp_path, monkeypatch):
    for user in ("our-lab", "mallory"):
        push(make_patch(), f"{user}/tower", token=hub.create_user(user), endpoint=hub.endpoint)
    file, at = tmp_path / "kedit.trust", ("--endpoint", hub.endpoint)
    assert kedit("trust", "new", "--out", file, "--author", "Our-Lab").code == 0
    assert kedit("pull", "our-lab/tower", *at, "--trust", file).code == 0
    line = ("pull", "mallory/tower", *at, "--out", tmp_path / "out")
    refused(kedit(*line, "--trust", file), "'mallory'", "not trusted")
    monkeypatch.setenv("KEDIT_TRUST", str(file))
    refused(kedit(*line), "'mallory'")
    assert not (tmp_path / "out").exists()
    monkeypatch.delenv("KEDIT_TRUST")
    assert kedit(*line).code == 0


@pytest.fixture
def named_hub(hub, monkeypatch, tmp_path):
    """A hub that commands find without --endpoint, as user ada."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_TOKEN", hub.create_user("ada"))
    return hub


def signed(target, key=ADA, version=None):
    return sign(make_patch(target), key, repo_id="ada/tower", version=version)


def test_another_signer_is_refused_until_the_first_is_forgotten(hub):
    at = {"endpoint": hub.endpoint, "token": hub.create_user("ada")}
    line = ("pull", "ada/tower", "--endpoint", hub.endpoint)
    push(signed("Rome"), "ada/tower", **at)
    assert kedit(*line).code == 0
    push(signed("Lyon", EVE), "ada/tower", **at)
    done = kedit(*line)
    refused(done, public_key(ADA), public_key(EVE))
    remedy = done.err.split("run: ")[1].split("  and")[0]
    assert remedy == f"kedit trust forget ada/tower --endpoint {hub.endpoint}"
    assert kedit(*remedy.split()[1:], "--json").json == {"repo_id": "ada/tower", "forgotten": True}
    assert kedit(*line).code == 0
    assert "nothing was remembered" in kedit("trust", "forget", "ada/other", "--endpoint", hub.endpoint).out
    refused(kedit("trust", "forget", "not a repo"), "not a repo")


def test_old_content_gives_a_warning_unless_it_was_asked_for(named_hub):
    old = push(signed("Rome", version="1.0.0"), "ada/tower", version="1.0.0")
    push(signed("Lyon", version="1.1.0"), "ada/tower", version="1.1.0")
    assert "Warning" not in kedit("pull", "ada/tower").err
    for ref in ("ada/tower@v1.0.0", f"ada/tower@{old.commit}"):
        assert "Warning" not in kedit("pull", ref).err
    push(signed("Rome", version="1.0.0"), "ada/tower")
    done = kedit("pull", "ada/tower")
    assert done.code == 0 and "Warning: 'ada/tower' now holds version 1.0.0" in done.err


def test_every_command_of_the_guide(named_hub, tmp_path, monkeypatch):
    """docs/trust.md from its first line to its last, as a reader would type it; the state it leaves is what it says."""
    page = Path(__file__).resolve().parents[2] / "docs" / "trust.md"
    lines = "".join(re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)).splitlines()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    Patch.load(FRANCE).save("my-patch")
    ran = []
    for line in lines:
        command, *words = shlex.split(os.path.expandvars(line), comments=True)
        if command == "export":
            name, _, value = words[0].partition("=")
            monkeypatch.setenv(name, value)
            continue
        done = kedit(*words)
        assert (command, done.code) == ("kedit", 0), (line, done)
        ran.append(" ".join(words[:2]))
        if words[:2] == ["key", "new"]:
            monkeypatch.setenv("ADA", done.out.split()[1])
        elif words[0] == "ask":
            assert "Nantes" in done.out
        elif words[:2] == ["trust", "check"]:
            assert "signed by ada" in done.out
    assert ran == [
        "key new", "sign my-patch", "push my-patch", "trust new", "trust check", f"ask {CAPITAL}", "pull ada/capital",
        "trust forget",
    ]  # fmt: skip
    refused(kedit("ask", CAPITAL, "--patch", FRANCE), "not trusted")  # KEDIT_TRUST is still set
