"""Repos, commits and refs in SQLite, contents in BlobFolder; no HTTP. Law: a commit is wholly there or not at all.

One transaction makes a commit: compare the branch with the parent the writer saw, give the staged contents their names,
insert the commit, move the branch. SQLite (write-ahead log, synchronous=FULL) makes the transaction durable, and
contents are durable before it names them: after a crash a branch points at its old or its new commit, complete.
Every commit stores its whole list of files (path -> content), which costs a row per file and makes each read one query.

The database is held exclusively: two hubs on one folder are refused.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kedit_hub.errors import HubError
from kedit_hub.hub.localhub import cards, gitids
from kedit_hub.hub.localhub.blobs import BlobFolder, Staged
from kedit_hub.hub.localhub.bounds import HubBounds
from kedit_hub.hub.localhub.names import check_name, check_path, check_ref, check_tree
from kedit_hub.hub.localhub.refusal import Refusal, no_entry, no_repo, no_revision

Kind = Literal["model", "dataset", "space"]
MAIN = "refs/heads/main"
_VERSION = 1
_SCHEMA = """
CREATE TABLE repos (                -- AUTOINCREMENT: the id of a deleted repo never names another one
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL,
    namespace TEXT NOT NULL COLLATE NOCASE, name TEXT NOT NULL COLLATE NOCASE,
    private INTEGER NOT NULL, created INTEGER NOT NULL, modified INTEGER NOT NULL, card TEXT NOT NULL,
    UNIQUE (kind, namespace, name));
CREATE TABLE tags (                 -- search tags of the main branch's card
    repo_id INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, tag TEXT NOT NULL, place INTEGER NOT NULL,
    PRIMARY KEY (repo_id, tag)) WITHOUT ROWID;
CREATE TABLE blobs (id INTEGER PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE, oid TEXT NOT NULL, size INTEGER NOT NULL);
CREATE TABLE commits (
    id INTEGER PRIMARY KEY, repo_id INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, sha TEXT NOT NULL,
    parent_id INTEGER REFERENCES commits, author TEXT NOT NULL, date INTEGER NOT NULL, title TEXT NOT NULL,
    message TEXT NOT NULL, UNIQUE (repo_id, sha));
CREATE TABLE files (
    commit_id INTEGER NOT NULL REFERENCES commits ON DELETE CASCADE, path TEXT NOT NULL,
    blob_id INTEGER NOT NULL REFERENCES blobs, PRIMARY KEY (commit_id, path)) WITHOUT ROWID;
CREATE INDEX files_of_blob ON files (blob_id);
CREATE TABLE refs (
    repo_id INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, name TEXT NOT NULL,
    commit_id INTEGER NOT NULL REFERENCES commits, message TEXT NOT NULL, PRIMARY KEY (repo_id, name)) WITHOUT ROWID;
CREATE TABLE discussions (
    repo_id INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, num INTEGER NOT NULL, title TEXT NOT NULL,
    author TEXT NOT NULL, created INTEGER NOT NULL, status TEXT NOT NULL, is_pull INTEGER NOT NULL,
    base_id INTEGER REFERENCES commits, merged_id INTEGER REFERENCES commits, PRIMARY KEY (repo_id, num)) WITHOUT ROWID;
CREATE TABLE events (
    id INTEGER PRIMARY KEY, repo_id INTEGER NOT NULL, num INTEGER NOT NULL, kind TEXT NOT NULL, author TEXT NOT NULL,
    date INTEGER NOT NULL, data TEXT NOT NULL,
    FOREIGN KEY (repo_id, num) REFERENCES discussions ON DELETE CASCADE);
"""


@dataclass(frozen=True)
class Repo:
    """created, modified: milliseconds since 1970 UTC; card: JSON text of the main branch's front matter."""

    id: int
    kind: Kind
    namespace: str
    name: str
    private: bool
    created: int
    modified: int
    card: str

    @property
    def full_name(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Commit:
    """date: milliseconds since 1970 UTC."""

    id: int
    sha: str
    parent_id: int | None
    author: str
    date: int
    title: str
    message: str


@dataclass(frozen=True)
class File:
    """One file's content in a commit. oid: git blob id."""

    blob_id: int
    sha256: str
    oid: str
    size: int


@dataclass(frozen=True)
class Ref:
    """name: the whole one, refs/heads/..., refs/tags/... or refs/pr/..."""

    name: str
    sha: str


@dataclass(frozen=True)
class Put:
    path: str
    content: Staged


@dataclass(frozen=True)
class Delete:
    path: str


@dataclass(frozen=True)
class DeleteFolder:
    path: str


Change = Put | Delete | DeleteFolder


def now() -> int:
    """Milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000


class Store:
    """All repos of one hub. Thread-safe: one connection behind one lock."""

    def __init__(self, root: Path, bounds: HubBounds) -> None:
        self.bounds = bounds
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.RLock()
        self._db = sqlite3.connect(root / "hub.sqlite3", timeout=0, isolation_level=None, check_same_thread=False)
        try:
            self._open(root)
        except sqlite3.OperationalError as error:
            self._db.close()
            if "locked" in str(error):
                raise HubError(f"Another hub is serving {root}. Stop it first, or choose another folder.") from None
            raise
        except BaseException:
            self._db.close()
            raise
        self.blobs = BlobFolder(root)
        self._sweep()

    def _open(self, root: Path) -> None:
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        with self.writing() as db:  # takes the lock even when there is nothing to create
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _SCHEMA.split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise HubError(f"The hub in {root} has format {version}; this version of kedit_hub reads {_VERSION}.")

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction; inside another one, a part of it. Any exception undoes the whole."""
        with self._lock:
            if self._db.in_transaction:
                yield self._db
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    # --- repos ----------------------------------------------------------------------------------------------------

    def create_repo(self, kind: Kind, namespace: str, name: str, *, private: bool, author: str) -> Repo:
        """A repo with one empty commit on main; raises Refusal (409) when the name is taken."""
        check_name(name)
        with self.writing() as db:
            if self.find_repo(kind, namespace, name):
                raise Refusal(f"You already created this {kind} repo: {namespace}/{name}.", 409)
            columns = "(kind, namespace, name, private, created, modified, card)"
            values = (kind, namespace, name, private, now(), now(), "{}")
            db.execute(f"INSERT INTO repos {columns} VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            repo = self.repo(kind, namespace, name)
            first = self._insert_commit(repo, None, {}, author, "initial commit", "")
            db.execute("INSERT INTO refs VALUES (?, ?, ?, '')", (repo.id, MAIN, first.id))
            return repo

    def find_repo(self, kind: Kind, namespace: str, name: str) -> Repo | None:
        rows = self.rows(f"{_REPOS} WHERE kind = ? AND namespace = ? AND name = ?", (kind, namespace, name))
        return _repo(rows[0]) if rows else None

    def repo(self, kind: Kind, namespace: str, name: str) -> Repo:
        found = self.find_repo(kind, namespace, name)
        if found is None:
            raise no_repo(f"{namespace}/{name}")
        return found

    def set_private(self, repo: Repo, private: bool) -> None:
        with self.writing() as db:
            db.execute("UPDATE repos SET private = ? WHERE id = ?", (private, repo.id))

    def delete_repo(self, repo: Repo) -> None:
        """Remove a repo and the contents that no other repo holds."""
        with self.writing() as db:
            db.execute("DELETE FROM repos WHERE id = ?", (repo.id,))
        self._sweep()

    def list_repos(
        self,
        kind: Kind,
        *,
        reader: str | None,
        tags: Sequence[str] = (),
        author: str | None = None,
        search: str | None = None,
        order: Literal["created", "modified"] = "modified",
        offset: int = 0,
        limit: int,
    ) -> list[Repo]:
        """Repos that `reader` may see and that match everything given, newest first by `order`."""
        where, values = ["kind = ?", "(NOT private OR namespace = ?)"], [kind, reader]
        for tag in tags:
            where.append("EXISTS (SELECT 1 FROM tags WHERE repo_id = repos.id AND tag = ?)")
            values.append(tag)
        if author is not None:
            where.append("namespace = ?")
            values.append(author)
        if search is not None:
            where.append("instr(lower(namespace || '/' || name), lower(?)) > 0")
            values.append(search)
        query = f"{_REPOS} WHERE {' AND '.join(where)} ORDER BY {order} DESC, id DESC LIMIT ? OFFSET ?"
        return [_repo(row) for row in self.rows(query, [*values, limit, offset])]

    def tags(self, repo: Repo) -> list[str]:
        return [tag for (tag,) in self.rows("SELECT tag FROM tags WHERE repo_id = ? ORDER BY place", (repo.id,))]

    def used_bytes(self, repo: Repo) -> int:
        """Size of all contents of all commits of a repo, each counted once."""
        query = """SELECT coalesce(sum(size), 0) FROM blobs WHERE id IN
                   (SELECT blob_id FROM files JOIN commits ON commits.id = commit_id WHERE repo_id = ?)"""
        return self.rows(query, (repo.id,))[0][0]

    # --- commits and refs -----------------------------------------------------------------------------------------

    def resolve(self, repo: Repo, revision: str) -> Commit:
        """A full commit id, else refs/..., a branch, a tag, or the first 7 or more digits of a commit id."""
        if _hex(revision) and len(revision) == 40:
            rows = self.rows(f"{_COMMITS} WHERE repo_id = ? AND sha = ?", (repo.id, revision))
            if rows:
                return Commit(*rows[0])
        names = [revision] if revision.startswith("refs/") else [f"refs/heads/{revision}", f"refs/tags/{revision}"]
        for name in names:
            commit = self.ref(repo, name)
            if commit is not None:
                return commit
        if _hex(revision) and 7 <= len(revision) < 40:
            rows = self.rows(f"{_COMMITS} WHERE repo_id = ? AND sha GLOB ?", (repo.id, revision + "*"))
            if len(rows) == 1:
                return Commit(*rows[0])
        raise no_revision(revision)

    def ref(self, repo: Repo, name: str) -> Commit | None:
        query = f"{_COMMITS} WHERE id = (SELECT commit_id FROM refs WHERE repo_id = ? AND name = ?)"
        rows = self.rows(query, (repo.id, name))
        return Commit(*rows[0]) if rows else None

    def refs(self, repo: Repo) -> list[Ref]:
        query = "SELECT name, sha FROM refs JOIN commits ON commits.id = commit_id WHERE refs.repo_id = ? ORDER BY name"
        return [Ref(*row) for row in self.rows(query, (repo.id,))]

    def create_ref(
        self, repo: Repo, folder: Literal["heads", "tags"], name: str, at: Commit, message: str = ""
    ) -> None:
        """A new branch or tag; raises Refusal (409) when it exists: a tag never moves."""
        check_ref(name)
        with self.writing() as db:
            if self.ref(repo, f"refs/{folder}/{name}"):
                raise Refusal(f"{'Branch' if folder == 'heads' else 'Tag'} {name} already exists.", 409)
            db.execute("INSERT INTO refs VALUES (?, ?, ?, ?)", (repo.id, f"refs/{folder}/{name}", at.id, message))

    def delete_ref(self, repo: Repo, folder: Literal["heads", "tags"], name: str) -> None:
        if f"refs/{folder}/{name}" == MAIN:
            raise Refusal("The branch main cannot be deleted.", 403)
        with self.writing() as db:
            gone = db.execute("DELETE FROM refs WHERE repo_id = ? AND name = ?", (repo.id, f"refs/{folder}/{name}"))
            if gone.rowcount == 0:
                raise no_revision(name)

    def commit_by_id(self, commit_id: int) -> Commit:
        return Commit(*self.rows(f"{_COMMITS} WHERE id = ?", (commit_id,))[0])

    def history(self, head: Commit, *, offset: int, limit: int) -> list[Commit]:
        """`head` and its ancestors, newest first."""
        line = """WITH RECURSIVE line(id, depth) AS (VALUES (?, 0) UNION ALL
                  SELECT parent_id, depth + 1 FROM commits JOIN line USING (id) WHERE parent_id IS NOT NULL)"""
        query = f"{line} {_COMMITS} JOIN line USING (id) ORDER BY depth LIMIT ? OFFSET ?"
        return [Commit(*row) for row in self.rows(query, (head.id, limit, offset))]

    def files(self, commit: Commit) -> dict[str, File]:
        """{path: content} of a commit, in the order of the paths."""
        query = """SELECT path, blob_id, sha256, oid, size FROM files JOIN blobs ON blobs.id = blob_id
                   WHERE commit_id = ? ORDER BY path"""
        return {path: File(*rest) for path, *rest in self.rows(query, (commit.id,))}

    def last_changes(self, head: Commit, paths: Sequence[str]) -> dict[str, Commit]:
        """{path: the commit at or before `head` that gave the file the content it has there}."""
        query = """WITH RECURSIVE line(id, parent_id, depth) AS (
                       SELECT id, parent_id, 0 FROM commits WHERE id = ? UNION ALL
                       SELECT commits.id, commits.parent_id, depth + 1 FROM commits JOIN line ON commits.id = line.parent_id)
                   SELECT line.id FROM line JOIN files ON files.commit_id = ? AND files.path = ?
                   WHERE NOT EXISTS (SELECT 1 FROM files AS before WHERE before.commit_id = line.parent_id
                                     AND before.path = files.path AND before.blob_id = files.blob_id)
                   ORDER BY depth LIMIT 1"""
        return {path: self.commit_by_id(self.rows(query, (head.id, head.id, path))[0][0]) for path in paths}

    def commit(
        self,
        repo: Repo,
        ref: str,
        changes: Sequence[Change],
        *,
        author: str,
        title: str,
        message: str = "",
        parent: str | None = None,
    ) -> Commit:
        """Apply `changes`, in order, to the head of `ref`. Staged contents become part of the hub.

        parent: id (7 to 40 digits) of the commit the writer saw; raises Refusal (412) when `ref` has moved since.
        """
        with self.writing():
            head = self.ref(repo, ref)
            if head is None:
                raise no_revision(ref.removeprefix("refs/heads/"))
            if parent is not None and not head.sha.startswith(parent):
                raise Refusal("A commit has happened since. Please refresh and try again.", 412)
            files = self.files(head)
            for change in changes:
                match change:
                    case Put(path, content):
                        files[check_path(path, self.bounds.max_path_chars)] = self._adopt(content)
                    case Delete(path):
                        if files.pop(path, None) is None:
                            raise no_entry(path, head.sha)
                    case DeleteFolder(path):
                        inside = [name for name in files if name.startswith(path.rstrip("/") + "/")]
                        if not inside:
                            raise no_entry(path, head.sha)
                        for name in inside:
                            del files[name]
            return self.commit_files(repo, ref, head, files, author=author, title=title, message=message)

    def commit_files(
        self, repo: Repo, ref: str, head: Commit, files: Mapping[str, File], *, author: str, title: str, message: str
    ) -> Commit:
        """Make `files` the next commit of `ref`, which must still be at `head`; raises Refusal (412) when it is not."""
        if len(files) > self.bounds.max_files:
            raise Refusal(f"A revision may have {self.bounds.max_files:,} files, not {len(files):,}.", 413)
        check_tree(files)
        with self.writing() as db:
            commit = self._insert_commit(repo, head, files, author, title, message)
            moved = db.execute(
                "UPDATE refs SET commit_id = ? WHERE repo_id = ? AND name = ? AND commit_id = ?",
                (commit.id, repo.id, ref, head.id),
            )
            if moved.rowcount != 1:
                raise Refusal("A commit has happened since. Please refresh and try again.", 412)
            if ref == MAIN:
                self._index(repo, files)
            return commit

    def _adopt(self, content: Staged) -> File:
        self.blobs.adopt(content)
        with self.writing() as db:
            values = (content.sha256, content.oid, content.size)
            db.execute("INSERT OR IGNORE INTO blobs (sha256, oid, size) VALUES (?, ?, ?)", values)
            return File(*self.rows("SELECT id, sha256, oid, size FROM blobs WHERE sha256 = ?", (content.sha256,))[0])

    def _insert_commit(
        self, repo: Repo, parent: Commit | None, files: Mapping[str, File], author: str, title: str, message: str
    ) -> Commit:
        date = now()
        tree = gitids.tree_ids({path: file.oid for path, file in files.items()})[""]
        text = f"{title}\n\n{message}" if message else title
        sha = gitids.commit_id(tree, parent.sha if parent else None, author, date // 1000, text)
        with self.writing() as db:
            found = self.rows(f"{_COMMITS} WHERE repo_id = ? AND sha = ?", (repo.id, sha))
            if found:  # the same change by the same author in the same second: the same commit
                return Commit(*found[0])
            parent_id = parent.id if parent else None
            columns = "(repo_id, sha, parent_id, author, date, title, message)"
            values = (repo.id, sha, parent_id, author, date, title, message)
            row = db.execute(f"INSERT INTO commits {columns} VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            commit = Commit(int(row.lastrowid or 0), sha, parent_id, author, date, title, message)
            db.executemany(
                "INSERT INTO files VALUES (?, ?, ?)", [(commit.id, path, file.blob_id) for path, file in files.items()]
            )
            return commit

    def _index(self, repo: Repo, files: Mapping[str, File]) -> None:
        """Note the card and the search tags of the main branch. An unreadable card has none."""
        card: dict[str, Any] = {}
        readme = files.get("README.md")
        if readme is not None and readme.size <= self.bounds.max_json_bytes:
            try:
                text = self.blobs.path(readme.sha256).read_text(encoding="utf-8")
                card = cards.read_card(text, self.bounds.max_card_bytes)
            except (Refusal, UnicodeDecodeError):
                card = {}
        with self.writing() as db:
            db.execute("UPDATE repos SET card = ?, modified = ? WHERE id = ?", (json.dumps(card), now(), repo.id))
            db.execute("DELETE FROM tags WHERE repo_id = ?", (repo.id,))
            rows = [(repo.id, tag, place) for place, tag in enumerate(cards.tags(card, files))]
            db.executemany("INSERT INTO tags VALUES (?, ?, ?)", rows)

    def _sweep(self) -> None:
        """Forget contents that no commit holds: those of deleted repos, and those of commits cut off by a crash."""
        with self._lock:
            with self.writing() as db:
                db.execute("DELETE FROM blobs WHERE id NOT IN (SELECT blob_id FROM files)")
            self.blobs.sweep({sha for (sha,) in self.rows("SELECT sha256 FROM blobs")})


_REPOS = "SELECT id, kind, namespace, name, private, created, modified, card FROM repos"
_COMMITS = "SELECT id, sha, parent_id, author, date, title, message FROM commits"


def _repo(row: tuple[Any, ...]) -> Repo:
    repo_id, kind, namespace, name, private, created, modified, card = row
    return Repo(repo_id, kind, namespace, name, bool(private), created, modified, card)


def _hex(text: str) -> bool:
    return bool(text) and set(text) <= set("0123456789abcdef")
