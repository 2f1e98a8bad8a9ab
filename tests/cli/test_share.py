"""push, pull and find against a development hub, and where tokens come from."""

import json

import pytest

from kedit_hub import Patch
from kedit_hub.commands.options import token_for
from kedit_hub.errors import HubError
from kedit_hub.hub.localhub import LocalHub
from tests.cli.conftest import kedit, refused
from tests.hub.patches import make_patch


@pytest.fixture
def hub(tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def ada(hub, tmp_path):
    """What ada adds to a command: the endpoint and the file of her token."""
    file = tmp_path / "ada.token"
    file.write_text(hub.create_user("ada") + "\n")
    return ("--endpoint", hub.endpoint, "--token-file", file)


def test_push_pull_find(hub, ada, tmp_path):
    patch = make_patch()
    patch.save(tmp_path / "p")
    done = kedit("push", tmp_path / "p", "ada/tower", "--version", "1.0.0", *ada, "--json")
    assert done.code == 0, done
    pushed = done.json
    assert (pushed["repo_id"], pushed["tag"], pushed["pr_url"]) == ("ada/tower", "v1.0.0", None)
    assert "kedit pull ada/tower@v1.0.0" in done.err

    at = ("--endpoint", hub.endpoint)
    told = kedit("pull", "ada/tower@v1.0.0", *at, "--out", tmp_path / "q", "--json").json
    assert told == {
        "repo_id": "ada/tower", "commit": pushed["commit"], "id": patch.id, "folder": str(tmp_path / "q"),
    }  # fmt: skip
    assert Patch.load(tmp_path / "q").id == patch.id
    assert "ada/tower" in (tmp_path / "q" / "README.md").read_text("utf-8")
    assert kedit("pull", "ada/tower", *at).out.split()[1] == "ada/tower"

    (found,) = kedit("hub", "find", "--base", "org/base", *at, "--json").json
    assert (found["repo_id"], found["commit"], found["method"]) == ("ada/tower", pushed["commit"], "memit")
    assert kedit("hub", "find", "nothing-like-it", *at, "--json").json == []
    assert "ada/tower" in kedit("hub", "find", "tower", *at).out


def test_a_version_that_is_taken(ada, tmp_path):
    make_patch().save(tmp_path / "p")
    assert kedit("push", tmp_path / "p", "ada/tower", "--version", "v1.0.0", *ada).code == 0
    refused(kedit("push", tmp_path / "p", "ada/tower", "--version", "v1.0.0", *ada), "v1.0.0")


def test_a_pull_request(hub, ada, tmp_path):
    make_patch("Rome").save(tmp_path / "p")
    make_patch("Lyon").save(tmp_path / "q")
    assert kedit("push", tmp_path / "p", "ada/tower", *ada).code == 0
    file = tmp_path / "bob.token"
    file.write_text(hub.create_user("bob"))
    bob = ("--endpoint", hub.endpoint, "--token-file", file)
    refused(kedit("push", tmp_path / "q", "ada/tower", *bob))
    assert kedit("push", tmp_path / "q", "ada/tower", "--pr", *bob, "--json").json["pr_url"]


def test_a_private_repo(hub, ada, tmp_path):
    make_patch().save(tmp_path / "p")
    assert kedit("push", tmp_path / "p", "ada/secret", "--private", *ada).code == 0
    refused(kedit("pull", "ada/secret", "--endpoint", hub.endpoint), "ada/secret")
    assert kedit("pull", "ada/secret", *ada).code == 0


def test_no_token_is_ever_shown(hub, tmp_path):
    make_patch().save(tmp_path / "p")
    secret = "hf_" + "5" * 40
    (tmp_path / "wrong.token").write_text(secret)
    given = ("--endpoint", hub.endpoint, "--token-file", tmp_path / "wrong.token")
    done = kedit("push", tmp_path / "p", "ada/tower", *given)
    refused(done)
    assert secret not in done.out + done.err


def test_no_hub(tmp_path):
    make_patch().save(tmp_path / "p")
    refused(kedit("push", tmp_path / "p", "ada/tower", "--endpoint", "http://127.0.0.1:9"), "127.0.0.1:9")


@pytest.mark.parametrize("content", ["", "\n", "two tokens", "hf_a\nhf_b", "é", "x" * 1001])
def test_a_token_file_that_holds_none(tmp_path, content):
    (tmp_path / "t").write_text(content, encoding="utf-8")
    with pytest.raises(HubError, match="does not hold one token") as error:
        token_for(None, tmp_path / "t")
    assert len(content.strip()) < 3 or content not in str(error.value)


def test_the_stored_login_goes_to_its_own_hub_only(monkeypatch, tmp_path):
    from huggingface_hub import constants

    assert token_for(None, None) is None and token_for(constants.ENDPOINT + "/", None) is None
    assert token_for("http://127.0.0.1:9", None) is False
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert token_for("http://127.0.0.1:9", None) is None  # huggingface_hub reads the variable
    (tmp_path / "t").write_text(" hf_other\n")
    assert token_for("http://127.0.0.1:9", tmp_path / "t") == "hf_other"


def test_hf_token_is_used(hub, tmp_path, monkeypatch):
    make_patch().save(tmp_path / "p")
    refused(kedit("push", tmp_path / "p", "ada/tower", "--endpoint", hub.endpoint))
    monkeypatch.setenv("HF_TOKEN", hub.create_user("ada"))
    done = kedit("push", tmp_path / "p", "ada/tower", "--endpoint", hub.endpoint, "--json")
    assert json.loads(done.out)["repo_id"] == "ada/tower"
