"""Promise 4: a crash at any moment leaves the old patch or the new one, never a mixture.

A child is killed at every file-system call of Patch.save, for every k, over a new folder and over an old patch; and every call
fails in turn with a full disk and other errors. Thousands of random kills are in benchmarks/soak.py.
"""

import os
import signal
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kedit_hub.errors import KeditError, PatchFormatError
from kedit_hub.patch import Patch
from kedit_hub.patch.signature import sign
from tests.patch.build import EVALS, make_patch
from tests.promises.syscalls import ERRORS, fail_with, interrupted, kill

KEY = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
OLD, NEW = make_patch().replace_evals(EVALS), sign(make_patch(method="rome").replace_evals(EVALS), KEY)

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="two names are exchanged in one step there"
)


FILES = {"old": OLD.files(), "new": NEW.files()}


def contents(folder):
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def state(target):
    """ "nothing", "old" or "new": byte for byte, and it loads."""
    if not target.exists():
        return "nothing"
    name = next(name for name, files in FILES.items() if contents(target) == files)  # else it is a mixture
    assert Patch.load(target) == {"old": OLD, "new": NEW}[name]
    return name


def count_calls(target) -> int:
    with interrupted(0, kill) as calls:
        NEW.save(target)
    return len(calls.made)


@pytest.mark.parametrize("before", ["nothing", "old"])
def test_killed_at_every_call(tmp_path, before):
    states = []
    for k in range(1, 500):
        target = tmp_path / str(k) / "p"
        target.parent.mkdir()
        if before == "old":
            OLD.save(target)
        child = os.fork()
        if child == 0:
            try:
                with interrupted(k, kill):
                    NEW.save(target)
            finally:
                os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        states.append(state(target))
        if status == 0:
            break
        assert status == -signal.SIGKILL
        if k % 5 == 0:
            NEW.save(target)  # and what was left behind does not hinder the next one
            assert state(target) == "new"
    assert status == 0 and len(states) == k > 40  # every call there is, and the run that passed
    first_new = states.index("new")
    assert set(states[:first_new]) == {before} and set(states[first_new:]) == {"new"}  # one step between the two


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("before", ["nothing", "old"])
def test_every_call_fails_in_turn(tmp_path, before, error):
    total = count_calls(tmp_path / "counted" / "p")
    refused = 0
    for k in range(1, total + 20):
        target = tmp_path / str(k) / "p"
        target.parent.mkdir()
        if before == "old":
            OLD.save(target)
        failure: Exception | None = None
        with interrupted(k, fail_with(ERRORS[error])) as calls:
            try:
                NEW.save(target)
            except (PatchFormatError, OSError) as caught:
                failure = caught
        match failure:
            case None:
                assert state(target) == "new"
            case PatchFormatError():
                refused += 1
                assert "Cannot write the patch" in str(failure) and str(target) in str(failure)
                assert state(target) in (before, "new")
            case _:  # the folder could not even be looked at
                assert set(calls.made) <= {"stat", "lstat", "scandir"} and state(target) == before
        if len(calls.made) < k:
            break
        if calls.made[k - 1] in ("write", "write the rest", "flush", "fsync", "mkdir", "exchange", "rename"):
            assert set(os.listdir(target.parent)) <= {"p"}, k  # what failed to be written does not stay
    assert len(calls.made) < k and refused > 20


def test_every_call_is_counted(tmp_path):
    """The table of counted calls is complete: an audit hook sees no call on the file system that is not in it."""
    seen = []

    def hook(event, arguments):
        if watching and event.startswith(("open", "os.", "shutil.")):
            seen.append(event)

    watching = False
    sys.addaudithook(hook)
    OLD.save(tmp_path / "p")
    watching = True
    with interrupted(0, kill) as calls:
        NEW.save(tmp_path / "p")
    watching = False
    made = {name: calls.made.count(name) for name in set(calls.made)}
    for event, name in (("os.mkdir", "mkdir"), ("os.rename", "rename"), ("os.rmdir", "rmdir"), ("os.remove", "unlink")):
        assert seen.count(event) == made.get(name, 0), (event, made)
    assert made["fsync"] == len(NEW.files()) + 2  # every file, the folder, and the folder around it
    assert made["exchange"] == 1


def test_a_save_that_is_refused_touches_nothing(tmp_path):
    """What is not a patch folder is left alone before the first call that writes."""
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "notes.txt").write_text("mine")
    with interrupted(0, kill) as calls, pytest.raises(KeditError, match="not a patch folder"):
        NEW.save(tmp_path / "p")
    assert not {"mkdir", "write", "rename", "exchange", "unlink"} & set(calls.made)
    assert contents(tmp_path / "p") == {"notes.txt": b"mine"}
