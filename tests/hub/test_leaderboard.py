"""A board on a hub: submit, propose, race, read again without a hub. With the real client, over a development hub."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from threading import Barrier

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from kedit_hub.errors import HubError, KeditError
from kedit_hub.evaluate.run import Run
from kedit_hub.hub.leaderboard import mark_verified, rank, read, submit
from kedit_hub.hub.leaderboard.board import Attested, Unchecked, Verified
from kedit_hub.hub.leaderboard.bounds import Bounds
from kedit_hub.hub.localhub import LocalHub
from kedit_hub.patch.keys import public_key
from kedit_hub.patch.trust import Rule, TrustPolicy
from tests.hub.boards import ADA, BOB, EVE, run, sheet

NAME = "ada/board"
REPO = {"repo_id": NAME, "repo_type": "dataset"}


@pytest.fixture
def at(hub, ada):
    return {"endpoint": hub.endpoint, "token": ada.token}


@pytest.fixture
def by_bob(hub, bob):
    return {"endpoint": hub.endpoint, "token": bob.token}


@pytest.fixture
def seen(hub):
    """As a visitor without a token sees the board."""
    return {"endpoint": hub.endpoint, "token": False}


def put(api, path: str, data: bytes, **more):
    operation = CommitOperationAdd(path_in_repo=path, path_or_fileobj=data)
    return api.create_commit(operations=[operation], commit_message="put", **REPO, **more)


def means(board):
    return [(row.submitter[:8], row.value.mean) for row in board.rows]


# --- submitting ----------------------------------------------------------------------------------------------------


def test_the_first_submission_makes_the_board(hub, ada, at, seen):
    done = submit([run(0.5), run(0.7, "memit")], NAME, key=ADA, **at)
    assert (
        done.is_new and done.signer == public_key(ADA) and done.runs == 2 and done.pr_url is None and done.notes == ()
    )
    assert done.commit == ada.dataset_info(NAME).sha and done.url == f"{hub.endpoint}/datasets/{NAME}"
    files = set(ada.list_repo_files(**REPO))
    assert files == {"README.md", f"submissions/{done.submission}.jsonl", f"submissions/{done.submission}.sig.json"}
    assert len(ada.list_repo_commits(**REPO)) == 2  # the empty one, and one that adds
    board = rank(NAME, **seen)
    assert [(row.rank, row.method, row.value.mean) for row in board.rows] == [(1, "memit", 0.7), (2, "rome", 0.5)]
    assert board.commit == done.commit and board.skipped == ()
    assert {row.submitter for row in board.rows} == {public_key(ADA)}


def test_a_file_is_named_by_its_bytes_and_has_one_form(ada, at):
    runs = [run(0.5), run(0.7, "memit")]
    done = submit(runs, NAME, **at)
    data = Path(ada.hf_hub_download(filename=done.path, **REPO)).read_bytes()
    assert sha256(data).hexdigest() == done.submission
    again = submit([*reversed(runs), runs[0]], NAME, **at)
    assert again.submission == done.submission and not again.is_new and again.commit == done.commit
    assert "already" in " ".join(again.notes) and "given twice" in again.notes[0]
    assert len(ada.list_repo_commits(**REPO)) == 2


def test_the_card_stays_as_its_owner_wrote_it(ada, at):
    ada.create_repo(**REPO)
    put(ada, "README.md", b"---\npretty_name: Ours\n---\n")
    submit([run(0.5)], NAME, **at)
    assert Path(ada.hf_hub_download(filename="README.md", **REPO)).read_bytes() == b"---\npretty_name: Ours\n---\n"


def test_only_files_are_added(ada, at):
    first = set(ada.list_repo_files(**REPO, revision=submit([run(0.5)], NAME, **at).commit))
    second = set(ada.list_repo_files(**REPO, revision=submit([run(0.6)], NAME, key=ADA, **at).commit))
    assert first < second and len(second - first) == 2


def test_outcomes_of_single_edits_stay_at_home(ada, at, seen):
    secret = {"id": "1", "subject": "my cat", "prompt": "x" * 1000}
    done = submit([Run.model_validate({**run(0.5).to_dict(), "per_edit": [secret]})], NAME, **at)
    assert done.notes == ("The outcomes of single edits are left out of 1 run(s): a board holds averages.",)
    assert b"my cat" not in Path(ada.hf_hub_download(filename=done.path, **REPO)).read_bytes()
    assert means(rank(NAME, **seen)) == [("ada", 0.5)]


def test_what_cannot_be_submitted(ada, at):
    with pytest.raises(KeditError, match="there is no run to submit"):
        submit([], NAME, **at)
    with pytest.raises(KeditError, match="known by name alone"):
        submit([run(0.5, dataset={"sha256": None})], NAME, **at)
    with pytest.raises(KeditError, match="measured twice"):
        submit([run(0.5), run(0.6)], NAME, **at)
    with pytest.raises(KeditError, match="line 1 has"):
        submit([run(0.5, scores={"protocols": {"generate": sheet(0.5)}, "drift": {"x": "y" * 200_000}})], NAME, **at)
    assert not ada.repo_exists(**REPO)


@pytest.mark.parametrize("name", ["board", "", "a/b/c", "../x", "hf://ada/board", "ada/board@main", "ada/" + "x" * 200])
def test_names_that_are_no_board(name, at):
    for call in (lambda: submit([run(0.5)], name, **at), lambda: rank(name, **at)):
        with pytest.raises(HubError, match="is not the name of a board"):
            call()


def test_somebody_elses_board_takes_proposals_only(ada, bob, at, by_bob, seen):
    submit([run(0.5)], NAME, **at)
    with pytest.raises(HubError, match="forbidden to this token"):
        submit([run(0.9)], NAME, key=BOB, **by_bob)
    done = submit([run(0.9)], NAME, key=BOB, create_pr=True, **by_bob)
    assert done.pr_url and done.pr_url.endswith("/datasets/ada/board/discussions/1")
    assert means(rank(NAME, **seen)) == [("ada", 0.5)]
    proposed = rank(NAME, revision="refs/pr/1", **seen)  # what the owner looks at before merging
    assert means(proposed) == [(public_key(BOB)[:8], 0.9), ("ada", 0.5)] and proposed.skipped == ()
    ada.merge_pull_request(discussion_num=1, **REPO)
    merged = rank(NAME, **seen)
    assert means(merged) == means(proposed) and merged.skipped == ()  # the signature came with its submission


def test_unsigned_proposals_stay_with_who_made_them(hub, ada, at, by_bob, seen):
    submit([run(0.5)], NAME, **at)
    submit([run(0.9)], NAME, create_pr=True, **by_bob)
    carol = hub.create_user("carol")
    submit([run(0.1)], NAME, create_pr=True, endpoint=hub.endpoint, token=carol)
    ada.merge_pull_request(discussion_num=1, **REPO)
    ada.merge_pull_request(discussion_num=2, **REPO)
    rows = rank(NAME, **seen).rows
    assert [(row.submitter, row.value.mean, row.signed) for row in rows] == [
        ("ada, bob", 0.9, False), ("ada", 0.5, False), ("ada, carol", 0.1, False),
    ]  # fmt: skip


def test_a_board_that_is_not_there(at):
    with pytest.raises(HubError, match=r"has no repo 'datasets/ada/board'"):
        rank(NAME, **at)
    with pytest.raises(HubError, match=r"has no repo 'datasets/ada/board'"):
        submit([run(0.5)], NAME, create_pr=True, **at)


def test_a_board_without_submissions(ada, seen):
    ada.create_repo(**REPO)
    board = rank(NAME, **seen)
    assert (board.rows, board.skipped) == ((), ())


# --- races ---------------------------------------------------------------------------------------------------------


def test_two_who_submit_at_once_are_both_on_the_board(ada, at, seen, monkeypatch):
    """Both read the same head and then commit: the later one is made once more onto the earlier."""
    submit([run(0.1)], NAME, **at)
    both = Barrier(2)
    create_commit = HfApi.create_commit
    parents = []

    def together(self, *args, **kwargs):
        parents.append(kwargs["parent_commit"])
        if len(parents) <= 2:
            both.wait()
        return create_commit(self, *args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", together)
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda one: submit([run(one[0])], NAME, key=one[1], **at), [(0.5, ADA), (0.6, BOB)]))
    assert all(one.is_new for one in done) and len(parents) == 3 and parents[0] == parents[1] != parents[2]
    assert len(ada.list_repo_commits(**REPO)) == 4
    assert means(rank(NAME, **seen)) == [(public_key(BOB)[:8], 0.6), (public_key(ADA)[:8], 0.5), ("ada", 0.1)]


def test_the_same_submission_twice_at_once_is_one_file(ada, at, monkeypatch):
    create_commit = HfApi.create_commit

    def overtaken(self, *args, **kwargs):
        monkeypatch.setattr(HfApi, "create_commit", create_commit)
        submit([run(0.5)], NAME, **at)
        return create_commit(self, *args, **kwargs)

    submit([run(0.1)], NAME, **at)
    monkeypatch.setattr(HfApi, "create_commit", overtaken)
    done = submit([run(0.5)], NAME, **at)
    assert done.commit == ada.dataset_info(NAME).sha and len(ada.list_repo_commits(**REPO)) == 3


def test_a_second_race_is_told(at, monkeypatch):
    submit([run(0.1)], NAME, **at)
    create_commit, times = HfApi.create_commit, iter(range(1, 9))

    def overtaken(self, *args, **kwargs):
        put(self, f"note-{next(times)}.txt", b"x") if kwargs.get("parent_commit") else None
        return create_commit(self, *args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", overtaken)
    with pytest.raises(HubError, match="Nothing was lost"):
        submit([run(0.5)], NAME, **at)


# --- what strangers put there --------------------------------------------------------------------------------------


def test_hostile_files_are_left_out_by_name(ada, at, seen):
    submit([run(0.5)], NAME, key=ADA, **at)
    zeros = f"submissions/{'0' * 64}.jsonl"
    put(ada, zeros, b"{}\n")
    put(ada, "submissions/evil.py", b"import os")
    put(ada, "verifications/x.pkl", b"\x80\x04.")
    put(ada, "other/thing.bin", b"\x00" * 10)
    board = rank(NAME, **seen)
    assert means(board) == [(public_key(ADA)[:8], 0.5)]
    assert {one.path for one in board.skipped} == {zeros, "submissions/evil.py", "verifications/x.pkl"}


def test_a_submission_that_is_changed_later_is_left_out(ada, at, seen):
    done = submit([run(0.5)], NAME, key=ADA, **at)
    submit([run(0.4, "memit")], NAME, **at)
    put(ada, done.path, Path(ada.hf_hub_download(filename=done.path, **REPO)).read_bytes().replace(b"0.5", b"0.9"))
    board = rank(NAME, **seen)
    assert [row.method for row in board.rows] == ["memit"]
    assert "not those its name says" in " ".join(one.reason for one in board.skipped)


def test_a_submission_that_comes_back_is_as_new_as_its_return(ada, at, seen):
    """Who takes a file away and puts it back has submitted it again: it cannot hide behind its first date."""
    old = submit([run(0.9)], NAME, **at)
    submit([run(0.2)], NAME, **at)
    assert means(rank(NAME, **seen)) == [("ada", 0.2)]
    gone = CommitOperationDelete(path_in_repo=old.path)
    ada.create_commit(operations=[gone], commit_message="gone", **REPO)
    submit([run(0.9)], NAME, **at)
    assert means(rank(NAME, **seen)) == [("ada", 0.9)]


def test_a_flood_is_bounded(ada, at, seen):
    submit([run(0.5)], NAME, key=ADA, **at)
    flood = [
        CommitOperationAdd(path_in_repo=f"submissions/{i:064x}.jsonl", path_or_fileobj=b"{}\n") for i in range(300)
    ]
    ada.create_commit(operations=flood, commit_message="flood", **REPO)
    found = read(NAME, bounds=Bounds(max_files=200), **seen)
    assert len(found.entries) + len(found.skipped) == 201
    assert any("more than 200 files" in one.reason for one in found.skipped)
    found = read(
        NAME, bounds=Bounds(max_submissions=50), **seen
    )  # the oldest are read: what stands on a board stays on it
    assert [entry.signer for entry in found.entries] == [public_key(ADA)] and len(found.skipped) == 300
    assert sum("50 such files are read" in one.reason for one in found.skipped) == 251
    assert means(rank(NAME, **seen)) == [(public_key(ADA)[:8], 0.5)]


# --- without a hub -------------------------------------------------------------------------------------------------


def test_a_board_is_read_again_without_a_hub(tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        at = {"endpoint": hub.endpoint, "token": hub.create_user("ada")}
        commit = submit([run(0.5)], NAME, key=ADA, **at).commit
        first = rank(NAME, **at)
        submit([run(0.9, "memit")], NAME, **at)
    seen = {"endpoint": hub.endpoint, "token": False}
    board = rank(NAME, **seen)  # the hub is gone; the second submission was never looked at
    assert board == first and len(board.rows) == 1
    assert rank(NAME, revision=commit, **seen).rows == board.rows
    with pytest.raises(HubError, match="cannot be reached, and 'datasets/bob/board'"):
        rank("bob/board", **seen)


def test_what_was_read_is_not_fetched_again(at, monkeypatch):
    submit([run(0.5)], NAME, key=ADA, **at)
    rank(NAME, **at)
    fetched = []
    download = HfApi.hf_hub_download
    monkeypatch.setattr(
        HfApi,
        "hf_hub_download",
        lambda self, repo, path, **more: fetched.append(path) or download(self, repo, path, **more),
    )
    rank(NAME, **at)
    assert fetched == []
    done = submit([run(0.9, "memit")], NAME, **at)
    assert len(rank(NAME, **at).rows) == 2 and fetched == [done.path]


def test_a_damaged_cache_is_fetched_anew(at, tmp_path):
    submit([run(0.5)], NAME, key=ADA, **at)
    good = rank(NAME, **at)
    files = [
        file
        for file in (tmp_path / "kedit-home").rglob("*")
        if file.is_file() and "leaderboards" in file.parts and "refs" not in file.parts
    ]
    assert len(files) == 3  # a listing, a submission, its signature
    for file in files:
        file.write_bytes(b"damaged")
    assert rank(NAME, **at) == good


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_what_is_kept_is_the_readers_alone(at, tmp_path):
    submit([run(0.5)], NAME, **at)
    rank(NAME, **at)
    kept = [file for file in (tmp_path / "kedit-home" / "leaderboards").rglob("*") if "refs" not in file.parts]
    assert kept and not any(file.stat().st_mode & 0o077 for file in kept)


def test_a_cache_that_cannot_be_written_costs_only_time(at, tmp_path, monkeypatch):
    submit([run(0.5)], NAME, **at)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path / "file"))
    assert means(rank(NAME, **at)) == [("ada", 0.5)]


def test_bytes_that_are_not_what_the_hub_lists(at, monkeypatch, tmp_path):
    submit([run(0.5)], NAME, **at)
    done = submit([run(0.6, "memit")], NAME, **at)
    download = HfApi.hf_hub_download

    def corrupt(self, repo, path, **more):
        got = download(self, repo, path, **more)
        if path != done.path:
            return got
        bad = tmp_path / "bad"
        bad.write_bytes(Path(got).read_bytes().replace(b"0.6", b"0.9"))
        return str(bad)

    monkeypatch.setattr(HfApi, "hf_hub_download", corrupt)
    board = rank(NAME, **at)
    assert [row.method for row in board.rows] == ["rome"] and "arrived with other bytes" in board.skipped[0].reason
    monkeypatch.undo()


def test_a_hub_that_does_not_say_where_files_come_from(at, monkeypatch):
    submit([run(0.5)], NAME, **at)
    monkeypatch.setattr(HfApi, "list_repo_commits", lambda *_, **__: [])
    with pytest.raises(HubError, match="does not say which commit"):
        rank(NAME, **at)


# --- verifying -----------------------------------------------------------------------------------------------------

POLICY = TrustPolicy(keys={"bob": public_key(BOB)}, rules=[Rule(base="*", signers=["bob"])])


def test_somebody_measures_again(ada, at, by_bob, seen):
    submit([run(0.5), run(0.7, "memit")], NAME, key=ADA, **at)
    done = mark_verified(NAME, [run(0.51), run(0.6, "memit"), run(0.9, "ft")], key=BOB, create_pr=True, **by_bob)
    assert done.verifier == public_key(BOB) and len(done.reproduced) == 1 and done.pr_url
    ((_, differs),) = done.differs.items()
    assert ("generate", "score", 0.7, 0.6) in differs.differences
    assert done.own == () and done.unknown == (run(0.9, "ft").key,)
    ada.merge_pull_request(discussion_num=1, **REPO)
    rows = {row.method: row.mark for row in rank(NAME, trust=POLICY, **seen).rows}
    assert rows == {"rome": Verified(("bob",)), "memit": Unchecked()}
    assert {type(row.mark) for row in rank(NAME, **seen).rows} == {Attested, Unchecked}


def test_the_policy_of_the_environment_names_who_verifies(ada, at, by_bob, seen, tmp_path, monkeypatch):
    submit([run(0.5)], NAME, key=ADA, **at)
    mark_verified(NAME, [run(0.5)], key=BOB, create_pr=True, **by_bob)
    ada.merge_pull_request(discussion_num=1, **REPO)
    monkeypatch.setenv("KEDIT_TRUST", str(POLICY.save(tmp_path / "kedit.trust")))
    assert rank(NAME, **seen).rows[0].mark == Verified(("bob",))


def test_ones_own_runs_are_not_vouched_for(at, ada):
    head = submit([run(0.5)], NAME, key=ADA, **at).commit
    done = mark_verified(NAME, [run(0.5)], key=ADA, **at)
    assert len(done.own) == 1 and not done.reproduced and done.commit is None and ada.dataset_info(NAME).sha == head


def test_nothing_to_vouch_for_changes_nothing(at, ada):
    head = submit([run(0.5)], NAME, key=ADA, **at).commit
    done = mark_verified(NAME, [run(0.9)], key=BOB, **at)
    assert len(done.differs) == 1 and done.commit is None and ada.dataset_info(NAME).sha == head
    with pytest.raises(KeditError, match="too wide"):
        mark_verified(NAME, [run(0.9)], key=BOB, tolerance=0.5, **at)


def test_vouching_twice_adds_one_file(at, ada):
    submit([run(0.5)], NAME, key=ADA, **at)
    first = mark_verified(NAME, [run(0.5)], key=EVE, **at)
    assert mark_verified(NAME, [run(0.5)], key=EVE, **at).commit == first.commit
    assert sum(path.startswith("verifications/") for path in ada.list_repo_files(**REPO)) == 1


def test_a_board_of_a_private_repo_stays_private(hub, ada, at, seen):
    ada.create_repo(**REPO, private=True)
    submit([run(0.5)], NAME, **at)
    assert means(rank(NAME, **at)) == [("ada", 0.5)]
    with pytest.raises(HubError, match="has no repo"):
        rank(NAME, **seen)


# --- the viewer ----------------------------------------------------------------------------------------------------


def test_the_viewer_can_read_every_submission(at, ada, tmp_path, monkeypatch):
    """Runs whose settings and scores have nothing in common lie in one table, as the card declares it."""
    datasets = pytest.importorskip("datasets", reason="the library behind the Hub's viewer is not installed")
    submit([run(0.5)], NAME, key=ADA, **at)
    odd = run(
        0.7,
        "memit",
        settings={"name": "x", "lr": 0.5},
        scores={"protocols": {"choice": sheet(0.7)}, "drift": {"kl": None}},
    )
    submit([odd], NAME, **at)
    folder = ada.snapshot_download(**REPO, local_dir=tmp_path / "clone")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    table = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(table["method"]) == ["memit", "rome"] and table.features["kedit_run"].dtype == "int64"
    by = {row["method"]: row for row in table}
    assert by["memit"]["settings"] == {"name": "x", "lr": 0.5} and by["rome"]["settings"] == {"layer": 3}
    assert json.dumps(by["rome"]["scores"]["protocols"]["generate"]["score"]) == "0.5"
