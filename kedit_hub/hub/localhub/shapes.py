"""The JSON shapes of the hub's answers. Law: field by field what huggingface_hub 2.4 reads, and nothing invented."""

import html
import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from kedit_hub.hub.localhub.discussions import Discussion, Event
from kedit_hub.hub.localhub.http import Request
from kedit_hub.hub.localhub.store import Commit, File, Repo

_CO_AUTHOR = re.compile(r"^Co-authored-by: [^<>\n]* <([A-Za-z0-9._-]+)@localhub>$", re.MULTILINE)
_PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}  # of web addresses


def url(request: Request, kind: str, user: str, name: str) -> str:
    return f"{request.endpoint}/{_PREFIX[kind]}{quote(user)}/{quote(name)}"


def iso(milliseconds: int) -> str:
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{milliseconds % 1000:03d}Z"


def expanded(request: Request, info: dict[str, Any]) -> dict[str, Any]:
    """`info`, or only what ?expand= asks for."""
    wanted = request.query.get("expand")
    return info if wanted is None else {name: info[name] for name in info if name in ("_id", "id", *wanted)}


def sibling(path: str, file: File, sizes: bool) -> dict[str, Any]:
    return {"rfilename": path} | ({"size": file.size, "blobId": file.oid} if sizes else {})


def file_entry(path: str, file: File, last: Commit | None = None) -> dict[str, Any]:
    """last: the commit that put the file there, where ?expand= asks for it."""
    entry: dict[str, Any] = {"type": "file", "path": path, "oid": file.oid, "size": file.size}
    if last is not None:
        entry["lastCommit"] = {"id": last.sha, "title": last.title, "date": iso(last.date)}
    return entry


def folder_entry(path: str, oid: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": oid, "size": 0}


def commit_entry(commit: Commit, formatted: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": commit.sha,
        "title": commit.title,
        "message": commit.message,
        "authors": [{"user": name} for name in dict.fromkeys([commit.author, *_CO_AUTHOR.findall(commit.message)])],
        "date": iso(commit.date),
    }
    if formatted:
        entry["formatted"] = {"title": html.escape(commit.title), "message": html.escape(commit.message)}
    return entry


def discussion_entry(repo: Repo, discussion: Discussion) -> dict[str, Any]:
    return {
        "num": discussion.num,
        "title": discussion.title,
        "author": {"name": discussion.author},
        "createdAt": iso(discussion.created),
        "status": discussion.status,
        "isPullRequest": discussion.is_pull,
        "repo": {"name": repo.full_name, "type": repo.kind},
    }


def event_entry(event: Event) -> dict[str, Any]:
    data = event.data
    if event.kind == "comment":
        latest = {
            "raw": data["text"],
            "html": f"<p>{html.escape(data['text'])}</p>",
            "updatedAt": iso(event.date),
            "author": {"name": event.author},
        }
        data = {"edited": False, "hidden": False, "latest": latest, "history": []}
    return {
        "id": f"{event.id:024x}",
        "type": event.kind,
        "createdAt": iso(event.date),
        "author": {"name": event.author},
        "data": data,
    }
