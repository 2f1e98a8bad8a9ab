"""Push a patch, pull it back: by tag, by commit, from the cache."""

import pytest
from huggingface_hub import HfApi

from kedit_hub.errors import HubError, PatchFormatError
from kedit_hub.hub.localhub import LocalHub
from kedit_hub.hub.repo import pull, push, resolve, tag

from .patches import make_patch


@pytest.fixture
def at(hub, ada):
    """Where and as whom ada pushes."""
    return {"endpoint": hub.endpoint, "token": ada.token}


@pytest.fixture
def cache(hub, tmp_path):
    """Where and how everybody pulls."""
    return {"endpoint": hub.endpoint, "token": False, "cache_dir": tmp_path / "cache"}


def test_a_push_is_one_commit_and_a_tag(ada, hub, at, cache):
    patch = make_patch()
    done = push(patch, "ada/tower", version="1.2.0", **at)
    assert (done.repo_id, done.tag, done.pr_url, done.url) == ("ada/tower", "v1.2.0", None, f"{hub.endpoint}/ada/tower")
    assert sorted(ada.list_repo_files("ada/tower")) == ["README.md", "config.json", "evals.json", "patch.safetensors"]
    assert len(ada.list_repo_commits("ada/tower")) == 2  # the repo's first, and this
    for ref in ("ada/tower", "ada/tower@v1.2.0", f"ada/tower@{done.commit}", f"hf://ada/tower@{done.commit}"):
        pulled = pull(ref, **cache)
        assert pulled.id == patch.id and pulled.evals == patch.evals


def test_versions_stay_what_they_were(at, cache):
    old, new = make_patch("Rome"), make_patch("Lyon")
    push(old, "ada/tower", version="v1.0.0", **at)
    push(new, "ada/tower", version="1.1.0", **at)
    assert pull("ada/tower@v1.0.0", **cache).id == old.id
    assert pull("ada/tower@v1.1.0", **cache).id == pull("ada/tower", **cache).id == new.id


def test_a_version_that_is_taken_stops_the_push_before_the_commit(ada, at):
    push(make_patch("Rome"), "ada/tower", version="1.0.0", **at)
    head = ada.model_info("ada/tower").sha
    with pytest.raises(HubError, match=r"already has the version v1\.0\.0; nothing was pushed"):
        push(make_patch("Lyon"), "ada/tower", version="1.0.0", **at)
    assert ada.model_info("ada/tower").sha == head


@pytest.mark.parametrize("version", ["1", "1.2", "01.2.3", "1.2.3.4", "v1.2.x", "latest", "1.2.3+build", "", "1.2.3\n"])
def test_what_is_no_version(ada, at, version):
    with pytest.raises(HubError, match="is not a version"):
        push(make_patch(), "ada/tower", version=version, **at)
    assert not ada.repo_exists("ada/tower")


def test_tagging_afterwards(at, cache):
    first = push(make_patch("Rome"), "ada/tower", **at)
    push(make_patch("Lyon"), "ada/tower", **at)
    assert tag("ada/tower", "0.1.0", revision=first.commit, **at) == "v0.1.0"
    assert resolve("ada/tower@v0.1.0", **cache).revision == first.commit
    with pytest.raises(HubError, match=r"already has the version v0\.1\.0"):
        tag("ada/tower", "0.1.0", **at)


def test_pushing_the_same_again_makes_no_commit(ada, at):
    first = push(make_patch(), "ada/tower", version="1.0.0", **at)
    again = push(make_patch(), "ada/tower", version="1.0.1", **at)
    assert again.commit == first.commit and len(ada.list_repo_commits("ada/tower")) == 2


def test_old_scores_do_not_stay_with_a_new_patch(ada, at, cache):
    push(make_patch("Rome"), "ada/tower", **at)
    push(make_patch("Lyon", scores=False), "ada/tower", **at)
    assert "evals.json" not in ada.list_repo_files("ada/tower")
    assert pull("ada/tower", **cache).evals is None


def test_files_of_others_stay(ada, at, cache):
    push(make_patch("Rome"), "ada/tower", **at)
    ada.upload_file(path_or_fileobj=b"MZ", path_in_repo="pytorch_model.bin", repo_id="ada/tower")
    push(make_patch("Lyon"), "ada/tower", **at)
    assert "pytorch_model.bin" in ada.list_repo_files("ada/tower")
    assert pull("ada/tower", **cache).edits[0].target == "Lyon"
    assert not list(cache["cache_dir"].rglob("*.bin")) and not list(cache["cache_dir"].rglob("README.md"))


def test_offline_from_the_cache_by_commit_and_tag(tmp_path):
    there = {"cache_dir": tmp_path / "cache"}
    patch, bare = make_patch(), make_patch("Lyon", scores=False)
    with LocalHub(tmp_path / "hub") as hub:
        there |= {"endpoint": hub.endpoint, "token": False}
        at = {"endpoint": hub.endpoint, "token": hub.create_user("ada")}
        done = push(patch, "ada/tower", version="1.0.0", **at)
        push(bare, "ada/bare", version="1.0.0", **at)
        push(patch, "ada/unseen", version="1.0.0", **at)
        pull("ada/tower@v1.0.0", **there)
        pull("ada/bare@v1.0.0", **there)
    assert pull("ada/tower@v1.0.0", **there).id == patch.id
    assert pull(f"ada/tower@{done.commit}", **there).id == patch.id
    assert pull("ada/bare@v1.0.0", **there).id == bare.id  # it is known that there are no scores
    for ref in ("ada/unseen@v1.0.0", "ada/tower@v2.0.0", "ada/tower", f"ada/tower@{'0' * 40}"):
        with pytest.raises(HubError, match="cannot be reached"):
            pull(ref, **there)


def test_a_pinned_patch_in_the_cache_costs_no_request(hub, at, cache, caplog):
    done = push(make_patch(scores=False), "ada/tower", **at)
    pull(f"ada/tower@{done.commit}", **cache)
    caplog.set_level("INFO", logger="kedit_hub.hub.localhub")
    pull(f"ada/tower@{done.commit}", **cache)
    assert caplog.text == ""
    pull("ada/tower", **cache)
    assert caplog.text.count(" 200\n") == 1  # main is looked up, nothing is fetched


def test_a_local_folder(tmp_path):
    patch = make_patch()
    patch.save(tmp_path / "p")
    assert pull(tmp_path / "p").id == pull(str(tmp_path / "p")).id == patch.id
    with pytest.raises(HubError, match="only repos have commits"):
        resolve(str(tmp_path / "p"))


def test_every_hub_has_a_cache_of_its_own(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    ids = []
    for name in ("one", "two"):  # two hubs, one name, and the second is down when it is asked again
        with LocalHub(tmp_path / name) as hub:
            push(make_patch(name), "ada/tower", version="1.0.0", endpoint=hub.endpoint, token=hub.create_user("ada"))
            ids.append((hub.endpoint, pull("ada/tower@v1.0.0", endpoint=hub.endpoint, token=False).id))
    for endpoint, patch_id in ids:
        assert pull("ada/tower@v1.0.0", endpoint=endpoint, token=False).id == patch_id
    assert ids[0][1] != ids[1][1] and not (tmp_path / "home" / "hub").exists()


def test_what_is_no_patch(ada, at, cache):
    ada.create_repo("ada/empty")
    with pytest.raises(HubError, match=r"'ada/empty' holds no config\.json"):
        pull("ada/empty", **cache)
    with pytest.raises(HubError, match=r"no branch, tag or commit 'v9\.9\.9'"):
        pull("ada/empty@v9.9.9", **cache)
    with pytest.raises(HubError, match="has no repo 'ada/none'"):
        pull("ada/none", **cache)


def test_a_hostile_patch_is_refused_as_such(ada, at, cache):
    push(make_patch(), "ada/tower", **at)
    ada.upload_file(path_or_fileobj=b'{"format_version": 1}', path_in_repo="config.json", repo_id="ada/tower")
    with pytest.raises(PatchFormatError, match=r"'ada/tower@[0-9a-f]{40}' is refused"):
        pull("ada/tower", **cache)


def test_files_over_the_bounds_are_not_fetched(ada, at, cache, monkeypatch):
    from kedit_hub.hub import repo

    push(make_patch(), "ada/tower", **at)
    monkeypatch.setitem(repo._BOUNDS, "patch.safetensors", 10)
    with pytest.raises(PatchFormatError, match=r"patch\.safetensors of 'ada/tower@.*at most 10 are read"):
        pull("ada/tower", **cache)
    assert not list(cache["cache_dir"].rglob("patch.safetensors"))


@pytest.mark.parametrize("name", ["config.json", "patch.safetensors", "evals.json"])
def test_corruption_of_the_cache_is_told_from_a_bad_patch(at, cache, name):
    done = push(make_patch(), "ada/tower", version="1.0.0", **at)
    pull("ada/tower@v1.0.0", **cache)
    (link,) = cache["cache_dir"].rglob(name)
    blob = link.resolve()
    good = blob.read_bytes()
    blob.write_bytes(good[:-10] + bytes([good[-10] ^ 1]) + good[-9:])  # one bit, same size
    for ref in ("ada/tower@v1.0.0", f"ada/tower@{done.commit}"):
        with pytest.raises(HubError, match=f"cached copy of {name} .*is damaged.*Delete '{blob}' and pull again"):
            pull(ref, **cache)
    blob.unlink()
    assert pull("ada/tower@v1.0.0", **cache).id == make_patch().id


def test_every_flipped_byte_in_the_cache_is_noticed(at, cache):
    push(make_patch(), "ada/tower", version="1.0.0", **at)
    pull("ada/tower@v1.0.0", **cache)
    for name in ("config.json", "patch.safetensors", "evals.json"):
        (link,) = cache["cache_dir"].rglob(name)
        blob, good = link.resolve(), link.read_bytes()
        for position in range(0, len(good), max(1, len(good) // 20)):
            blob.write_bytes(good[:position] + bytes([good[position] ^ 0x20]) + good[position + 1 :])
            with pytest.raises(HubError, match="is damaged"):
                pull("ada/tower@v1.0.0", **cache)
        blob.write_bytes(good[:-1])
        with pytest.raises(HubError, match="is damaged"):
            pull("ada/tower@v1.0.0", **cache)
        blob.write_bytes(good)


def test_a_hub_that_answers_nonsense_for_a_commit_is_refused(cache, monkeypatch):
    from huggingface_hub import ResolvedRevision

    monkeypatch.setattr(HfApi, "resolve_revision", lambda *a, **k: ResolvedRevision("../../etc", "main"))
    with pytest.raises(HubError, match="is no commit"):
        pull("ada/tower", **cache)
