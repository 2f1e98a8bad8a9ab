"""Discussions and pull requests of a repo. Law: merging never loses either side; where it would, it is refused.

A pull request is a branch refs/pr/N that starts at main. Merging compares, file by file, the commit it started from
(base), main (ours) and the pull request (theirs): who changed a file wins, and a file changed by both in two ways is a
conflict (the three-way merge of version control, at the grain of files). The result is one commit on main.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal

from kedit_hub.hub.localhub.refusal import Refusal
from kedit_hub.hub.localhub.store import MAIN, Commit, File, Repo, Store, now

Status = Literal["draft", "open", "closed", "merged"]


@dataclass(frozen=True)
class Discussion:
    """created: milliseconds since 1970 UTC; base_id, merged_id: commits, of pull requests only."""

    num: int
    title: str
    author: str
    created: int
    status: Status
    is_pull: bool
    base_id: int | None
    merged_id: int | None

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.num}"


@dataclass(frozen=True)
class Event:
    """kind: comment | status-change | title-change | commit, each with its data."""

    id: int
    kind: str
    author: str
    date: int
    data: dict[str, Any]


class Discussions:
    """The discussions of all repos of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def open(
        self, repo: Repo, author: str, title: str, text: str, *, pull: bool, status: Status = "open"
    ) -> Discussion:
        """A new discussion, or a pull request that starts at the head of main."""
        with self._store.writing() as db:
            (last,) = self._store.rows("SELECT coalesce(max(num), 0) FROM discussions WHERE repo_id = ?", (repo.id,))[0]
            base = self._store.ref(repo, MAIN) if pull else None
            values = (repo.id, last + 1, title, author, now(), status, pull, base.id if base else None, None)
            db.execute("INSERT INTO discussions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
            discussion = self.get(repo, last + 1)
            if base:
                db.execute("INSERT INTO refs VALUES (?, ?, ?, '')", (repo.id, discussion.ref, base.id))
            if text:
                self.add_event(repo, discussion, "comment", author, {"text": text})
            return discussion

    def get(self, repo: Repo, num: int) -> Discussion:
        rows = self._store.rows(f"{_DISCUSSIONS} WHERE repo_id = ? AND num = ?", (repo.id, num))
        if not rows:
            raise Refusal(f"{repo.full_name} has no discussion {num}.", 404)
        return _discussion(rows[0])

    def all(self, repo: Repo) -> list[Discussion]:
        """Newest first."""
        query = f"{_DISCUSSIONS} WHERE repo_id = ? ORDER BY num DESC"
        return [_discussion(row) for row in self._store.rows(query, (repo.id,))]

    def events(self, repo: Repo, discussion: Discussion) -> list[Event]:
        query = "SELECT id, kind, author, date, data FROM events WHERE repo_id = ? AND num = ? ORDER BY id"
        return [
            Event(event_id, kind, author, date, json.loads(data))
            for event_id, kind, author, date, data in self._store.rows(query, (repo.id, discussion.num))
        ]

    def add_event(self, repo: Repo, discussion: Discussion, kind: str, author: str, data: dict[str, Any]) -> Event:
        with self._store.writing() as db:
            values = (repo.id, discussion.num, kind, author, now(), json.dumps(data))
            row = db.execute("INSERT INTO events (repo_id, num, kind, author, date, data) VALUES (?,?,?,?,?,?)", values)
            return Event(int(row.lastrowid or 0), kind, author, values[4], data)

    def rename(self, repo: Repo, discussion: Discussion, author: str, title: str) -> Event:
        with self._store.writing() as db:
            db.execute(f"UPDATE discussions SET title = ? {_ONE}", (title, repo.id, discussion.num))
            return self.add_event(repo, discussion, "title-change", author, {"from": discussion.title, "to": title})

    def set_status(self, repo: Repo, discussion: Discussion, author: str, status: Status) -> Event:
        with self._store.writing() as db:
            if self.get(repo, discussion.num).status == "merged":
                raise Refusal(f"Pull request {discussion.num} is merged; its status cannot change.", 409)
            db.execute(f"UPDATE discussions SET status = ? {_ONE}", (status, repo.id, discussion.num))
            return self.add_event(repo, discussion, "status-change", author, {"status": status})

    def conflicts(self, repo: Repo, discussion: Discussion) -> list[str]:
        """Paths that main and the pull request changed in two ways since the pull request was opened."""
        return self._merge(repo, discussion)[2]

    def merge(self, repo: Repo, discussion: Discussion, author: str) -> Commit:
        """Put a pull request onto main as one commit; raises Refusal (409) on conflicts or when it is not open."""
        with self._store.writing() as db:
            discussion = self.get(repo, discussion.num)  # as it is now: two may merge at once
            if not discussion.is_pull or discussion.status not in ("open", "draft"):
                raise Refusal(f"Discussion {discussion.num} is not an open pull request.", 409)
            head, files, conflicts = self._merge(repo, discussion)
            if conflicts:
                raise Refusal(f"Pull request {discussion.num} conflicts with main in: {', '.join(conflicts)}.", 409)
            title = f"{discussion.title} (#{discussion.num})"
            message = f"- {' '.join(discussion.title.split())} ({self._store.resolve(repo, discussion.ref).sha})"
            if discussion.author.casefold() != author.casefold():
                message += f"\n\nCo-authored-by: {discussion.author} <{discussion.author}@localhub>"
            commit = self._store.commit_files(repo, MAIN, head, files, author=author, title=title, message=message)
            self.set_status(repo, discussion, author, "merged")
            db.execute(f"UPDATE discussions SET merged_id = ? {_ONE}", (commit.id, repo.id, discussion.num))
            return commit

    def _merge(self, repo: Repo, discussion: Discussion) -> tuple[Commit, dict[str, File], list[str]]:
        """(head of main, merged files, conflicting paths)."""
        main = self._store.resolve(repo, MAIN)
        base = self._store.files(self._store.commit_by_id(discussion.base_id)) if discussion.base_id else {}
        ours, theirs = self._store.files(main), self._store.files(self._store.resolve(repo, discussion.ref))
        merged: dict[str, File] = {}
        conflicts: list[str] = []
        for path in sorted({*base, *ours, *theirs}):
            before, our, their = base.get(path), ours.get(path), theirs.get(path)
            if our != their and our != before and their != before:
                conflicts.append(path)
            result = their if our == before else our
            if result is not None:
                merged[path] = result
        return main, merged, conflicts


_DISCUSSIONS = "SELECT num, title, author, created, status, is_pull, base_id, merged_id FROM discussions"
_ONE = "WHERE repo_id = ? AND num = ?"


def _discussion(row: tuple[Any, ...]) -> Discussion:
    num, title, author, created, status, is_pull, base_id, merged_id = row
    return Discussion(num, title, author, created, status, bool(is_pull), base_id, merged_id)
