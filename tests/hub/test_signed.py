"""Signed patches on a hub: pushed byte for byte, checked on every pull, and of no use in another place or under another tag."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kedit_hub.errors import HubError, LimitError, SignatureError
from kedit_hub.hub.localhub import LocalHub
from kedit_hub.hub.ref import HubRef
from kedit_hub.hub.repo import pull, push, resolve
from kedit_hub.patch import Patch
from kedit_hub.patch.keys import public_key
from kedit_hub.patch.signature import sign

from .patches import make_patch

ADA, BOB = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
ALL = ["README.md", "config.json", "evals.json", "patch.safetensors", "signature.json"]


@pytest.fixture
def at(hub, ada):
    return {"endpoint": hub.endpoint, "token": ada.token}


@pytest.fixture
def cache(hub, tmp_path):
    return {"endpoint": hub.endpoint, "token": False, "cache_dir": tmp_path / "cache"}


def signed(target="Rome", key=ADA, repo_id="ada/tower", version=None, **how):
    return sign(make_patch(target, **how), key, repo_id=repo_id, version=version)


def stored(api, repo_id, tmp_path, revision=None):
    """{name: bytes} of a repo, as a stranger sees them."""
    return {
        name: open(api.hf_hub_download(repo_id, name, revision=revision, cache_dir=tmp_path / "seen"), "rb").read()
        for name in api.list_repo_files(repo_id, revision=revision)
    }


def put(api, repo_id, files, message="by hand"):
    """A commit as somebody makes it who does not use kedit."""
    from huggingface_hub import CommitOperationAdd

    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in files.items()]
    return api.create_commit(repo_id, operations, commit_message=message).oid


def test_pushed_byte_for_byte_and_pulled(ada, at, cache, tmp_path):
    patch = signed(version="1.2.0")
    done = push(patch, "ada/tower", version="1.2.0", **at)
    assert stored(ada, "ada/tower", tmp_path) == patch.files() and sorted(patch.files()) == ALL
    for ref in ("ada/tower", "ada/tower@v1.2.0", f"ada/tower@{done.commit}", resolve("ada/tower@v1.2.0", **cache)):
        pulled = pull(ref, **cache)
        assert pulled == patch and pulled.signers == (public_key(ADA),) and pulled.signature == patch.signature
    folder = pull("ada/tower", **cache).save(tmp_path / "p", "ada/tower")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == patch.files()
    assert push(Patch.load(folder), "ada/tower", **at).commit == done.commit  # nothing is new


def test_a_statement_about_no_repo_holds_in_all(ada, at, cache, tmp_path):
    patch = sign(make_patch(), ADA)
    for repo_id in ("ada/tower", "ada/copy"):
        push(patch, repo_id, version="3.0.0", **at)
        assert stored(ada, repo_id, tmp_path) == patch.files()
        assert pull(f"{repo_id}@v3.0.0", **cache).signers == patch.signers


def test_a_push_to_another_repo_is_refused(ada, at):
    with pytest.raises(HubError, match=r"was signed for 'ada/tower', not for 'ada/other'; nothing was pushed"):
        push(signed(), "ada/other", **at)
    assert not ada.repo_exists("ada/other")


def test_a_push_as_another_version_is_refused(ada, at):
    with pytest.raises(HubError, match=r"was signed as version 1\.2\.0, not v1\.3\.0; nothing was pushed"):
        push(signed(version="1.2.0"), "ada/tower", version="1.3.0", **at)
    assert not ada.repo_exists("ada/tower")
    assert push(signed(version="1.2.0"), "ada/tower", version="v1.2.0", **at).tag == "v1.2.0"


def test_an_unsigned_push_takes_the_signature_away(ada, at, cache):
    push(signed(), "ada/tower", **at)
    push(make_patch("Lyon", scores=False), "ada/tower", **at)
    assert sorted(ada.list_repo_files("ada/tower")) == ["README.md", "config.json", "patch.safetensors"]
    assert pull("ada/tower", **cache).signers == ()


def test_the_same_patch_unsigned_again(ada, at, cache):
    """Only the signature and the card's usage differ, and the old signature does not stay."""
    push(signed(), "ada/tower", **at)
    push(make_patch(), "ada/tower", **at)
    assert "signature.json" not in ada.list_repo_files("ada/tower") and pull("ada/tower", **cache).signature is None


def test_pulled_offline_by_tag_and_commit(tmp_path):
    there = {"cache_dir": tmp_path / "cache", "token": False}
    patch = signed(version="1.2.0")
    with LocalHub(tmp_path / "hub") as hub:
        there["endpoint"] = hub.endpoint
        done = push(patch, "ada/tower", version="1.2.0", endpoint=hub.endpoint, token=hub.create_user("ada"))
        pull("ada/tower@v1.2.0", **there)
    for ref in ("ada/tower@v1.2.0", f"ada/tower@{done.commit}"):
        assert pull(ref, **there).files() == patch.files()
    (card,) = there["cache_dir"].rglob("README.md")
    blob = card.resolve()
    blob.write_bytes(blob.read_bytes() + b"\n")
    with pytest.raises(HubError, match=r"cached copy of README\.md .*is damaged"):
        pull("ada/tower@v1.2.0", **there)


def test_a_signed_patch_in_the_cache_costs_no_request(at, cache, caplog):
    done = push(signed(), "ada/tower", **at)
    pull(f"ada/tower@{done.commit}", **cache)
    caplog.set_level("INFO", logger="kedit_hub.hub.localhub")
    pull(f"ada/tower@{done.commit}", **cache)
    assert caplog.text == ""


def test_what_is_not_part_of_the_patch_stays_and_is_not_fetched(ada, at, cache):
    push(signed(), "ada/tower", **at)
    put(ada, "ada/tower", {".gitattributes": b"x", "pytorch_model.bin": b"MZ"})
    assert pull("ada/tower", **cache).signers == (public_key(ADA),)
    assert not list(cache["cache_dir"].rglob("*.bin"))


@pytest.mark.parametrize("name", ["README.md", "config.json", "evals.json", "patch.safetensors", "signature.json"])
def test_a_file_changed_in_the_repo(ada, at, cache, name):
    push(signed(), "ada/tower", **at)
    put(ada, "ada/tower", {name: signed("Reykjavik", BOB).files()[name]})
    with pytest.raises(SignatureError, match=r"'ada/tower@[0-9a-f]{40}' is refused: .* is not what was signed"):
        pull("ada/tower", **cache)


@pytest.mark.parametrize("name", ["README.md", "evals.json"])
def test_a_file_deleted_from_the_repo(ada, at, cache, name):
    push(signed(), "ada/tower", **at)
    ada.delete_file(name, "ada/tower")
    with pytest.raises(SignatureError, match=f"'{name}' was signed and is missing"):
        pull("ada/tower", **cache)


def test_a_stripped_signature_leaves_an_unsigned_patch(ada, at, cache):
    """It loads, as anything unsigned does; that nobody signed it is what a trust policy judges."""
    push(signed(), "ada/tower", **at)
    ada.delete_file("signature.json", "ada/tower")
    assert pull("ada/tower", **cache).signers == ()


def test_a_copy_in_another_repo(ada, at, cache, tmp_path):
    push(signed(), "ada/tower", **at)
    ada.create_repo("ada/copy")
    put(ada, "ada/copy", stored(ada, "ada/tower", tmp_path))
    with pytest.raises(SignatureError, match=r"'ada/copy@.*' is refused: its patch was signed for 'ada/tower'"):
        pull("ada/copy", **cache)


@pytest.mark.parametrize("way", ["tag", "commit"])
def test_a_moved_tag(ada, at, cache, way):
    """v2.0.0 is pointed at the commit of version 1.0.0, to bring an old mistake back."""
    old = push(signed("Lyon", version="1.0.0"), "ada/tower", version="1.0.0", **at)
    push(signed(version="2.0.0"), "ada/tower", version="2.0.0", **at)
    assert pull("ada/tower@v2.0.0", **cache).edits[0].target == "Rome"
    ada.delete_tag("ada/tower", tag="v2.0.0")
    ada.create_tag("ada/tower", tag="v2.0.0", revision=old.commit)
    ref = "ada/tower@v2.0.0" if way == "tag" else resolve("ada/tower@v2.0.0", **cache)
    with pytest.raises(SignatureError, match=r"'ada/tower@v2\.0\.0' is refused: .*signed as version 1\.0\.0.*moved"):
        pull(ref, **cache)
    assert pull("ada/tower@v1.0.0", **cache).edits[0].target == "Lyon"
    assert pull(f"ada/tower@{old.commit}", **cache).edits[0].target == "Lyon"  # who asks for a commit gets it


def test_a_card_over_the_bound_is_not_fetched(ada, at, cache, monkeypatch):
    from kedit_hub.hub import repo

    push(signed(), "ada/tower", **at)
    monkeypatch.setitem(repo._BOUNDS, "README.md", 10)
    with pytest.raises(LimitError, match=r"README\.md of 'ada/tower@.*at most 10 are read"):
        pull("ada/tower", **cache)
    assert not list(cache["cache_dir"].rglob("README.md"))


def test_files_of_two_versions_do_not_mix(ada, at, cache, tmp_path):
    """Scores of one signed version beside another one's signature: each file is genuine, the set is not."""
    push(signed(version="1.0.0", scores=False), "ada/tower", **at)
    put(ada, "ada/tower", {"evals.json": make_patch().files()["evals.json"]})
    with pytest.raises(SignatureError, match=r"'evals\.json' lies beside the signed files"):
        pull("ada/tower", **cache)


def test_a_resolved_commit_is_a_ref_like_any_other(at, cache):
    done = push(signed(), "ada/tower", **at)
    pinned = resolve("ada/tower", **cache)
    assert isinstance(pinned, HubRef) and pinned.is_pinned and str(pinned) == f"ada/tower@{done.commit}"
    assert (pinned.asked, resolve(str(pinned), **cache).asked) == (None, None)
    assert resolve(pinned, **cache) == pinned and pull(pinned, **cache).signers


def test_two_signers_over_a_hub(at, cache, tmp_path):
    push(signed(), "ada/tower", **at)
    both = sign(pull("ada/tower", **cache), BOB)
    push(both, "ada/tower", **at)
    assert pull("ada/tower", **cache).signers == tuple(sorted([public_key(ADA), public_key(BOB)]))
    assert json.loads(both.files()["signature.json"])["statement"]["repo_id"] == "ada/tower"
