"""The body of a commit: newline-delimited JSON. Law: one file at a time in memory; an upload that fails leaves nothing.

{"key": "header", "value": {"summary": "...", "description": "...", "parentCommit": "..."}}
{"key": "file", "value": {"path": "config.json", "encoding": "base64", "content": "..."}}
{"key": "deletedFile", "value": {"path": "evals.json"}}
{"key": "deletedFolder", "value": {"path": "peft"}}
"""

import base64
import binascii
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kedit_hub.hub.localhub.blobs import BlobFolder, Staged
from kedit_hub.hub.localhub.bounds import HubBounds
from kedit_hub.hub.localhub.http import Body, json_object, text_field
from kedit_hub.hub.localhub.refusal import Refusal
from kedit_hub.hub.localhub.store import Change, Delete, DeleteFolder, Put


@contextmanager
def uploaded(body: Body, blobs: BlobFolder, bounds: HubBounds) -> Iterator[tuple[dict[str, Any], list[Change]]]:
    """(header, changes) of a commit's body. Contents are staged on the disk; what is not committed is removed after."""
    max_line = bounds.max_file_bytes * 4 // 3 + bounds.max_json_bytes  # base64, and the rest of the line
    header: dict[str, Any] | None = None
    changes: list[Change] = []
    staged: list[Staged] = []
    try:
        for line in body.lines(bounds.max_commit_bytes, max_line):
            operation = json_object(line, "A line of the commit", max_line)
            value = operation.get("value")
            if not isinstance(value, dict):
                raise Refusal("Every line of a commit has a 'key', and an object as 'value'.")
            if len(changes) >= bounds.max_commit_changes:
                raise Refusal(f"A commit may have {bounds.max_commit_changes:,} operations.", 413)
            match operation.get("key"):
                case "header":
                    header = value
                case "file":
                    path = text_field(value, "path", bounds.max_path_chars)
                    content = blobs.stage(_content(value, bounds))
                    staged.append(content)
                    changes.append(Put(path, content))
                case "deletedFile":
                    changes.append(Delete(text_field(value, "path", bounds.max_path_chars)))
                case "deletedFolder":
                    changes.append(DeleteFolder(text_field(value, "path", bounds.max_path_chars)))
                case "lfsFile":
                    raise Refusal("The development hub takes no LFS files; follow the answer of preupload.")
                case other:
                    raise Refusal(f"The development hub does not know the commit operation {other!r}.")
        if header is None:
            raise Refusal("The commit has no header.")
        yield header, changes
    finally:
        blobs.discard(staged)


def _content(value: dict[str, Any], bounds: HubBounds) -> bytes:
    """The bytes of a 'file' operation."""
    content, encoding = value.get("content"), value.get("encoding", "utf-8")
    if not isinstance(content, str) or encoding not in ("base64", "utf-8"):
        raise Refusal("A file's content must be a text in base64 or utf-8.")
    try:
        data = base64.b64decode(content, validate=True) if encoding == "base64" else content.encode()
    except (binascii.Error, ValueError):
        raise Refusal("A file's content is not valid base64.") from None
    if len(data) > bounds.max_file_bytes:
        raise Refusal(f"A file may have {bounds.max_file_bytes:,} bytes, not {len(data):,}.", 413)
    return data
