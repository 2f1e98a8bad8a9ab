"""Which names the hub accepts. Law: a name that could mean something to a file system of any platform is refused.

Names are only stored as values in the database; the rules protect those who download. Sources of the path rules: git's
own (`git help check-ref-format`, the refusal of `.git` in any spelling) and the reserved names of Windows.
"""

import re
import unicodedata
from collections.abc import Iterable

from kedit_hub.hub.localhub.refusal import Refusal

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_REF = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._+/-]{0,199}[A-Za-z0-9_+-])?")
_SHA = re.compile(r"[0-9a-f]{40}")
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)
_FORBIDDEN = frozenset('\\:*?"<>|')


def check_name(name: str) -> str:
    """A user's or a repo's name; raises Refusal."""
    if not _NAME.fullmatch(name) or "--" in name or ".." in name or name.endswith(".git"):
        raise Refusal(f"'{name}' is not a valid name: use 1 to 96 of A-Z a-z 0-9 . _ - without '--' and '..'.")
    return name


def check_ref(name: str) -> str:
    """The short name of a branch or a tag; raises Refusal."""
    pieces = name.split("/")
    if (
        not _REF.fullmatch(name)
        or ".." in name
        or any(not piece or piece.startswith(".") or piece.endswith((".lock", ".")) for piece in pieces)
        or pieces[0] == "refs"
        or _SHA.fullmatch(name.lower())
    ):
        raise Refusal(f"Invalid reference '{name}' for a branch or a tag; a name like v1.2.0 will do.")
    return name


def check_path(path: str, max_chars: int) -> str:
    """The path of a file inside a repo, `/` between folders; raises Refusal."""

    def refuse(why: str) -> Refusal:
        return Refusal(f"The path {path[:200]!r} is refused: {why}.")

    if not path or len(path) > max_chars:
        raise refuse(f"it must have 1 to {max_chars} characters")
    if not path.isprintable():  # controls, formats, surrogates, and every space but the ASCII one
        raise refuse("it holds an unprintable character")
    if unicodedata.normalize("NFC", path) != path:
        raise refuse("it is not in Unicode normal form C")
    for piece in path.split("/"):
        if piece in ("", ".", ".."):
            raise refuse("it is absolute, or has an empty, '.' or '..' part")
        if piece.rstrip(". ") != piece:
            raise refuse("a part ends in a dot or a space")
        if piece.casefold() in (".git", "git~1"):
            raise refuse("'.git' belongs to git")
        if _DEVICE.fullmatch(piece) or _FORBIDDEN & set(piece):
            raise refuse("a part means something else on Windows")
    return path


def check_tree(paths: Iterable[str]) -> None:
    """Refuse a tree where one name is both a file and a folder, or where two files differ only in case."""
    seen: set[str] = set()
    for path in paths:
        if path.casefold() in seen:
            raise Refusal(f"The path '{path}' differs only in case from another file of this commit.")
        seen.add(path.casefold())
    for path in seen:
        folder = path.rpartition("/")[0]
        while folder:
            if folder in seen:
                raise Refusal(f"'{folder}' cannot be a file and a folder at once.")
            folder = folder.rpartition("/")[0]
