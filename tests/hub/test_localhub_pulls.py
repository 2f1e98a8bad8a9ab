"""Discussions and pull requests."""

from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError


def add(path: str, data: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path_in_repo=path, path_or_fileobj=data)


@pytest.fixture
def repo(ada):
    ada.create_repo("ada/patch")
    ada.create_commit("ada/patch", [add("a.txt", b"a"), add("b.txt", b"b")], commit_message="start")
    return "ada/patch"


def test_anybody_proposes_and_the_owner_merges(ada, bob, repo, hub, tmp_path):
    head = ada.model_info(repo).sha
    done = bob.create_commit(
        repo, [add("a.txt", b"better")], commit_message="Better a", commit_description="Because.", create_pr=True
    )
    assert (done.pr_num, done.pr_revision) == (1, "refs/pr/1")
    assert ada.model_info(repo).sha == head
    shown = hf_hub_download(repo, "a.txt", revision="refs/pr/1", endpoint=hub.endpoint, cache_dir=tmp_path)
    assert Path(shown).read_text() == "better"
    assert {ref.name for ref in ada.list_repo_refs(repo, include_pull_requests=True).pull_requests} == {"refs/pr/1"}

    (listed,) = ada.get_repo_discussions(repo, discussion_type="pull_request", discussion_status="open")
    assert (listed.title, listed.author, listed.num) == ("Better a", "bob", 1)
    with pytest.raises(HfHubHTTPError, match="403"):
        bob.merge_pull_request(repo, 1)
    ada.comment_discussion(repo, 1, "Thank you <b>!")
    ada.merge_pull_request(repo, 1, comment="Merging")

    details = ada.get_discussion_details(repo, 1)
    assert details.status == "merged" and details.merge_commit_oid == ada.model_info(repo).sha
    assert [event.type for event in details.events] == ["comment", "commit", "comment", "comment", "status-change"]
    assert details.events[2].content == "Thank you <b>!" and "<b>" not in details.events[2].rendered
    assert ada.list_repo_commits(repo)[0].title == "Better a (#1)"
    with pytest.raises(HfHubHTTPError, match="409"):
        ada.merge_pull_request(repo, 1)


def test_merging_keeps_what_both_sides_did(ada, bob, repo):
    bob.create_commit(
        repo, [add("new.txt", b"n"), CommitOperationDelete("b.txt")], commit_message="theirs", create_pr=True
    )
    ada.create_commit(repo, [add("a.txt", b"ours")], commit_message="ours")
    ada.merge_pull_request(repo, 1)
    assert sorted(ada.list_repo_files(repo)) == ["a.txt", "new.txt"]
    assert {path.path: path.size for path in ada.list_repo_tree(repo)} == {"a.txt": 4, "new.txt": 1}


def test_a_conflict_is_refused_and_named(ada, bob, repo):
    bob.create_commit(repo, [add("a.txt", b"theirs")], commit_message="theirs", create_pr=True)
    ours = ada.create_commit(repo, [add("a.txt", b"ours")], commit_message="ours").oid
    assert ada.get_discussion_details(repo, 1).conflicting_files == ["a.txt"]
    with pytest.raises(HfHubHTTPError, match=r"conflicts with main in: a\.txt"):
        ada.merge_pull_request(repo, 1)
    assert ada.model_info(repo).sha == ours and ada.get_discussion_details(repo, 1).status == "open"


def test_a_pull_request_from_an_old_head_is_stale(ada, bob, repo):
    old = ada.model_info(repo).sha
    ada.create_commit(repo, [add("a.txt", b"moved")], commit_message="m")
    with pytest.raises(HfHubHTTPError) as caught:
        bob.create_commit(repo, [add("a.txt", b"x")], commit_message="m", create_pr=True, parent_commit=old)
    assert caught.value.response.status_code == 412
    assert list(ada.get_repo_discussions(repo)) == []


def test_of_many_mergers_one_wins(ada, bob, repo):
    from concurrent.futures import ThreadPoolExecutor

    bob.create_commit(repo, [add("a.txt", b"1")], commit_message="bob's", create_pr=True)

    def merge(_):
        try:
            ada.merge_pull_request(repo, 1)
        except HfHubHTTPError as error:
            return error.response.status_code

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(merge, range(6)), key=bool) == [None, 409, 409, 409, 409, 409]
    assert [commit.title for commit in ada.list_repo_commits(repo)] == ["bob's (#1)", "start", "initial commit"]


def test_only_its_author_and_the_owner_change_a_pull_request(hub, ada, bob, repo):
    from huggingface_hub import HfApi

    bob.create_commit(repo, [add("a.txt", b"1")], commit_message="bob's", create_pr=True)
    bob.create_commit(repo, [add("a.txt", b"2")], commit_message="more", revision="refs/pr/1")
    ada.create_commit(repo, [add("a.txt", b"3")], commit_message="owner's", revision="refs/pr/1")
    eve = HfApi(endpoint=hub.endpoint, token=hub.create_user("eve"))
    with pytest.raises(HfHubHTTPError, match="403"):
        eve.create_commit(repo, [add("a.txt", b"4")], commit_message="eve's", revision="refs/pr/1")
    with pytest.raises(HfHubHTTPError, match="403"):
        eve.change_discussion_status(repo, 1, "closed")
    bob.rename_discussion(repo, 1, "A new title")
    bob.change_discussion_status(repo, 1, "closed", comment="never mind")
    assert ada.get_discussion_details(repo, 1).title == "A new title"
    with pytest.raises(HfHubHTTPError, match="not an open pull request"):
        ada.merge_pull_request(repo, 1)


def test_discussions_share_the_numbers(ada, bob, repo):
    talk = bob.create_discussion(repo, title="A question", description="Why?")
    pull = bob.create_pull_request(repo, title="A draft")
    assert (talk.num, talk.is_pull_request, talk.status) == (1, False, "open")
    assert (pull.num, pull.git_reference, pull.status) == (2, "refs/pr/2", "draft")
    assert [one.num for one in ada.get_repo_discussions(repo, author="bob")] == [2, 1]
    assert [one.num for one in ada.get_repo_discussions(repo, discussion_type="discussion")] == [1]
    with pytest.raises(HfHubHTTPError, match="no discussion 7"):
        ada.get_discussion_details(repo, 7)


def test_a_folder_is_proposed_by_the_streaming_uploader(ada, repo, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "c.txt").write_text("c")
    done = ada.upload_folder(repo_id=repo, folder_path=tmp_path / "d", create_pr=True, commit_message="folder")
    assert done.pr_revision == "refs/pr/1"
    assert "c.txt" in ada.list_repo_files(repo, revision="refs/pr/1")
    assert "c.txt" not in ada.list_repo_files(repo)
