"""23 · Locks and packed stacks: what a stack from a stranger may make us read, fetch or believe.

A lock that came from a hub names repos at commits and packed patches, nothing else: no path, no moving ref, no author, no code. What
it says of a patch is compared with the patch, whose id is computed anew; a packed file is parsed only where its digest is the locked one.
"""

import json

import pytest

from kedit_hub import strictjson
from kedit_hub.errors import KeditError, PatchFormatError
from kedit_hub.patch import Patch
from kedit_hub.stack.lock import InPack, InRepo, Lock, _digest, fetcher, lock, restore
from kedit_hub.stack.packed import PACKED, digests, from_packed, packed_files
from kedit_hub.stack.stack import PatchStack
from tests.attacks.test_05_path_traversal import PATHS_OF_ALL_KINDS
from tests.attacks.tools import every, good

JSON, TENSORS = PACKED


def made() -> tuple[Lock, dict[str, bytes]]:
    """A lock of one packed patch and one in a repo, and its packed files."""
    a, b = Patch.from_files(good()), Patch.from_files(every())
    files = packed_files([a])
    sources = {a.id: InPack(packed=True), b.id: InRepo(repo="ada/tower", commit="a" * 40)}
    return lock(PatchStack([a, b], conflicts="latest"), sources, packed=digests(files)), files


def sealed(change) -> bytes:
    """The lock changed in place, with the digest that its new contents have."""
    value = json.loads(made()[0].to_bytes())
    del value["digest"]
    change(value)
    return strictjson.pretty({**value, "digest": _digest(value)})


@pytest.mark.parametrize("path", list(PATHS_OF_ALL_KINDS.values()), ids=list(PATHS_OF_ALL_KINDS))
@pytest.mark.parametrize("field", ["folder", "repo", "packed", "files"])
def test_no_path_gets_in(path, field):
    def change(value):
        entry = value["patches"][1]
        if field == "files":
            entry["files"][path] = "0" * 64
        elif field == "packed":
            value["packed"][path] = "0" * 64
        else:
            entry["source"] = {"folder": path} if field == "folder" else {"repo": path, "commit": "a" * 40}

    with pytest.raises(PatchFormatError):
        Lock.parse(sealed(change))


@pytest.mark.parametrize("ref", ["main", "v1.0.0", "refs/pr/1", "A" * 40, "a" * 39, "a" * 41, "", None, 1])
def test_no_moving_ref_gets_in(ref):
    with pytest.raises(PatchFormatError, match=r"patches\.1\.source"):
        Lock.parse(sealed(lambda v: v["patches"][1]["source"].update(commit=ref)))


@pytest.mark.parametrize(
    "field", ["author", "trust", "url", "endpoint", "token", "auto_map", "trust_remote_code", "__class__"]
)
@pytest.mark.parametrize("where", ["top", "patch", "source", "settings", "base"])
def test_no_unknown_field_gets_in(field, where):
    def change(value):
        places = {"top": value, "patch": value["patches"][1], "source": value["patches"][1]["source"]}
        {**places, "settings": value["settings"], "base": value["base"]}[where][field] = "x"

    with pytest.raises(PatchFormatError, match="is not valid"):
        Lock.parse(sealed(change))


def test_a_packed_bomb_is_not_parsed(monkeypatch):
    """Files that are not the locked ones never reach a parser."""
    monkeypatch.setattr("kedit_hub.stack.lock.from_packed", lambda files: pytest.fail("parsed"))
    saved, files = made()
    for name in PACKED:
        with pytest.raises(KeditError, match=f"{name} has the digest"):
            restore(
                saved, fetcher(saved, lambda entry: Patch.from_files(every()), packed=lambda n=name: {**files, n: b"["})
            )


def test_a_broken_pack_is_read_once(monkeypatch):
    """However many patches of a lock lie in it."""
    saved, files = made()
    entry = saved.patches[0]
    calls = []

    def packed():
        calls.append(1)
        return {**files, JSON: b"["}

    fetch = fetcher(saved, lambda entry: pytest.fail("pulled"), packed=packed)
    for _ in range(100):
        with pytest.raises(KeditError):
            fetch(entry)
    assert len(calls) == 1


def test_another_patch_under_a_locked_id_is_found_out():
    """A repo that serves another patch at the locked commit."""
    saved, files = made()
    with pytest.raises(KeditError, match=r"is another one: .* lies there"):
        restore(saved, fetcher(saved, lambda entry: Patch.from_files(good()), packed=lambda: files))


@pytest.mark.parametrize(
    "name", ["../x", "p1.a/b", "p00.a/b", "p-1.a/b", "q0.model.layers.0.mlp.down_proj/a", "__class__/a"]
)
def test_tensors_under_other_names_are_refused(name):
    _, files = made()
    data = files[TENSORS]
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header[name] = header.pop(next(key for key in header if key != "__metadata__"))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with pytest.raises(PatchFormatError):
        from_packed({**files, TENSORS: len(text).to_bytes(8, "little") + text + data[8 + length :]})
