"""6 · A name re-registered or transferred (Unit 42, "Model Namespace Reuse", 2025): the repo is there, its owner is another.

A signed repo is remembered with its signers; when it changes hands it is refused, not loaded. What was pinned by commit and
content stays what it was, with or without the hub.
"""

import warnings

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from kedit_hub.errors import HubError, KeditError, SignatureError
from kedit_hub.hub import seen
from kedit_hub.hub.repo import pull, push
from kedit_hub.patch.keys import public_key
from kedit_hub.patch.signature import sign
from kedit_hub.patch.trust import Distrusted, Rule, Trusted, TrustPolicy
from tests.hub.patches import make_patch

ADA, EVE = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
REPO = "ada/tower"


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path / "home"))


@pytest.fixture
def at(hub, ada):
    return {"endpoint": hub.endpoint, "token": ada.token}


@pytest.fixture
def there(hub, tmp_path):
    return {"endpoint": hub.endpoint, "token": False, "cache_dir": tmp_path / "cache"}


def signed(target: str, key: Ed25519PrivateKey, repo_id: str | None = REPO, version: str | None = None):
    return sign(make_patch(target), key, repo_id=repo_id, version=version)


@pytest.fixture
def known(ada, at, there):
    """The commit of ada's signed patch, which has been pulled once."""
    done = push(signed("Rome", ADA), REPO, version="1.0.0", **at)
    pull(REPO, **there)
    return done.commit


@pytest.mark.parametrize("new", ["unsigned", "signed by the new owner", "signed for another repo"])
def test_deleted_and_registered_again(ada, at, there, known, new):
    ada.delete_repo(REPO)
    patch = {
        "unsigned": lambda: make_patch("Lyon"),
        "signed by the new owner": lambda: signed("Lyon", EVE),
        "signed for another repo": lambda: make_patch("Lyon"),
    }[new]()
    push(patch, REPO, version="1.0.0", **at)
    if new == "signed for another repo":
        files = signed("Lyon", EVE, "eve/tower").files()
        ada.create_commit(REPO, [CommitOperationAdd(n, d) for n, d in files.items()], commit_message="x")
    with pytest.raises((HubError, SignatureError), match=f"{REPO}.* (was signed|is refused)"):
        pull(REPO, **there)


@pytest.mark.parametrize("ref", [REPO, f"{REPO}@main", f"{REPO}@v2.0.0"])
def test_taken_over_in_place(at, there, known, ref):
    """The account is robbed, the key is not."""
    push(signed("Lyon", EVE), REPO, version="2.0.0", **at)
    with pytest.raises(HubError, match=f"signed by {public_key(ADA)} .* now is signed by {public_key(EVE)}"):
        pull(ref, **there)


def test_the_signature_is_taken_away(ada, at, there, known):
    ada.create_commit(REPO, [CommitOperationDelete("signature.json")], commit_message="tidy up")
    with pytest.raises(HubError, match="what it holds now is not signed"):
        pull(REPO, **there)


def test_what_was_pinned_is_what_it_was(ada, at, there, known):
    ada.delete_repo(REPO)
    push(make_patch("Lyon"), REPO, **at)
    assert pull(f"{REPO}@{known}", **there) == make_patch("Rome")


def test_case_is_no_way_around(ada, at, there, known):
    push(signed("Lyon", EVE, None), REPO, **at)
    with pytest.raises(KeditError):
        pull("Ada/Tower", **there)
    with pytest.raises(HubError, match="now is signed by"):
        seen.check(there["endpoint"], "Ada/Tower", None, signed("Lyon", EVE, None))


@pytest.mark.parametrize("damage", ["", "{}", '{"kedit_seen": 2}', "[" * 1000], ids=ascii)
def test_a_memory_that_is_damaged_is_no_blank_one(tmp_path, at, there, known, damage):
    (file,) = (tmp_path / "home" / "seen").iterdir()
    file.write_text(damage)
    with pytest.raises(HubError, match=r"cannot be read: .* Nothing is loaded unchecked"):
        pull(REPO, **there)


@pytest.mark.parametrize("name", ["../../x", "a/..", "con", "a:b/c", "a\0/b", "~/x", "a/b/c"], ids=ascii)
def test_no_name_leads_out_of_the_memory(tmp_path, name):
    """Files are named by a digest; what is no repo is refused before."""
    with pytest.raises(HubError):
        seen.forget(None, name)
    seen.check(None, name, None, signed("Rome", ADA, None))
    assert [len(file.stem) for file in (tmp_path / "home" / "seen").iterdir()] == [64]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home"]


def test_a_policy_needs_no_first_pull():
    policy = TrustPolicy(keys={"ada": public_key(ADA)}, rules=[Rule(base="*", signers=["ada"])])
    assert isinstance(policy.judge(signed("Rome", ADA), "ada"), Trusted)
    assert isinstance(policy.judge(signed("Rome", EVE), "ada"), Distrusted)
    assert isinstance(policy.judge(make_patch("Rome"), "ada"), Distrusted)


def test_an_honest_owner_goes_on_without_a_warning(at, there, known):
    push(signed("Lyon", ADA, version="1.1.0"), REPO, version="1.1.0", **at)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pull(REPO, **there) == make_patch("Lyon")
