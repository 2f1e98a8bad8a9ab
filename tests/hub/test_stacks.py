"""Push a stack, pull it back: by tag, by commit, from the cache; and what happens to a stack that was tampered with."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from kedit_hub import strictjson
from kedit_hub.errors import HubError, KeditError, LimitError, PatchFormatError, SignatureError
from kedit_hub.hub import stacks
from kedit_hub.hub.localhub import LocalHub
from kedit_hub.hub.repo import pull, push, resolve
from kedit_hub.hub.stacks import is_stack, pull_stack, push_stack, stack_files
from kedit_hub.patch.signature import sign
from kedit_hub.stack.lock import InFolder, InPack, InRepo, _digest, lock
from kedit_hub.stack.settings import StackSettings
from kedit_hub.stack.stack import PatchStack

from .patches import make_patch

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


@pytest.fixture
def at(hub, ada):
    return {"endpoint": hub.endpoint, "token": ada.token}


@pytest.fixture
def cache(hub, tmp_path):
    return {"endpoint": hub.endpoint, "token": False, "cache_dir": tmp_path / "cache"}


def many(count=3):
    """Patches that answer one question in several ways."""
    return [make_patch(target) for target in ("Rome", "Lyon", "Oslo", "Bern")[:count]]


def locked(at, patches=None, **how):
    """(lock, stack): the first patch in a repo of its own, the others in folders, under "latest"."""
    patches = many() if patches is None else patches
    done = push(patches[0], "ada/tower", **at)
    stack = PatchStack(
        patches, **{"conflicts": "latest", "weights": {patches[0].id: 2.0}, "pinned": [patches[-1]], **how}
    )
    sources = {patch.id: InFolder(folder="p") for patch in patches} | {
        patches[0].id: InRepo(repo="ada/tower", commit=done.commit)
    }
    return lock(stack, sources, StackSettings(mode="joint", budget=0.2)), stack


def same(a, b):
    told = ("ids", "weights", "pinned", "policy", "shadowed")
    return all(getattr(a, name) == getattr(b, name) for name in told)


def test_a_push_is_one_commit_and_a_tag(ada, hub, at, cache):
    saved, stack = locked(at)
    done = push_stack(saved, stack, "ada/all", version="1.0.0", **at)
    assert (done.tag, done.url) == ("v1.0.0", f"{hub.endpoint}/ada/all")
    assert sorted(ada.list_repo_files("ada/all")) == ["README.md", "kedit.lock", "stack.json", "stack.safetensors"]
    assert len(ada.list_repo_commits("ada/all")) == 2
    for ref in ("ada/all", "ada/all@v1.0.0", f"ada/all@{done.commit}", "hf://ada/all@main"):
        assert is_stack(ref, **cache)
        pulled = pull_stack(ref, **cache)
        assert same(pulled.stack, stack) and pulled.commit.revision == done.commit
        assert [patch.evals for patch in pulled.stack] == [patch.evals for patch in stack]
        assert pulled.lock.decided == StackSettings(mode="joint", budget=0.2)
        assert [type(entry.source) for entry in pulled.lock.patches] == [InRepo, InPack, InPack]
    assert not is_stack("ada/tower", **cache)


def test_a_stack_of_patches_in_repos_packs_none(ada, at, cache):
    patches = many(2)
    commits = [push(patch, f"ada/p{n}", **at).commit for n, patch in enumerate(patches)]
    sources = {p.id: InRepo(repo=f"ada/p{n}", commit=commits[n]) for n, p in enumerate(patches)}
    stack = PatchStack(patches, conflicts="latest")
    push_stack(*locked(at), "ada/all", **at)
    push_stack(lock(stack, sources), stack, "ada/all", **at)  # and takes the packed files of the one before away
    assert sorted(ada.list_repo_files("ada/all")) == ["README.md", "kedit.lock"]
    assert same(pull_stack("ada/all", **cache).stack, stack)


def test_what_was_decided_travels(at, cache):
    saved, stack = locked(at)
    solved = {"mode": "joint", "why": "asked for", "modules": {}}
    value = {**saved.model_dump(mode="json"), "solved": solved, "profiles": ["0" * 64]}
    push_stack(
        type(saved).parse(strictjson.pretty({**value, "digest": _digest(value)}), local=True), stack, "ada/all", **at
    )
    found = pull_stack("ada/all", **cache).lock
    assert found.solved is not None and found.solved.why == "asked for" and found.profiles == ("0" * 64,)


def test_offline_from_the_cache(tmp_path):
    there = {"cache_dir": tmp_path / "cache", "token": False}
    with LocalHub(tmp_path / "hub") as hub:
        at = {"endpoint": hub.endpoint, "token": hub.create_user("ada")}
        there["endpoint"] = hub.endpoint
        saved, stack = locked(at)
        done = push_stack(saved, stack, "ada/all", version="1.0.0", **at)
        push_stack(saved, stack, "ada/unseen", **at)
        pull_stack("ada/all@v1.0.0", **there)
    for ref in ("ada/all@v1.0.0", f"ada/all@{done.commit}"):
        assert is_stack(ref, **there) and same(pull_stack(ref, **there).stack, stack)
    with pytest.raises(HubError, match="cannot be reached"):
        pull_stack("ada/unseen", **there)


def test_a_pinned_stack_in_the_cache_costs_no_request(at, cache, caplog):
    done = push_stack(*locked(at, [make_patch(scores=False), *many()[1:]]), "ada/all", **at)
    pull_stack(f"ada/all@{done.commit}", **cache)
    caplog.set_level("INFO", logger="kedit_hub.hub.localhub")
    assert is_stack(f"ada/all@{done.commit}", **cache)
    pull_stack(f"ada/all@{done.commit}", **cache)
    assert caplog.text == ""


def test_a_private_stack_and_a_private_patch(hub, ada, bob, at, tmp_path):
    patches = many(2)
    done = push(patches[0], "ada/secret", private=True, **at)
    stack = PatchStack(patches, conflicts="latest")
    saved = lock(
        stack, {patches[0].id: InRepo(repo="ada/secret", commit=done.commit), patches[1].id: InFolder(folder="p")}
    )
    push_stack(saved, stack, "ada/open", **at)
    push_stack(saved, stack, "ada/closed", private=True, **at)
    theirs = {"endpoint": hub.endpoint, "token": bob.token, "cache_dir": tmp_path / "bob"}
    with pytest.raises(HubError, match="has no repo 'ada/closed' that you can read"):
        pull_stack("ada/closed", **theirs)
    with pytest.raises(KeditError, match=r"cannot be had: .*has no repo 'ada/secret' that you can read"):
        pull_stack("ada/open", **theirs)
    mine = {**at, "cache_dir": tmp_path / "ada"}
    assert same(pull_stack("ada/open", **mine).stack, pull_stack("ada/closed", **mine).stack)
    with pytest.raises(HubError, match="is public; nothing was pushed"):
        push_stack(saved, stack, "ada/open", private=True, **at)


def test_the_stack_stays_where_a_tag_moves(ada, at, cache):
    """A lock names commits: what the author of a patch pushes or tags later changes no stack."""
    saved, stack = locked(at)
    push_stack(saved, stack, "ada/all", version="1.0.0", **at)
    push(make_patch("Bern"), "ada/tower", **at)
    assert pull("ada/tower", **cache).id != stack.patches[0].id
    assert same(pull_stack("ada/all@v1.0.0", **cache).stack, stack)


def test_a_stack_tag_that_moved_is_another_lock(ada, at, cache):
    first = push_stack(*locked(at), "ada/all", version="1.0.0", **at)
    second = push_stack(*locked(at, many()[:2]), "ada/all", **at)
    ada.delete_tag("ada/all", tag="v1.0.0")
    ada.create_tag("ada/all", tag="v1.0.0", revision=second.commit)
    assert len(pull_stack("ada/all@v1.0.0", **cache).stack) == 2
    assert len(pull_stack(f"ada/all@{first.commit}", **cache).stack) == 3


def test_two_who_push_at_once(at):
    saved, stack = locked(at)
    first = push_stack(saved, stack, "ada/all", version="1.0.0", **at)
    push_stack(*locked(at, many()[:2]), "ada/all", **at)
    with pytest.raises(HubError, match="Somebody pushed to 'ada/all' meanwhile"):
        push_stack(saved, stack, "ada/all", parent_commit=first.commit, **at)
    with pytest.raises(HubError, match=r"already has the version v1\.0\.0; nothing was pushed"):
        push_stack(saved, stack, "ada/all", version="1.0.0", **at)


# --- what may not be pushed ---------------------------------------------------------------------------------------


def test_what_is_not_pushed(ada, at):
    saved, stack = locked(at)
    with pytest.raises(HubError, match=r"The stack 'ada/tower' names itself \(ada/tower@[0-9a-f]{40}\)"):
        push_stack(saved, stack, "ada/tower", **at)
    push(make_patch("Bern"), "ada/patch", **at)
    with pytest.raises(HubError, match="'ada/patch' is the repo of a patch; nothing was pushed"):
        push_stack(saved, stack, "ada/patch", **at)
    with pytest.raises(KeditError, match="holds no patch: there is nothing to push"):
        push_stack(lock(PatchStack(), {}), PatchStack(), "ada/none", **at)
    with pytest.raises(KeditError, match="in another order"):
        push_stack(saved, stack.reorder([stack.patches[0]]), "ada/none", **at)
    assert not ada.repo_exists("ada/none") and ada.list_repo_files("ada/tower").count("kedit.lock") == 0


def test_a_patch_signed_for_a_repo_is_not_packed_in_another(ada, at, cache):
    signed = sign(make_patch("Bern"), KEY, repo_id="ada/bern")
    stack = PatchStack([signed])
    saved = lock(stack, {signed.id: InFolder(folder="p")})
    with pytest.raises(SignatureError, match="was signed for 'ada/bern', and may not lie packed in 'ada/all'"):
        push_stack(saved, stack, "ada/all", **at)
    for name, data in stack_files(saved, stack, "ada/bern").items():  # by somebody who does not ask this library
        ada.create_repo("ada/copy", exist_ok=True)
        ada.upload_file(path_or_fileobj=data, path_in_repo=name, repo_id="ada/copy")
    with pytest.raises(SignatureError, match="may not lie packed in 'ada/copy'"):
        pull_stack("ada/copy", **cache)


def test_signatures_survive(at, cache):
    signed = [sign(patch, KEY) for patch in many(2)]
    stack = PatchStack(signed, conflicts="latest")
    push_stack(lock(stack, {p.id: InFolder(folder="p") for p in signed}), stack, "ada/all", **at)
    out = pull_stack("ada/all", **cache).stack
    assert [patch.signature for patch in out] == [patch.signature for patch in signed]


def test_the_card_shows_and_does_not_interpret(ada, at):
    evil = make_patch("[x](javascript:alert(1))<script>|`\n---\ntags: [evil]")
    stack = PatchStack([evil])
    files = stack_files(lock(stack, {evil.id: InFolder(folder="p")}), stack, "ada/all")
    card = files["README.md"].decode()
    assert "<script" not in card and "javascript:" not in card and card.count("\n---\n") == 1
    assert "kedit-stack" in card and 'kedit_hub.apply("ada/all")' in card and "model-index" not in card


# --- what may not be pulled ---------------------------------------------------------------------------------------


def tampered(ada, change):
    """The stack repo ada/all with its lock changed and the digest to match."""
    path = ada.hf_hub_download("ada/all", "kedit.lock")
    with open(path, "rb") as file:
        value = json.loads(file.read())
    del value["digest"]
    change(value)
    data = strictjson.pretty({**value, "digest": _digest(value)})
    ada.upload_file(path_or_fileobj=data, path_in_repo="kedit.lock", repo_id="ada/all")


def first(value):
    return value["patches"][0]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda v: first(v).update(id="0" * 64), KeditError, "is another one: [0-9a-f]{64} lies there, 0{64} was locked"),
        (lambda v: first(v)["files"].update({"config.json": "0" * 64}), KeditError, "0{64} was locked"),
        (lambda v: first(v).update(signers=["0" * 64]), KeditError, "is now signed by nobody, and was signed by 0{64}"),
        (lambda v: first(v)["source"].update(commit="0" * 40), KeditError, "cannot be had"),
        (lambda v: first(v)["source"].update(repo="ada/none"), KeditError, "cannot be had: .*no repo 'ada/none'"),
        (lambda v: first(v)["source"].update(repo="Ada/All"), HubError, "names itself"),
        (lambda v: first(v).update(source={"folder": "etc"}), PatchFormatError, "names the folder 'etc', and came from elsewhere"),
        (lambda v: v["packed"].update({"stack.json": "0" * 64}), KeditError, r"stack\.json has the digest [0-9a-f]{64}, 0{64} was locked"),
        (lambda v: v["base"].update(id="org/other"), KeditError, "the lock is for the base 'org/other'"),
        (lambda v: v.update(conflicts="error"), KeditError, "answered in two ways"),
        (lambda v: v.update(kedit_lock=2), PatchFormatError, "this kedit_hub reads 1"),
        (lambda v: first(v).update(weight=1e300), PatchFormatError, "patches.0.weight"),
    ],
)  # fmt: skip
def test_a_tampered_lock(ada, at, tmp_path, hub, change, error, words):
    push_stack(*locked(at), "ada/all", **at)
    tampered(ada, change)
    with pytest.raises(error, match=words) as caught:
        pull_stack("ada/all", endpoint=hub.endpoint, token=False, cache_dir=tmp_path / "new")
    assert "'ada/all" in str(caught.value).lower()


@pytest.mark.parametrize("name", ["stack.json", "stack.safetensors"])
def test_a_tampered_packed_file(ada, hub, at, tmp_path, name):
    push_stack(*locked(at), "ada/all", **at)
    new = {"endpoint": hub.endpoint, "token": False, "cache_dir": tmp_path / "new"}
    with open(ada.hf_hub_download("ada/all", name), "rb") as file:
        data = file.read()
    ada.upload_file(path_or_fileobj=data[:-9] + b"x" + data[-8:], path_in_repo=name, repo_id="ada/all")
    with pytest.raises(KeditError, match=rf"{name} has the digest [0-9a-f]{{64}}, [0-9a-f]{{64}} was locked"):
        pull_stack("ada/all", **new)
    ada.create_commit("ada/all", [CommitOperationDelete(path_in_repo=name)], commit_message="gone")
    with pytest.raises(HubError, match=f"holds no {name}"):
        pull_stack("ada/all", **new)


def test_a_stack_names_no_stack(ada, at, cache):
    inner = push_stack(*locked(at), "ada/inner", **at)
    push_stack(*locked(at), "ada/all", **at)
    tampered(ada, lambda v: first(v).update(source={"repo": "ada/inner", "commit": inner.commit}))
    with pytest.raises(KeditError, match=r"\(ada/inner@.*cannot be had: .*no patch"):
        pull_stack("ada/all", **cache)


def test_a_repo_with_both_is_a_patch(ada, at, cache):
    push_stack(*locked(at), "ada/all", **at)
    files = make_patch("Bern").files()
    ada.create_commit("ada/all", [CommitOperationAdd(n, d) for n, d in files.items()], commit_message="both")
    assert not is_stack("ada/all", **cache) and pull("ada/all", **cache).id == make_patch("Bern").id


def test_a_patch_does_not_go_into_the_repo_of_a_stack(ada, at, cache):
    """With a config.json beside it nobody could read the stack any more."""
    saved, stack = locked(at)
    done = push_stack(saved, stack, "ada/all", **at)
    for how in ({}, {"create_pr": True}):
        with pytest.raises(HubError, match=r"'ada/all' is the repo of a stack; nothing was pushed.*repo of its own"):
            push(make_patch("Bern"), "ada/all", **at, **how)
    assert is_stack("ada/all", **cache) and pull_stack("ada/all", **cache).commit.revision == done.commit


def test_a_stack_is_proposed_to_somebody_elses_repo(hub, bob, at, cache):
    saved, stack = locked(at)
    push_stack(saved, stack, "ada/all", **at)
    heavier = stack.weigh(stack.patches[1], 3.0)
    theirs = {"endpoint": hub.endpoint, "token": bob.token}
    proposed = push_stack(lock(heavier, saved.sources), heavier, "ada/all", create_pr=True, **theirs)
    assert proposed.pr_url is not None and proposed.tag is None
    assert same(pull_stack("ada/all", **cache).stack, stack)
    assert same(pull_stack(f"ada/all@{proposed.commit}", **cache).stack, heavier)
    with pytest.raises(HubError, match="A pull request has no version"):
        push_stack(saved, stack, "ada/all", version="1.0.0", create_pr=True, **theirs)


def test_files_over_the_bounds_are_not_fetched(at, cache, monkeypatch):
    push_stack(*locked(at), "ada/all", **at)
    for name in ("kedit.lock", "stack.safetensors"):
        with monkeypatch.context() as patched:
            patched.setitem(stacks._BOUNDS, name, 10)
            with pytest.raises(LimitError, match=rf"{name} of 'ada/all@.*at most 10 are read"):
                pull_stack("ada/all", **cache)
        assert not list(cache["cache_dir"].rglob(name))


def test_a_damaged_cache_is_told_from_a_bad_stack(at, cache):
    push_stack(*locked(at), "ada/all", **at)
    pull_stack("ada/all", **cache)
    for name in ("kedit.lock", "stack.json", "stack.safetensors"):
        (link,) = cache["cache_dir"].rglob(name)
        blob, good = link.resolve(), link.read_bytes()
        blob.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
        with pytest.raises(HubError, match=f"cached copy of {name} .*Delete '{blob}' and pull again"):
            pull_stack("ada/all", **cache)
        blob.write_bytes(good)


def test_what_is_no_stack(ada, at, cache, tmp_path):
    push(make_patch(), "ada/tower", **at)
    with pytest.raises(HubError, match=r"holds no kedit\.lock"):
        pull_stack("ada/tower", **cache)
    with pytest.raises(HubError, match="is a folder, not a repo"):
        pull_stack(str(tmp_path), **cache)
    assert resolve("ada/tower", **cache).is_pinned
