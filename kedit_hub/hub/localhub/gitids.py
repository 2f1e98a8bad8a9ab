"""Git's own object ids, without git. Law: the id of a commit fixes every byte and every name in it.

An object id is SHA-1 over "<type> <length>\\0<content>" (Pro Git, "Git Internals - Git Objects"), so files, folders and
commits of the development hub carry the ids that a git repository with the same history would give them.
"""

import hashlib
from collections.abc import Mapping


def _object_id(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


def blob_id(data: bytes) -> str:
    """Id of a file's content, 40 hex digits."""
    return _object_id("blob", data)


def has_digest(data: bytes, digest: str) -> bool:
    """digest: SHA-256 (64 hex digits) or git blob id (40), as the Hub names large and small files."""
    return digest == (hashlib.sha256(data).hexdigest() if len(digest) == 64 else blob_id(data))


def tree_ids(blobs: Mapping[str, str]) -> dict[str, str]:
    """{path of a file: blob id} -> {path of a folder: tree id}; the root is ""."""
    children: dict[str, dict[str, tuple[bytes, str]]] = {"": {}}  # folder -> name -> (mode, id)
    for path, oid in blobs.items():
        folder, _, name = path.rpartition("/")
        children.setdefault(folder, {})[name] = (b"100644", oid)
        while folder:  # every ancestor exists as a folder
            folder = folder.rpartition("/")[0]
            children.setdefault(folder, {})

    ids: dict[str, str] = {}
    for folder in sorted(children, key=lambda path: path.count("/") + bool(path), reverse=True):  # deepest first
        entries = children[folder]
        # git sorts the names of folders as if they ended in "/"
        ordered = sorted(entries, key=lambda name: name.encode() + (b"/" if entries[name][0] == b"40000" else b""))
        content = b"".join(entries[n][0] + b" " + n.encode() + b"\0" + bytes.fromhex(entries[n][1]) for n in ordered)
        ids[folder] = _object_id("tree", content)
        if folder:
            parent, _, name = folder.rpartition("/")
            children[parent][name] = (b"40000", ids[folder])
    return ids


def commit_id(tree: str, parent: str | None, author: str, seconds: int, message: str) -> str:
    """Id of a commit with at most one parent; `seconds` since 1970 in UTC."""
    who = f"{author} <{author}@localhub> {seconds} +0000"
    parents = f"parent {parent}\n" if parent else ""
    return _object_id("commit", f"tree {tree}\n{parents}author {who}\ncommitter {who}\n\n{message}\n".encode())
