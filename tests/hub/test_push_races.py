"""Two who push at once: one wins, the other is told, nothing is lost."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from huggingface_hub import HfApi

from kedit_hub.errors import HubError
from kedit_hub.hub.repo import pull, push

from .patches import make_patch


@pytest.fixture
def at(hub, ada):
    return {"endpoint": hub.endpoint, "token": ada.token}


def test_a_stale_parent_is_refused_and_nothing_is_lost(hub, ada, at, tmp_path):
    first = push(make_patch("Rome"), "ada/tower", **at)
    second = push(make_patch("Lyon"), "ada/tower", parent_commit=first.commit, **at)
    with pytest.raises(HubError, match=r"Somebody pushed to 'ada/tower' meanwhile\. Nothing was lost"):
        push(make_patch("Oslo"), "ada/tower", version="1.0.0", parent_commit=first.commit, **at)
    assert ada.model_info("ada/tower").sha == second.commit
    assert ada.list_repo_refs("ada/tower").tags == []
    assert pull("ada/tower", endpoint=hub.endpoint, token=False, cache_dir=tmp_path).id == make_patch("Lyon").id


def test_a_push_in_the_middle_of_another_is_noticed(ada, at, monkeypatch):
    """Between reading the head and committing, somebody else commits."""
    push(make_patch("Rome"), "ada/tower", **at)
    create_commit = HfApi.create_commit

    def overtaken(self, *args, **kwargs):
        monkeypatch.setattr(HfApi, "create_commit", create_commit)
        push(make_patch("Lyon"), "ada/tower", **at)
        return create_commit(self, *args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", overtaken)
    with pytest.raises(HubError, match="Nothing was lost"):
        push(make_patch("Oslo"), "ada/tower", version="1.0.0", **at)
    assert [commit.title.split()[0] for commit in ada.list_repo_commits("ada/tower")] == ["Patch", "Patch", "initial"]
    assert ada.list_repo_refs("ada/tower").tags == []


def test_a_push_that_the_client_takes_for_unchanged_is_checked(ada, at, monkeypatch):
    """The files are those of the head that was read, so the client makes no commit; but the head has moved."""
    push(make_patch("Rome"), "ada/tower", **at)
    create_commit = HfApi.create_commit

    def overtaken(self, *args, **kwargs):
        done = create_commit(self, *args, **kwargs)
        monkeypatch.setattr(HfApi, "create_commit", create_commit)
        done.oid = push(make_patch("Lyon"), "ada/tower", **at).commit  # what the client reads as the head afterwards
        return done

    monkeypatch.setattr(HfApi, "create_commit", overtaken)
    with pytest.raises(HubError, match=r"does not hold the .* that was pushed"):
        push(make_patch("Rome"), "ada/tower", version="1.0.0", **at)
    assert ada.list_repo_refs("ada/tower").tags == []


def test_of_many_pushers_of_one_parent_one_wins(hub, ada, at, tmp_path):
    parent = push(make_patch("Start"), "ada/tower", **at).commit
    start = Barrier(5)

    def one(target):
        start.wait()
        try:
            return push(make_patch(target), "ada/tower", version="2.0.0", parent_commit=parent, **at)
        except HubError as error:
            return str(error)

    with ThreadPoolExecutor(5) as pool:
        results = list(pool.map(one, ["Rome", "Lyon", "Oslo", "Bern", "Riga"]))
    winners = [result for result in results if not isinstance(result, str)]
    assert len(winners) == 1
    for message in set(results) - set(winners):
        assert "Nothing was lost" in message or "already has the version v2.0.0" in message
    winner = ["Rome", "Lyon", "Oslo", "Bern", "Riga"][results.index(winners[0])]
    pulled = pull("ada/tower@v2.0.0", endpoint=hub.endpoint, token=False, cache_dir=tmp_path)
    assert pulled.id == make_patch(winner).id and len(ada.list_repo_commits("ada/tower")) == 3


def test_two_who_both_read_the_head_first(hub, ada, at, monkeypatch):
    """Both see the same head, then both commit: a race in every run."""
    push(make_patch("Start"), "ada/tower", **at)
    both = Barrier(2)
    create_commit = HfApi.create_commit

    def together(self, *args, **kwargs):
        both.wait()
        return create_commit(self, *args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", together)

    def one(target):
        try:
            return push(make_patch(target), "ada/tower", **at).commit
        except HubError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        results = sorted(pool.map(one, ["Rome", "Lyon"]), key=len)
    assert results[0] == ada.model_info("ada/tower").sha and "Nothing was lost" in results[1]
    assert len(ada.list_repo_commits("ada/tower")) == 3
