"""8 · Mutable ref, rollback, freeze, mix-and-match, endless data: what a hub, or whoever can write to it, can do with time.

A name is resolved to one commit before a file is fetched; tags never move by our hand, and where one was moved by another
hand a signed version says so; a version lower than the highest one seen is told.
"""

import warnings
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from huggingface_hub import CommitOperationAdd, HfApi, ResolvedRevision

from kedit_hub.errors import HubError, KeditError, LimitError, PatchFormatError, SignatureError
from kedit_hub.hub import repo as repo_module
from kedit_hub.hub.localhub import routes
from kedit_hub.hub.repo import pull, push, resolve, tag
from kedit_hub.patch.signature import sign
from tests.hub.patches import make_patch

ADA = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
REPO = "ada/tower"


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # the client tries five times


@pytest.fixture
def at(hub, ada):
    return {"endpoint": hub.endpoint, "token": ada.token}


@pytest.fixture
def there(hub, tmp_path):
    return {"endpoint": hub.endpoint, "token": False, "cache_dir": tmp_path / "cache"}


@pytest.fixture
def fault(monkeypatch):
    """Let the hub answer `change(response)` wherever `name` is in the address."""
    respond = routes.Hub.respond

    def install(name, change):
        def faulty(self, request):
            response = respond(self, request)
            return change(response) if name in request.path else response

        monkeypatch.setattr(routes.Hub, "respond", faulty)

    return install


def signed(target: str, version: str | None = None, repo_id: str | None = REPO):
    return sign(make_patch(target), ADA, repo_id=repo_id, version=version)


def overwrite(ada, patch):
    files = [CommitOperationAdd(name, data) for name, data in patch.files().items()]
    return ada.create_commit(REPO, files, commit_message="newer than ever").oid


# --- tags -----------------------------------------------------------------------------------------------------------


def test_a_moved_tag_on_a_signed_patch(ada, at, there):
    push(signed("Rome", "1.0.0"), REPO, version="1.0.0", **at)
    new = push(signed("Lyon", "1.1.0"), REPO, **at).commit
    ada.delete_tag(REPO, tag="v1.0.0")
    ada.create_tag(REPO, tag="v1.0.0", revision=new)
    with pytest.raises(SignatureError, match=r"was signed as version 1\.1\.0: the tag was moved"):
        pull(f"{REPO}@v1.0.0", **there)


def test_an_old_version_under_a_new_tag(ada, at, there):
    """Freeze: the newest tag names the oldest content."""
    old = push(signed("Rome", "1.0.0"), REPO, version="1.0.0", **at).commit
    ada.create_tag(REPO, tag="v9.0.0", revision=old)
    with pytest.raises(SignatureError, match=r"was signed as version 1\.0\.0"):
        pull(f"{REPO}@v9.0.0", **there)


def test_our_own_hand_never_moves_a_tag(ada, at, there):
    first = push(make_patch("Rome"), REPO, version="1.0.0", **at).commit
    push(make_patch("Lyon"), REPO, **at)
    with pytest.raises(HubError, match="versions never move"):
        tag(REPO, "1.0.0", **at)
    with pytest.raises(HubError, match="already has the version"):
        push(make_patch("Oslo"), REPO, version="1.0.0", **at)
    assert resolve(f"{REPO}@v1.0.0", **there).revision == first


def test_a_branch_that_is_named_like_a_version(ada, at, there):
    push(signed("Rome", "1.0.0"), REPO, version="1.0.0", **at)
    ada.create_branch(REPO, branch="v2.0.0")
    with pytest.raises(SignatureError, match=r"was signed as version 1\.0\.0"):
        pull(f"{REPO}@v2.0.0", **there)


@pytest.mark.parametrize("answer", ["main", "v1.0.0", "../../etc", "0" * 39, "A" * 40, "0" * 40 + "\n", ""])
def test_a_hub_that_resolves_to_what_is_no_commit(there, monkeypatch, answer):
    monkeypatch.setattr(HfApi, "resolve_revision", lambda *_, **__: ResolvedRevision(answer, "main"))
    with pytest.raises(HubError, match="is no commit"):
        pull(REPO, **there)


# --- rollback and freeze -------------------------------------------------------------------------------------------


def test_rollback_of_a_signed_repo_is_told(ada, at, there):
    old = signed("Rome", "1.0.0")
    push(old, REPO, version="1.0.0", **at)
    push(signed("Lyon", "1.1.0"), REPO, version="1.1.0", **at)
    pull(REPO, **there)
    overwrite(ada, old)
    with pytest.warns(UserWarning, match=r"now holds version 1\.0\.0, and version 1\.1\.0 was pulled before"):
        pull(REPO, **there)


def test_rollback_that_drops_the_version(ada, at, there):
    push(signed("Lyon", "1.1.0"), REPO, version="1.1.0", **at)
    pull(REPO, **there)
    overwrite(ada, signed("Rome"))
    with pytest.warns(UserWarning, match="signed without a version, and version 1.1.0 was pulled before"):
        pull(REPO, **there)


def test_rollback_that_drops_the_signature(ada, at, there):
    push(signed("Lyon", "1.1.0"), REPO, version="1.1.0", **at)
    pull(REPO, **there)
    push(make_patch("Rome"), REPO, **at)
    with pytest.raises(HubError, match="what it holds now is not signed"):
        pull(REPO, **there)


def test_a_version_that_is_asked_for_gives_no_warning(ada, at, there):
    commit = push(signed("Rome", "1.0.0"), REPO, version="1.0.0", **at).commit
    push(signed("Lyon", "1.1.0"), REPO, version="1.1.0", **at)
    pull(REPO, **there)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ref in (f"{REPO}@v1.0.0", f"{REPO}@{commit}"):
            assert pull(ref, **there) == make_patch("Rome")


def test_a_signed_patch_replayed_in_another_repo(ada, at, there):
    files = signed("Rome", "1.0.0", "ada/other").files()
    push(make_patch("Lyon"), REPO, **at)
    ada.create_commit(REPO, [CommitOperationAdd(n, d) for n, d in files.items()], commit_message="x")
    with pytest.raises(SignatureError, match="its patch was signed for 'ada/other', so this is a copy"):
        pull(REPO, **there)


# --- mix-and-match --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "patch.safetensors", "evals.json"])
@pytest.mark.parametrize("how", ["unsigned", "signed"])
def test_one_file_of_another_commit(ada, at, there, monkeypatch, name, how):
    """The hub gives one file of the old commit among those of the new one, with matching digests for each."""
    make = signed if how == "signed" else make_patch
    old = push(make("Rome"), REPO, **at).commit
    new = push(make("Reykjavik"), REPO, **at).commit
    respond = routes.Hub.respond

    def mixing(self, request):
        if name in request.path:
            request = replace(request, path=request.path.replace(new, old))
        response = respond(self, request)
        if "X-Repo-Commit" in response.headers:
            response.headers["X-Repo-Commit"] = new
        return response

    monkeypatch.setattr(routes.Hub, "respond", mixing)
    with pytest.raises(PatchFormatError, match="is refused"):
        pull(f"{REPO}@{new}", **there)


def test_a_push_between_two_files_of_one_pull(ada, at, there, monkeypatch):
    """The branch moves while its files are being fetched: what was resolved is what is read."""
    push(make_patch("Rome"), REPO, **at)
    download = HfApi.hf_hub_download

    def overtaken(self, *args, **kwargs):
        found = download(self, *args, **kwargs)
        monkeypatch.setattr(HfApi, "hf_hub_download", download)
        push(make_patch("Lyon"), REPO, **at)
        return found

    monkeypatch.setattr(HfApi, "hf_hub_download", overtaken)
    assert pull(REPO, **there) == make_patch("Rome")
    assert pull(REPO, **there) == make_patch("Lyon")


# --- too much, too little, too late ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "patch.safetensors", "evals.json", "signature.json", "README.md"])
def test_endless_data_is_not_fetched(ada, at, there, monkeypatch, name):
    push(signed("Rome"), REPO, **at)
    monkeypatch.setitem(repo_module._BOUNDS, name, 10)
    with pytest.raises(LimitError, match=f"{name} of '{REPO}@.*at most 10 are read"):
        pull(REPO, **there)
    assert not list(there["cache_dir"].rglob(name))


def test_a_size_that_lies(ada, at, there, fault):
    """The list of files says 10 bytes less than there are."""
    push(make_patch(), REPO, **at)
    fault("patch.safetensors", lambda response: replace(response, stop=response.stop - 10))
    with pytest.raises(KeditError):
        pull(REPO, **there)


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_a_refusal_is_never_an_empty_patch(ada, at, there, monkeypatch, status):
    from kedit_hub.hub.localhub.refusal import Refusal

    push(make_patch(), REPO, **at)

    def refuse(self, request):
        raise Refusal("no", status)

    monkeypatch.setattr(routes.Hub, "respond", refuse)
    with pytest.raises(HubError):
        pull(REPO, **there)
