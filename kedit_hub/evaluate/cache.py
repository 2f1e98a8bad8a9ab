"""Answers kept on disk, so that an evaluation that was killed goes on where it stopped. Law: an answer is found again only by the
digest of all it depends on, and a line that was not written to its end was never written.

    kept = Kept(folder, "patch 8b7b on atlas, gated", {"dtype": "float32"})
    kept.put({("edited", "answer", "The capital of France is"): "Paris"})      # appended at once
    Kept(folder, "patch 8b7b on atlas, gated", {"dtype": "float32"}).get(("edited", "answer", "The capital of France is"))

One file of JSON lines for each key and circumstances: {"question": digest, "told": value}. The caller's key must name everything that
changes an answer and that is not in the circumstances: base, revision, tokenizer, patches and their order, install mode.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kedit_hub import strictjson
from kedit_hub.errors import KeditError
from kedit_hub.limits import DEFAULT

_FORMAT = 1  # of what is kept; another number finds nothing of what was kept before

Question = tuple[str | int, ...]


class Kept:
    """What was told so far under one key. `get` gives JSON values; None: not asked yet."""

    def __init__(self, folder: str | os.PathLike[str], key: str, circumstances: Mapping[str, Any]):
        if not key.strip():
            raise KeditError(f"cache_key {key!r} names nothing: say which base, patches and mode answer.")
        name = _digest([_FORMAT, key, dict(circumstances)])
        self.path = Path(folder) / f"{name[:32]}.jsonl"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            data = self.path.read_bytes() if self.path.exists() else b""
        except OSError as cause:
            raise KeditError(
                f"cache {str(folder)!r} cannot be used: {cause.strerror}. Name a folder to write in."
            ) from None
        self._told = dict(_lines(data, self.path))
        self._torn = bool(data) and not data.endswith(b"\n")

    def get(self, question: Question) -> Any | None:
        return self._told.get(_digest(question))

    def put(self, told: Mapping[Question, Any]) -> None:
        """Append in one write; a torn end of an earlier run is first closed by a newline."""
        lines = {_digest(question): value for question, value in told.items()}
        data = b"".join(strictjson.canonical({"question": q, "told": value}) + b"\n" for q, value in lines.items())
        try:
            with self.path.open("ab", buffering=0) as file:
                file.write(b"\n" + data if self._torn else data)
        except OSError as cause:
            raise KeditError(
                f"cache {str(self.path)!r} cannot be written: {cause.strerror}. Make room, or name another."
            ) from None
        self._torn = False
        self._told.update(lines)


def _lines(data: bytes, path: Path) -> Iterator[tuple[str, Any]]:
    """(digest, value) of every whole line. A line that is no JSON was torn by a kill: its question is asked again."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{str(path)!r} line {number}"
        try:
            record = strictjson.loads(line, what=where, max_bytes=DEFAULT.max_evals_bytes, error=KeditError)
        except KeditError:
            continue
        if (
            not isinstance(record, dict)
            or set(record) != {"question", "told"}
            or not isinstance(record["question"], str)
        ):
            raise KeditError(
                f"{where} is no kept answer: {line[:80]!r}. Remove the file, or name another cache folder."
            )
        yield record["question"], record["told"]


def _digest(value: Any) -> str:
    return hashlib.sha256(strictjson.canonical(value)).hexdigest()
