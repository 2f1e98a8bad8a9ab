"""What a leaderboard asks of a hub: which commit put a file where it lies, and who made a merged commit."""

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

BOARD = {"repo_id": "ada/board", "repo_type": "dataset"}


def put(api, path: str, data: bytes = b"{}", **more):
    operation = CommitOperationAdd(path_in_repo=path, path_or_fileobj=data)
    return api.create_commit(operations=[operation], commit_message=f"put {path}", **BOARD, **more)


def lasts(api, **more) -> dict[str, str]:
    tree = api.list_repo_tree(recursive=True, expand=True, **BOARD, **more)
    return {entry.path: entry.last_commit.oid for entry in tree if entry.last_commit is not None}


def test_every_file_names_the_commit_that_put_it_there(ada, nobody):
    ada.create_repo(**BOARD)
    first = put(ada, "submissions/a.jsonl").oid
    second = put(ada, "submissions/b.jsonl", b"[]").oid
    assert lasts(nobody) == {"submissions/a.jsonl": first, "submissions/b.jsonl": second}
    third = put(ada, "submissions/a.jsonl", b"changed").oid
    assert lasts(nobody) == {"submissions/a.jsonl": third, "submissions/b.jsonl": second}
    assert lasts(nobody, revision=second) == {"submissions/a.jsonl": first, "submissions/b.jsonl": second}
    (plain, *_) = nobody.list_repo_tree(recursive=True, **BOARD)
    assert plain.last_commit is None


def test_a_file_that_comes_back_came_with_its_last_commit(ada):
    ada.create_repo(**BOARD)
    put(ada, "submissions/a.jsonl")
    gone = CommitOperationDelete(path_in_repo="submissions/a.jsonl")
    ada.create_commit(operations=[gone], commit_message="take it away", **BOARD)
    again = put(ada, "submissions/a.jsonl").oid
    assert lasts(ada) == {"submissions/a.jsonl": again}


def test_the_listing_comes_in_pages_of_fifty(ada, nobody):
    ada.create_repo(**BOARD)
    operations = [CommitOperationAdd(path_in_repo=f"submissions/{i:03}", path_or_fileobj=b"x") for i in range(120)]
    commit = ada.create_commit(operations=operations, commit_message="many", **BOARD)
    assert lasts(nobody) == {f"submissions/{i:03}": commit.oid for i in range(120)}


def test_a_merge_is_by_who_merged_and_by_who_proposed(ada, bob):
    ada.create_repo(**BOARD)
    put(bob, "submissions/b.jsonl", create_pr=True)
    put(ada, "submissions/a.jsonl", create_pr=True)
    ada.merge_pull_request(discussion_num=1, **BOARD)
    ada.merge_pull_request(discussion_num=2, **BOARD)
    own, theirs = ada.list_repo_commits(**BOARD)[:2]
    assert (theirs.title, theirs.authors) == ("put submissions/b.jsonl (#1)", ["ada", "bob"])
    assert (own.title, own.authors) == ("put submissions/a.jsonl (#2)", ["ada"])
    assert lasts(ada) == {"submissions/b.jsonl": theirs.commit_id, "submissions/a.jsonl": own.commit_id}


def test_the_title_of_a_proposal_names_no_author(ada, bob):
    ada.create_repo(**BOARD)
    operation = CommitOperationAdd(path_in_repo="a", path_or_fileobj=b"x")
    forged = "mine\nCo-authored-by: Carol <carol@localhub>"
    bob.create_commit(operations=[operation], commit_message=forged, create_pr=True, **BOARD)
    ada.merge_pull_request(discussion_num=1, **BOARD)
    assert ada.list_repo_commits(**BOARD)[0].authors == ["ada", "bob"]
