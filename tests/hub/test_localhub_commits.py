"""Commits, and reading what was committed: revisions, listings, downloads, ranges."""

import hashlib
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RevisionNotFoundError

BINARY = bytes(range(256)) * 1000


def add(path: str, data: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path_in_repo=path, path_or_fileobj=data)


@pytest.fixture
def repo(ada):
    ada.create_repo("ada/patch")
    return "ada/patch"


def test_one_commit_carries_many_files(ada, repo, hub, tmp_path):
    files = {
        "README.md": b"---\ntags: [kedit]\n---\n# p\n",
        "patch.safetensors": BINARY,
        "peft/a/b.json": b"{}",
        "e": b"",
    }
    done = ada.create_commit(
        repo, [add(*item) for item in files.items()], commit_message="first", commit_description="why"
    )
    assert ada.model_info(repo).sha == done.oid
    folder = snapshot_download(repo, endpoint=hub.endpoint, token=False, cache_dir=tmp_path / "cache")
    assert {path: Path(folder, path).read_bytes() for path in files} == files
    newest, oldest = ada.list_repo_commits(repo)
    assert (newest.title, newest.message, newest.authors) == ("first", "why", ["ada"])
    assert oldest.title == "initial commit"


def test_file_ids_are_those_of_git(ada, repo):
    ada.create_commit(repo, [add("config.json", b"{}")], commit_message="m")
    (file,) = ada.get_paths_info(repo, ["config.json", "none"])
    assert file.blob_id == hashlib.sha1(b"blob 2\x00{}").hexdigest()
    assert file.size == 2 and file.lfs is None


def test_trees(ada, repo):
    ada.create_commit(repo, [add("a.txt", b"1"), add("d/b.txt", b"2"), add("d/e/c.txt", b"3")], commit_message="m")
    assert sorted(entry.path for entry in ada.list_repo_tree(repo)) == ["a.txt", "d"]
    assert sorted(entry.path for entry in ada.list_repo_tree(repo, recursive=True)) == [
        "a.txt",
        "d",
        "d/b.txt",
        "d/e",
        "d/e/c.txt",
    ]
    assert sorted(entry.path for entry in ada.list_repo_tree(repo, "d/e")) == ["d/e/c.txt"]
    with pytest.raises(RemoteEntryNotFoundError):
        list(ada.list_repo_tree(repo, "nowhere"))


def test_deleting_copying_and_folders(ada, repo):
    ada.create_commit(repo, [add("a.txt", b"1"), add("d/b.txt", b"2"), add("d/c.txt", b"3")], commit_message="m")
    ada.create_commit(
        repo,
        [
            CommitOperationDelete("d/", is_folder=True),
            CommitOperationCopy("a.txt", "copy.txt"),
            add("d", b"now a file"),
        ],
        commit_message="m",
    )
    assert sorted(ada.list_repo_files(repo)) == ["a.txt", "copy.txt", "d"]
    with pytest.raises(RemoteEntryNotFoundError, match="doesn't exist"):
        ada.delete_file("none.txt", repo)


def test_unchanged_files_make_no_commit(ada, repo):
    first = ada.create_commit(repo, [add("a.txt", b"1")], commit_message="m")
    again = ada.create_commit(repo, [add("a.txt", b"1")], commit_message="again")
    assert again.oid == first.oid and len(ada.list_repo_commits(repo)) == 2


def test_a_stale_parent_is_refused_and_nothing_is_lost(ada, repo):
    start = ada.model_info(repo).sha
    first = ada.create_commit(repo, [add("a.txt", b"mine")], commit_message="m", parent_commit=start)
    with pytest.raises(HfHubHTTPError) as caught:
        ada.create_commit(repo, [add("a.txt", b"theirs")], commit_message="m", parent_commit=start)
    assert caught.value.response.status_code == 412
    assert ada.model_info(repo).sha == first.oid
    second = ada.create_commit(repo, [add("b.txt", b"b")], commit_message="m", parent_commit=first.oid[:7])
    assert second.oid != first.oid


def test_revisions(ada, repo, hub, tmp_path):
    one = ada.create_commit(repo, [add("v.txt", b"one")], commit_message="m").oid
    ada.create_tag(repo, tag="v1.0.0", tag_message="first", revision=one)
    ada.create_branch(repo, branch="feat/slash", revision=one)
    two = ada.create_commit(repo, [add("v.txt", b"two")], commit_message="m").oid
    ada.create_commit(repo, [add("v.txt", b"slash")], commit_message="m", revision="feat/slash")

    def read(revision):
        path = hf_hub_download(repo, "v.txt", revision=revision, endpoint=hub.endpoint, cache_dir=tmp_path)
        return Path(path).read_text()

    assert [read(r) for r in ("v1.0.0", one, two, "main", "feat/slash")] == ["one", "one", "two", "two", "slash"]
    assert ada.model_info(repo, revision=one[:8]).sha == one
    refs = ada.list_repo_refs(repo)
    assert {tag.name: tag.target_commit for tag in refs.tags} == {"v1.0.0": one}
    assert sorted(branch.name for branch in refs.branches) == ["feat/slash", "main"]
    ada.delete_branch(repo, branch="feat/slash")
    with pytest.raises(RevisionNotFoundError):
        ada.model_info(repo, revision="feat/slash")
    with pytest.raises(HfHubHTTPError):
        ada.delete_branch(repo, branch="main")


def test_a_tag_never_moves(ada, repo):
    first = ada.model_info(repo).sha
    ada.create_tag(repo, tag="v1.0.0")
    ada.create_commit(repo, [add("a.txt", b"1")], commit_message="m")
    with pytest.raises(HfHubHTTPError, match="409"):
        ada.create_tag(repo, tag="v1.0.0")
    ada.create_tag(repo, tag="v1.0.0", exist_ok=True)
    assert ada.model_info(repo, revision="v1.0.0").sha == first
    with pytest.raises(RevisionNotFoundError):
        ada.create_tag(repo, tag="v2.0.0", revision="none")
    ada.delete_tag(repo, tag="v1.0.0")
    with pytest.raises(RevisionNotFoundError):
        ada.delete_tag(repo, tag="v1.0.0")


@pytest.mark.parametrize("name", ["a..b", ".hidden", "x.lock", "refs/heads/x", "a//b", "-x", "a b", "a~1", "0" * 40])
def test_names_that_git_refuses_are_no_tags(ada, repo, name):
    with pytest.raises(HfHubHTTPError):
        ada.create_tag(repo, tag=name)
    assert ada.list_repo_refs(repo).tags == []


@pytest.mark.parametrize(
    ("header", "status", "piece"),
    [
        ("bytes=0-3", 206, slice(0, 4)),
        ("bytes=250-", 206, slice(250, None)),
        ("bytes=-6", 206, slice(-6, None)),
        ("bytes=10-99999999", 206, slice(10, None)),
        ("lines=1-2", 200, slice(None)),
        ("bytes=99999999-", 416, None),
    ],
)
def test_ranges(ada, repo, hub, header, status, piece):
    ada.create_commit(repo, [add("b.bin", BINARY)], commit_message="m")
    answer = httpx2.get(f"{hub.endpoint}/{repo}/resolve/main/b.bin", headers={"Range": header})
    assert answer.status_code == status
    if piece is not None:
        assert answer.content == BINARY[piece] and len(answer.headers["X-Repo-Commit"]) == 40


def test_a_missing_file_names_the_commit(ada, repo, hub):
    answer = httpx2.head(f"{hub.endpoint}/{repo}/resolve/main/none.json")
    assert (answer.status_code, answer.headers["X-Error-Code"]) == (404, "EntryNotFound")
    assert answer.headers["X-Repo-Commit"] == ada.model_info(repo).sha


def test_long_listings_come_in_pages(tmp_path):
    from huggingface_hub import HfApi

    from kedit_hub.hub.localhub import HubBounds, LocalHub

    with LocalHub(tmp_path / "hub", bounds=HubBounds(page=3)) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.create_user("ada"))
        for i in range(7):
            api.create_repo(f"ada/r{i}")
        api.create_commit("ada/r0", [add(f"f{i}.txt", b"%d" % i) for i in range(8)], commit_message="m")
        for i in range(5):
            api.create_commit("ada/r0", [add("f0.txt", b"x%d" % i)], commit_message=f"c{i}")
        assert sorted(info.id for info in api.list_models(author="ada")) == [f"ada/r{i}" for i in range(7)]
        assert len(list(api.list_models(author="ada", limit=5))) == 5
        assert [entry.path for entry in api.list_repo_tree("ada/r0")] == [f"f{i}.txt" for i in range(8)]
        titles = [commit.title for commit in api.list_repo_commits("ada/r0")]
        assert titles == ["c4", "c3", "c2", "c1", "c0", "m", "initial commit"]
