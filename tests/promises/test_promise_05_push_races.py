"""Promise 5: of two who push at once one wins, the other is told, and nothing is lost.

Two pushers take turns at every request, in 20 random orders. Races by name are in tests/hub/test_push_races.py.
"""

import random
import threading

import pytest
from huggingface_hub import HfApi

from kedit_hub.errors import HubError
from kedit_hub.hub.commits import Pushed
from kedit_hub.hub.localhub import LocalHub
from kedit_hub.hub.repo import pull, push
from tests.hub.patches import make_patch

REQUESTS = ("list_repo_refs", "create_repo", "get_paths_info", "create_commit", "create_tag", "model_info")
TARGETS = ("Rome", "Reykjavik")


class Turns:
    """Lets one thread at a time make one request; whose turn it is, is drawn at random among those still at work."""

    def __init__(self, names, seed: int):
        self._random, self._waiting, self._names = random.Random(seed), threading.Condition(), list(names)
        self._next = self._random.choice(self._names)
        self.taken: list[str] = []

    def request(self, call):
        name = threading.current_thread().name
        with self._waiting:
            assert self._waiting.wait_for(lambda: self._next == name, timeout=60)
            self.taken.append(name)
            try:
                return call()
            finally:
                self._pass_on()

    def leave(self):
        with self._waiting:
            self._names.remove(threading.current_thread().name)
            if self._names:
                self._pass_on()

    def _pass_on(self):
        self._next = self._random.choice(self._names)
        self._waiting.notify_all()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def token(hub):
    return hub.create_user("ada")


@pytest.mark.parametrize("seed", range(20))
def test_two_pushers_in_any_order(hub, token, tmp_path, monkeypatch, seed):
    repo_id, at = f"ada/race-{seed}", {"endpoint": hub.endpoint, "token": token}
    exists = seed % 2 == 0  # otherwise both also race to make the repo
    if exists:
        push(make_patch("Start"), repo_id, **at)
    api = HfApi(endpoint=hub.endpoint, token=token)
    turns = Turns(TARGETS, seed)
    results: dict[str, Pushed | str] = {}

    def one():
        target = threading.current_thread().name
        try:
            results[target] = push(make_patch(target), repo_id, version="1.0.0", **at)
        except HubError as error:
            results[target] = str(error)
        finally:
            turns.leave()

    with monkeypatch.context() as patched:
        for name in REQUESTS:
            patched.setattr(HfApi, name, _in_turn(getattr(HfApi, name), turns, TARGETS))
        threads = [threading.Thread(target=one, name=target) for target in TARGETS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
    assert set(results) == set(TARGETS) == set(turns.taken)
    winners = {target: result for target, result in results.items() if isinstance(result, Pushed)}
    assert winners, results
    for message in (result for result in results.values() if isinstance(result, str)):
        assert "Nothing was lost" in message or "already has the version v1.0.0" in message, message

    history = [commit.commit_id for commit in api.list_repo_commits(repo_id)]
    there = {**at, "cache_dir": tmp_path}
    for target, pushed in winners.items():  # who was told that it was stored finds it, at its commit
        assert pushed.commit in history
        assert pull(f"{repo_id}@{pushed.commit}", **there) == make_patch(target)
    (tag,) = api.list_repo_refs(repo_id).tags
    tagged = pull(f"{repo_id}@{tag.name}", **there)  # the one version there is, is one winner's, whole
    assert tagged.edits[0].target in winners and winners[tagged.edits[0].target].commit == tag.target_commit
    made = [pull(f"{repo_id}@{commit}", **there) for commit in history[: -1 - exists]]
    assert {patch.edits[0].target for patch in made} <= set(TARGETS) and len(made) <= 2


def _in_turn(method, turns, names):
    def call(self, *args, **kwargs):
        if threading.current_thread().name not in names or getattr(turns, "inside", None) is threading.current_thread():
            return method(self, *args, **kwargs)

        def alone():
            turns.inside = threading.current_thread()  # a request that makes others is one turn
            try:
                return method(self, *args, **kwargs)
            finally:
                turns.inside = None

        return turns.request(alone)

    return call
