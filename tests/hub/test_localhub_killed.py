"""`kill -9` at any moment leaves the old commit or the new one, whole; and what a client was told is stored stays."""

import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download

from kedit_hub.errors import HubError
from kedit_hub.hub.localhub import HubBounds, add_user
from kedit_hub.hub.localhub.store import MAIN, Put, Store
from kedit_hub.hub.repo import pull, push

from .patches import make_patch

OLD = {"config.json": b"old config", "patch.safetensors": b"old tensors", "same.txt": b"same"}
NEW = {"config.json": b"new config", "patch.safetensors": b"new tensors" * 1000, "evals.json": b"{}"}


def commit(store: Store, files: dict[str, bytes]) -> None:
    repo = store.repo("model", "ada", "patch")
    staged = {path: store.blobs.stage(data) for path, data in files.items()}
    store.commit(repo, MAIN, [Put(path, content) for path, content in staged.items()], author="ada", title="t")


def read(store: Store) -> dict[str, bytes]:
    """All files at the head of main; every content must be what its name says."""
    repo = store.repo("model", "ada", "patch")
    found = {}
    for path, file in store.files(store.resolve(repo, "main")).items():
        found[path] = store.blobs.path(file.sha256).read_bytes()
        assert hashlib.sha256(found[path]).hexdigest() == file.sha256
    return found


def die_at(step: int) -> None:
    """Let this process kill itself at its `step`-th file operation or SQL statement from now on."""
    taken = 0

    def count(*_: object) -> None:
        nonlocal taken
        taken += 1
        if taken == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function):
        def call(*args, **kwargs):
            count()
            return function(*args, **kwargs)

        return call

    for name in ("replace", "fsync", "mkdir", "open", "fdopen", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    tempfile.mkstemp = counted(tempfile.mkstemp)
    connect = sqlite3.connect

    def traced(*args, **kwargs):
        connection = connect(*args, **kwargs)
        connection.set_trace_callback(count)
        return connection

    sqlite3.connect = traced


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_every_step_of_a_commit(tmp_path):
    start = tmp_path / "start"
    store = Store(start, HubBounds())
    store.create_repo("model", "ada", "patch", private=False, author="ada")
    commit(store, OLD)
    store.close()

    outcomes = []
    for step in range(1, 500):
        root = tmp_path / f"hub{step}"
        shutil.copytree(start, root)
        child = os.fork()
        if child == 0:
            try:
                die_at(step)
                store = Store(root, HubBounds())
                commit(store, NEW)
                store.close()
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        store = Store(root, HubBounds())
        found = read(store)
        kept = {file.name for file in (root / "blobs").glob("*/*")}
        commit(store, {"after.txt": b"still writable"})
        assert read(store)["after.txt"] == b"still writable"
        store.close()
        shutil.rmtree(root)
        assert found in (OLD, OLD | NEW), f"a mixture after step {step}"
        assert len(kept) == (6 if found != OLD else 3), f"contents of no commit were kept after step {step}"
        outcomes.append(found == OLD | NEW)
        if os.WIFEXITED(status):
            break
    assert os.WIFEXITED(status) and outcomes[-1]
    assert len(outcomes) > 40 and not outcomes[0]  # so many steps there were, and all were tried
    assert outcomes == sorted(outcomes)  # never new before, and old after, one step


class Process:
    """`serve` in a process of its own, on a free port."""

    CODE = """
import sys
from pathlib import Path
from kedit_hub.hub.localhub import serve
serve(Path(sys.argv[1]), port=int(sys.argv[2]), ready=lambda endpoint: print(endpoint, flush=True))
"""

    def __init__(self, root, port=0):
        command = [sys.executable, "-c", self.CODE, str(root), str(port)]
        listens = partial(
            signal.signal, signal.SIGINT, signal.SIG_DFL
        )  # a shell's background jobs do not, and neither would it
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=listens)
        self.endpoint = self.process.stdout.readline().strip()
        self.port = int(self.endpoint.rsplit(":", 1)[1])

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


def test_a_patch_survives_a_kill(tmp_path):
    """Push, kill -9, start again, pull by tag and by commit; then kill again and pull from the cache."""
    token = add_user(tmp_path / "hub", "ada")
    patch, cache = make_patch(), {"token": False, "cache_dir": tmp_path / "cache"}
    hub = Process(tmp_path / "hub")
    done = push(patch, "ada/tower", version="1.0.0", endpoint=hub.endpoint, token=token)
    hub.kill()
    with pytest.raises(HubError, match="cannot be reached"):
        pull("ada/tower@v1.0.0", endpoint=hub.endpoint, **cache)

    hub = Process(tmp_path / "hub", hub.port)
    assert pull("ada/tower@v1.0.0", endpoint=hub.endpoint, **cache).id == patch.id
    assert pull(f"ada/tower@{done.commit}", endpoint=hub.endpoint, **cache).id == patch.id
    again = push(make_patch("Lyon"), "ada/tower", version="1.1.0", endpoint=hub.endpoint, token=token)
    hub.kill()
    assert pull("ada/tower@v1.0.0", endpoint=hub.endpoint, **cache).id == patch.id
    assert pull(f"ada/tower@{done.commit}", endpoint=hub.endpoint, **cache).id == patch.id
    with pytest.raises(HubError, match="cannot be reached"):
        pull(f"ada/tower@{again.commit}", endpoint=hub.endpoint, **cache)


def test_killed_under_load_no_acknowledged_commit_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # the client tries five times
    token = add_user(tmp_path / "hub", "ada")
    acknowledged: list[tuple[str, bytes]] = []
    for round_ in range(2):
        hub = Process(tmp_path / "hub")
        api = HfApi(endpoint=hub.endpoint, token=token)
        api.create_repo("ada/load", exist_ok=True)
        threading.Timer(0.4 + 0.3 * round_, hub.process.kill).start()
        number = 0
        try:
            while True:
                number += 1
                data = b"%d.%d " % (round_, number) * 1000
                files = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name in ("a.bin", "b.bin")]
                oid = api.create_commit("ada/load", files, commit_message=f"{round_}.{number}").oid
                acknowledged.append((oid, data))
        except httpx2.HTTPError:
            hub.kill()
        assert number > 1

    hub = Process(tmp_path / "hub")
    try:
        line = [commit.commit_id for commit in HfApi(endpoint=hub.endpoint).list_repo_commits("ada/load")]
        assert set(oid for oid, _ in acknowledged) <= set(line)
        # an unacknowledged commit of a round may have been made; nothing else
        assert len(line) - 1 - len(acknowledged) in range(3)
        for oid, data in acknowledged[:: max(1, len(acknowledged) // 10)]:
            for name in ("a.bin", "b.bin"):
                path = hf_hub_download("ada/load", name, revision=oid, endpoint=hub.endpoint, cache_dir=tmp_path / "c")
                assert Path(path).read_bytes() == data
    finally:
        hub.process.send_signal(signal.SIGINT)
        assert hub.process.wait(timeout=60) == 0  # stopped by hand, it ends in peace
        hub.process.stdout.close()
