"""Pulls from a hub are compared with what was pulled before: another hand, and old content, are noticed."""

import warnings

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from kedit_hub.errors import HubError
from kedit_hub.hub.localhub import LocalHub
from kedit_hub.hub.repo import pull, push, resolve
from kedit_hub.hub.seen import check, forget
from kedit_hub.patch.keys import public_key
from kedit_hub.patch.signature import SIGNATURE, sign

from .patches import make_patch

ADA, EVE = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path / "kedit-home"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def at(hub, ada):
    return {"endpoint": hub.endpoint, "token": ada.token}


@pytest.fixture
def cache(hub, tmp_path):
    return {"endpoint": hub.endpoint, "token": False, "cache_dir": tmp_path / "cache"}


def signed(target, key=ADA, version=None):
    return sign(make_patch(target), key, repo_id="ada/tower", version=version)


def test_the_same_signer_goes_on(at, cache):
    for target in ("Rome", "Lyon", "Oslo"):
        push(signed(target), "ada/tower", **at)
        assert pull("ada/tower", **cache) == make_patch(target)


def test_same_name_other_signer(hub, at, cache):
    push(signed("Rome"), "ada/tower", **at)
    pull("ada/tower", **cache)
    taken = push(signed("Lyon", EVE), "ada/tower", **at)  # with ada's account, not with her key
    for ref in ("ada/tower", f"ada/tower@{taken.commit}", resolve("ada/tower", **cache)):
        with pytest.raises(HubError, match=f"signed by {public_key(ADA)} .* now is signed by {public_key(EVE)}"):
            pull(ref, **cache)
    forget(hub.endpoint, "ada/tower")
    assert pull("ada/tower", **cache) == make_patch("Lyon")


def test_a_repo_deleted_and_registered_again(ada, at, cache):
    push(signed("Rome"), "ada/tower", **at)
    pull("ada/tower", **cache)
    ada.delete_repo("ada/tower")
    push(make_patch("Lyon"), "ada/tower", **at)
    with pytest.raises(HubError, match="what it holds now is not signed"):
        pull("ada/tower", **cache)


def test_the_signature_stripped(ada, at, cache):
    """What the hub, or whoever can write there, could do to slip changed scores or another patch in."""
    push(signed("Rome"), "ada/tower", **at)
    pull("ada/tower", **cache)
    ada.create_commit("ada/tower", [CommitOperationDelete(SIGNATURE)], commit_message="tidy up")
    with pytest.raises(HubError, match="what it holds now is not signed"):
        pull("ada/tower", **cache)


def test_rollback_on_main(ada, at, cache):
    old = signed("Rome", version="1.0.0")
    push(old, "ada/tower", version="1.0.0", **at)
    push(signed("Lyon", version="1.1.0"), "ada/tower", version="1.1.0", **at)
    assert pull("ada/tower", **cache) == make_patch("Lyon")
    files = [CommitOperationAdd(name, data) for name, data in old.files().items()]
    rolled = ada.create_commit("ada/tower", files, commit_message="newer than ever")
    for ref in ("ada/tower", "ada/tower@main", resolve("ada/tower", **cache)):
        with pytest.warns(UserWarning, match=r"now holds version 1\.0\.0, and version 1\.1\.0 was pulled before"):
            assert pull(ref, **cache) == old
    for ref in ("ada/tower@v1.0.0", f"ada/tower@{rolled.oid}"):  # asked for: no warning
        assert pull(ref, **cache) == old
    assert pull("ada/tower@v1.1.0", **cache) == make_patch("Lyon")


def test_a_pull_request_to_a_signed_repo(hub, bob, at, cache):
    push(signed("Rome"), "ada/tower", **at)
    pull("ada/tower", **cache)
    opened = push(make_patch("Lyon"), "ada/tower", create_pr=True, endpoint=hub.endpoint, token=bob.token)
    assert pull("ada/tower@refs/pr/1", **cache) == make_patch("Lyon")
    with pytest.raises(HubError, match="what it holds now is not signed"):
        pull(f"ada/tower@{opened.commit}", **cache)  # as if it were ada's own
    assert pull("ada/tower", **cache) == make_patch("Rome")


def test_unsigned_repos_are_pulled_as_ever(tmp_path, at, cache):
    for target in ("Rome", "Lyon"):
        push(make_patch(target), "ada/tower", **at)
        assert pull("ada/tower", **cache) == make_patch(target)
    assert not (tmp_path / "kedit-home").exists()


def test_offline_too(tmp_path):
    with LocalHub(tmp_path / "its-hub") as hub:
        done = push(signed("Rome"), "ada/tower", endpoint=hub.endpoint, token=hub.create_user("ada"))
        there = {"endpoint": hub.endpoint, "token": False, "cache_dir": tmp_path / "cache"}
        pull("ada/tower", **there)
    ref = f"ada/tower@{done.commit}"
    assert pull(ref, **there) == make_patch("Rome")
    forget(there["endpoint"], "ada/tower")
    check(there["endpoint"], "ada/tower", None, signed("Rome", EVE))  # had another hand been the first that was seen
    with pytest.raises(HubError, match="now is signed by"):
        pull(ref, **there)
