"""What each address of the hub answers. Law: the right to read or write a repo is checked before a body is read.

The table ROUTES at the end is the whole protocol: method, address, function. Addresses are matched as sent, before
percent signs are decoded, because a revision is one segment whatever it contains: `refs%2Fpr%2F1`. `{x}` is one
segment, `{x*}` the rest. Answers have the shapes that huggingface_hub 2.4 reads.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal
from urllib.parse import unquote, urlencode

from kedit_hub.hub.localhub import cards, gitids, shapes
from kedit_hub.hub.localhub.bounds import HubBounds
from kedit_hub.hub.localhub.discussions import Discussion, Discussions
from kedit_hub.hub.localhub.http import Request, Response, answer, text_field
from kedit_hub.hub.localhub.names import check_path
from kedit_hub.hub.localhub.refusal import Refusal, no_entry, no_repo
from kedit_hub.hub.localhub.store import MAIN, Commit, Kind, Repo, Store
from kedit_hub.hub.localhub.tokens import Identity
from kedit_hub.hub.localhub.upload import uploaded

_KINDS: dict[str, Kind] = {"models": "model", "datasets": "dataset", "spaces": "space"}


class Hub:
    """The hub's answers: a store, seen by users."""

    def __init__(self, store: Store, bounds: HubBounds) -> None:
        self.store = store
        self.bounds = bounds
        self.discussions = Discussions(store)

    def respond(self, request: Request) -> Response:
        """Raises Refusal for everything that is not answered with success."""
        allowed = []
        for method, pattern, function in ROUTES:
            match = pattern.fullmatch(request.path)
            if match and method == request.method:
                return function(self, request, **{name: _decode(text) for name, text in match.groupdict().items()})
            if match:
                allowed.append(method)
        if allowed:
            methods = ", ".join(allowed)
            raise Refusal(f"This address answers {methods} only.", 405, headers={"Allow": methods})
        raise Refusal("The development hub does not know this address.", 404)

    # --- who may do what ------------------------------------------------------------------------------------------

    def readable(self, request: Request, kind: str, user: str, name: str) -> Repo:
        """The repo, when it is public or the reader's own."""
        repo = self.store.find_repo(_KINDS[kind], user, name)
        if repo is None or (repo.private and not _owns(request.user, repo.namespace)):
            raise no_repo(f"{user}/{name}")
        return repo

    def writable(self, request: Request, kind: str, user: str, name: str) -> Repo:
        """The repo, when the token may write it."""
        repo = self.readable(request, kind, user, name)
        writer = _writer(request)
        if not _owns(writer, repo.namespace):
            raise Refusal(f"{writer.name} cannot write to {repo.full_name}: only {repo.namespace} can.", 403)
        return repo

    # --- users ----------------------------------------------------------------------------------------------------

    def whoami(self, request: Request) -> Response:
        if request.user is None:
            raise Refusal("Send a token to be told who you are.", 401)
        role = request.user.role
        token = {"displayName": "localhub", "role": role}
        return answer({"type": "user", "name": request.user.name, "orgs": [], "auth": {"accessToken": token}})

    def auth_check(self, request: Request, kind: str, user: str, name: str) -> Response:
        self.readable(request, kind, user, name)
        return answer({})

    def auth_check_write(self, request: Request, kind: str, user: str, name: str) -> Response:
        self.writable(request, kind, user, name)
        return answer({})

    # --- repos ----------------------------------------------------------------------------------------------------

    def create_repo(self, request: Request) -> Response:
        kind, user, name, body = self._repo_in_body(request)
        private = body.get("visibility", "private" if body.get("private") else "public") != "public"
        place = {"url": shapes.url(request, kind, user, name), "name": f"{user}/{name}"}
        try:
            self.store.create_repo(kind, user, name, private=private, author=user)
        except Refusal as refusal:
            if refusal.status != 409:
                raise
            return answer({**place, "error": str(refusal)}, 409, {"X-Error-Message": str(refusal)})
        return answer(place)

    def delete_repo(self, request: Request) -> Response:
        kind, user, name, _ = self._repo_in_body(request)
        self.store.delete_repo(self.store.repo(kind, user, name))
        return answer({})

    def _repo_in_body(self, request: Request) -> tuple[Kind, str, str, dict[str, Any]]:
        """(kind, namespace, name, body) of a request that names a repo of the writer's in its body."""
        writer = _writer(request)
        body = request.json(self.bounds.max_json_bytes)
        wanted = text_field(body, "type", 20, "model")
        kind = _KINDS.get(wanted + "s")
        if kind is None:
            raise Refusal(f"The development hub has no repos of type '{wanted}'.")
        user = text_field(body, "organization", 96, writer.name)
        if not _owns(writer, user):
            raise Refusal(f"{writer.name} has no rights in the namespace '{user}'.", 403)
        return kind, writer.name, text_field(body, "name", 96), body

    def settings(self, request: Request, kind: str, user: str, name: str) -> Response:
        repo = self.writable(request, kind, user, name)
        body = request.json(self.bounds.max_json_bytes)
        if body.get("gated"):
            raise Refusal("The development hub has no gated repos.")
        visibility = text_field(body, "visibility", 20, "private" if repo.private else "public")
        if visibility not in ("public", "private"):
            raise Refusal(f"visibility must be public or private, not '{visibility}'.")
        self.store.set_private(repo, visibility == "private")
        return answer({})

    def repo_info(self, request: Request, kind: str, user: str, name: str, revision: str = "main") -> Response:
        repo = self.readable(request, kind, user, name)
        commit = self.store.resolve(repo, revision)
        files = self.store.files(commit)
        info = self._describe(repo, commit) | {
            "siblings": [shapes.sibling(path, file, request.flag("blobs")) for path, file in files.items()],
            "usedStorage": self.store.used_bytes(repo),
            "disabled": False,
        }
        return answer(shapes.expanded(request, info))

    def list_repos(self, request: Request, kind: str) -> Response:
        unknown = request.query.keys() - _LIST_PARAMETERS
        if unknown:
            raise Refusal(f"The development hub does not list by: {', '.join(sorted(unknown))}.")
        sort = request.one("sort") or "lastModified"
        if sort not in ("lastModified", "createdAt"):
            raise Refusal(f"The development hub sorts by lastModified or createdAt, not by '{sort}'.")
        offset, limit = _page(request, self.bounds.page)
        tags = request.query.get("filter", []) + request.query.get("pipeline_tag", [])
        repos = self.store.list_repos(
            _KINDS[kind],
            reader=request.user.name if request.user else None,
            tags=tags,
            author=request.one("author"),
            search=request.one("search"),
            order="modified" if sort == "lastModified" else "created",
            offset=offset,
            limit=limit + 1,
        )
        found = []
        for repo in repos[:limit]:
            commit = self.store.resolve(repo, MAIN)
            info = self._describe(repo, commit)
            if not (request.flag("full") or request.flag("cardData") or "expand" in request.query):
                del info["cardData"]
            if request.flag("full") or "siblings" in request.query.get("expand", []):
                info["siblings"] = [{"rfilename": path} for path in self.store.files(commit)]
            found.append(shapes.expanded(request, info))
        return answer(found, headers=_next_page(request, offset + limit, more=len(repos) > limit))

    def _describe(self, repo: Repo, commit: Commit) -> dict[str, Any]:
        card = json.loads(repo.card)
        return {
            "_id": f"{repo.id:024x}",
            "id": repo.full_name,
            "author": repo.namespace,
            "sha": commit.sha,
            "private": repo.private,
            "gated": False,
            "tags": self.store.tags(repo),
            "cardData": card,
            "library_name": card.get("library_name"),
            "pipeline_tag": card.get("pipeline_tag"),
            "createdAt": shapes.iso(repo.created),
            "lastModified": shapes.iso(repo.modified),
        }

    # --- files ----------------------------------------------------------------------------------------------------

    def tree(
        self, request: Request, kind: str, user: str, name: str, revision: str, path: str | None = None
    ) -> Response:
        repo = self.readable(request, kind, user, name)
        commit = self.store.resolve(repo, revision)
        files = self.store.files(commit)
        folders = gitids.tree_ids({name: file.oid for name, file in files.items()})
        folder = (path or "").strip("/")
        if folder not in folders:
            raise no_entry(folder, commit.sha)
        inside = [shapes.file_entry(name, file) for name, file in files.items()]
        inside += [shapes.folder_entry(name, oid) for name, oid in folders.items() if name]
        start = folder + "/" if folder else ""
        deep = request.flag("recursive")
        chosen = [
            entry
            for entry in sorted(inside, key=lambda entry: entry["path"])
            if entry["path"].startswith(start) and (deep or "/" not in entry["path"][len(start) :])
        ]
        expand = request.flag("expand")
        offset, limit = _page(request, self.bounds.expanded_page if expand else self.bounds.page)
        more = len(chosen) > offset + limit
        shown = chosen[offset : offset + limit]
        if expand:
            last = self.store.last_changes(commit, [entry["path"] for entry in shown if entry["type"] == "file"])
            shown = [
                shapes.file_entry(entry["path"], files[entry["path"]], last[entry["path"]])
                if entry["path"] in last
                else entry
                for entry in shown
            ]
        return answer(shown, headers=_next_page(request, offset + limit, more=more))

    def paths_info(self, request: Request, kind: str, user: str, name: str, revision: str) -> Response:
        """Files and folders among the asked paths; missing ones are left out."""
        repo = self.readable(request, kind, user, name)
        files = self.store.files(self.store.resolve(repo, revision))
        folders = gitids.tree_ids({name: file.oid for name, file in files.items()})
        found = []
        for path in request.form(self.bounds.max_json_bytes).get("paths", []):
            if path in files:
                found.append(shapes.file_entry(path, files[path]))
            elif path in folders and path:
                found.append(shapes.folder_entry(path, folders[path]))
        return answer(found)

    def resolve(
        self, request: Request, user: str, name: str, revision: str, path: str, kind: str | None = None
    ) -> Response:
        """The bytes of a file, or those of a Range of it."""
        repo = self.readable(request, kind or "models", user, name)
        commit = self.store.resolve(repo, revision)
        file = self.store.files(commit).get(path)
        if file is None:
            raise no_entry(path, commit.sha)
        headers = {
            "X-Repo-Commit": commit.sha,
            "ETag": f'"{file.oid}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        start, stop = 0, file.size
        status = 200
        piece = _byte_range(request.range, file.size)
        if piece is not None:
            start, stop = piece
            status = 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
        return Response(status, headers=headers, file=self.store.blobs.path(file.sha256), start=start, stop=stop)

    # --- writing --------------------------------------------------------------------------------------------------

    def validate_yaml(self, request: Request) -> Response:
        body = request.json(self.bounds.max_json_bytes)
        try:
            card = cards.read_card(text_field(body, "content", self.bounds.max_json_bytes), self.bounds.max_card_bytes)
        except Refusal as refusal:
            return answer({"errors": [{"message": str(refusal)}], "warnings": []}, 400)
        warnings = [] if card else [{"message": "empty or missing yaml metadata in repo card"}]
        return answer({"errors": [], "warnings": warnings})

    def preupload(self, request: Request, kind: str, user: str, name: str, revision: str) -> Response:
        """Every file is to come as a regular blob inside the commit; `oid` lets the client skip unchanged ones."""
        repo, ref = self._target(request, kind, user, name, revision)
        present = self.store.files(self.store.resolve(repo, ref))
        body = request.json(self.bounds.max_json_bytes)
        files = body.get("files")
        if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
            raise Refusal("The field 'files' must be a list of objects.")
        plan = []
        for file in files:
            path = check_path(text_field(file, "path", self.bounds.max_path_chars), self.bounds.max_path_chars)
            size = file.get("size")
            if isinstance(size, int) and size > self.bounds.max_file_bytes:
                raise Refusal(f"'{path}' has {size:,} bytes; at most {self.bounds.max_file_bytes:,} fit here.", 413)
            known = {"oid": present[path].oid} if path in present else {}
            plan.append({"path": path, "uploadMode": "regular", "shouldIgnore": False, **known})
        return answer({"files": plan})

    def commit(self, request: Request, kind: str, user: str, name: str, revision: str) -> Response:
        """One commit from newline-delimited JSON: a header, then operations."""
        repo, ref = self._target(request, kind, user, name, revision)
        writer = _writer(request)
        with uploaded(request.body, self.store.blobs, self.bounds) as (header, changes):
            title = text_field(header, "summary", self.bounds.max_text_chars)
            message = text_field(header, "description", self.bounds.max_text_chars, "")
            parent = text_field(header, "parentCommit", 40, "") or None
            if parent is not None and not re.fullmatch("[0-9a-f]{7,40}", parent):
                raise Refusal(f"parentCommit must have 7 to 40 hexadecimal digits, not '{parent}'.")
            pull: Discussion | None = None
            with self.store.writing():
                if request.flag("create_pr"):  # its branch starts at main, so `parent` is compared with main
                    shown = title[: self.bounds.max_title_chars]
                    pull = self.discussions.open(repo, writer.name, shown, message, pull=True)
                    ref = pull.ref
                commit = self.store.commit(
                    repo, ref, changes, author=writer.name, title=title, message=message, parent=parent
                )
                if ref.startswith("refs/pr/"):
                    num = int(ref.removeprefix("refs/pr/"))
                    event = {"subject": title, "oid": commit.sha}
                    self.discussions.add_event(repo, self.discussions.get(repo, num), "commit", writer.name, event)
        url = shapes.url(request, repo.kind, repo.namespace, repo.name)
        return answer(
            {
                "success": True,
                "commitUrl": f"{url}/commit/{commit.sha}",
                "commitOid": commit.sha,
                "pullRequestUrl": f"{url}/discussions/{pull.num}" if pull else None,
            }
        )

    def _target(self, request: Request, kind: str, user: str, name: str, revision: str) -> tuple[Repo, str]:
        """(repo, whole ref) that a commit goes to. Anybody with a write token may propose; only owners may write."""
        writer = _writer(request)
        if revision.startswith("refs/pr/"):
            repo = self.readable(request, kind, user, name)
            pull = self._discussion(repo, revision.removeprefix("refs/pr/"))
            if not (_owns(writer, repo.namespace) or _owns(writer, pull.author)):
                raise Refusal(f"{writer.name} cannot write to pull request {pull.num} of {pull.author}.", 403)
            if not pull.is_pull or pull.status not in ("open", "draft"):
                raise Refusal(f"Discussion {pull.num} is not an open pull request.", 409)
            return repo, pull.ref
        propose = request.flag("create_pr")
        repo = (self.readable if propose else self.writable)(request, kind, user, name)
        ref = f"refs/heads/{revision.removeprefix('refs/heads/')}"
        if propose and ref != MAIN:
            raise Refusal("A pull request starts at main.")
        self.store.resolve(repo, ref)
        return repo, ref

    # --- history --------------------------------------------------------------------------------------------------

    def commits(self, request: Request, kind: str, user: str, name: str, revision: str) -> Response:
        repo = self.readable(request, kind, user, name)
        offset, limit = _page(request, self.bounds.page)
        line = self.store.history(self.store.resolve(repo, revision), offset=offset, limit=limit + 1)
        formatted = "formatted" in request.query.get("expand[]", [])
        listed = [shapes.commit_entry(commit, formatted) for commit in line[:limit]]
        return answer(listed, headers=_next_page(request, offset + limit, more=len(line) > limit))

    def refs(self, request: Request, kind: str, user: str, name: str) -> Response:
        repo = self.readable(request, kind, user, name)
        folders = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}
        listed: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
        for ref in self.store.refs(repo):
            _, folder, short = ref.name.split("/", 2)
            shown = ref.name if folder == "pr" else short
            listed[folders[folder]].append({"name": shown, "ref": ref.name, "targetCommit": ref.sha})
        if not request.flag("include_prs"):
            del listed["pullRequests"]
        return answer(listed)

    def create_branch(self, request: Request, kind: str, user: str, name: str, branch: str) -> Response:
        repo = self.writable(request, kind, user, name)
        start = text_field(request.json(self.bounds.max_json_bytes), "startingPoint", 200, "main")
        self.store.create_ref(repo, "heads", branch, self.store.resolve(repo, start))
        return answer({})

    def delete_branch(self, request: Request, kind: str, user: str, name: str, branch: str) -> Response:
        self.store.delete_ref(self.writable(request, kind, user, name), "heads", branch)
        return answer({})

    def create_tag(self, request: Request, kind: str, user: str, name: str, revision: str) -> Response:
        repo = self.writable(request, kind, user, name)
        body = request.json(self.bounds.max_json_bytes)
        message = text_field(body, "message", self.bounds.max_text_chars, "")
        self.store.create_ref(repo, "tags", text_field(body, "tag", 200), self.store.resolve(repo, revision), message)
        return answer({})

    def delete_tag(self, request: Request, kind: str, user: str, name: str, revision: str) -> Response:
        self.store.delete_ref(self.writable(request, kind, user, name), "tags", revision)
        return answer({})

    # --- discussions ----------------------------------------------------------------------------------------------

    def list_discussions(self, request: Request, kind: str, user: str, name: str) -> Response:
        repo = self.readable(request, kind, user, name)
        wanted, status, author = request.one("type"), request.one("status"), request.one("author")
        found = [
            one
            for one in self.discussions.all(repo)
            if (wanted in (None, "all") or one.is_pull == (wanted == "pull_request"))
            and (status in (None, "all") or (one.status in ("open", "draft")) == (status == "open"))
            and (author is None or one.author.casefold() == author.casefold())
        ]
        start = _natural(request.one("p") or "0") * self.bounds.page
        shown = [shapes.discussion_entry(repo, one) for one in found[start : start + self.bounds.page]]
        return answer({"count": len(found), "start": start, "discussions": shown})

    def create_discussion(self, request: Request, kind: str, user: str, name: str) -> Response:
        writer = _writer(request)
        repo = self.readable(request, kind, user, name)
        body = request.json(self.bounds.max_json_bytes)
        title = text_field(body, "title", self.bounds.max_title_chars).strip()
        if len(title) < 3:
            raise Refusal(f"The title '{title}' must have at least 3 characters.")
        text = text_field(body, "description", self.bounds.max_text_chars, "")
        pull = body.get("pullRequest") is True
        made = self.discussions.open(repo, writer.name, title, text, pull=pull, status="draft" if pull else "open")
        url = shapes.url(request, repo.kind, repo.namespace, repo.name)
        return answer({"num": made.num, "pullRequest": pull, "url": f"{url}/discussions/{made.num}"})

    def discussion(self, request: Request, kind: str, user: str, name: str, num: str) -> Response:
        repo = self.readable(request, kind, user, name)
        discussion = self._discussion(repo, num)
        details = shapes.discussion_entry(repo, discussion) | {
            "events": [shapes.event_entry(event) for event in self.discussions.events(repo, discussion)],
        }
        if discussion.is_pull:
            merged = self.store.commit_by_id(discussion.merged_id).sha if discussion.merged_id else None
            details["changes"] = {"base": MAIN, "mergeCommitId": merged}
            details["filesWithConflicts"] = self.discussions.conflicts(repo, discussion)
        return answer(details)

    def comment(self, request: Request, kind: str, user: str, name: str, num: str) -> Response:
        writer = _writer(request)
        repo = self.readable(request, kind, user, name)
        discussion = self._discussion(repo, num)
        text = text_field(request.json(self.bounds.max_json_bytes), "comment", self.bounds.max_text_chars)
        event = self.discussions.add_event(repo, discussion, "comment", writer.name, {"text": text})
        return answer({"newMessage": shapes.event_entry(event)})

    def rename(self, request: Request, kind: str, user: str, name: str, num: str) -> Response:
        repo, discussion, writer = self._moderated(request, kind, user, name, num)
        title = text_field(request.json(self.bounds.max_json_bytes), "title", self.bounds.max_title_chars)
        return answer({"newTitle": shapes.event_entry(self.discussions.rename(repo, discussion, writer.name, title))})

    def set_status(self, request: Request, kind: str, user: str, name: str, num: str) -> Response:
        repo, discussion, writer = self._moderated(request, kind, user, name, num)
        body = request.json(self.bounds.max_json_bytes)
        status: Literal["open", "closed"] = "open" if body.get("status") == "open" else "closed"
        if body.get("status") not in ("open", "closed"):
            raise Refusal("status must be open or closed.")
        with self.store.writing():
            if body.get("comment"):
                text = text_field(body, "comment", self.bounds.max_text_chars)
                self.discussions.add_event(repo, discussion, "comment", writer.name, {"text": text})
            event = self.discussions.set_status(repo, discussion, writer.name, status)
        return answer({"newStatus": shapes.event_entry(event)})

    def merge(self, request: Request, kind: str, user: str, name: str, num: str) -> Response:
        repo = self.writable(request, kind, user, name)
        discussion = self._discussion(repo, num)
        body = request.json(self.bounds.max_json_bytes)
        author = _writer(request).name
        with self.store.writing():
            if body.get("comment"):
                text = text_field(body, "comment", self.bounds.max_text_chars)
                self.discussions.add_event(repo, discussion, "comment", author, {"text": text})
            self.discussions.merge(repo, discussion, author)
        return answer({})

    def _discussion(self, repo: Repo, num: str) -> Discussion:
        return self.discussions.get(repo, _natural(num))

    def _moderated(
        self, request: Request, kind: str, user: str, name: str, num: str
    ) -> tuple[Repo, Discussion, Identity]:
        """A discussion that the writer opened, or that is in the writer's own repo."""
        writer = _writer(request)
        repo = self.readable(request, kind, user, name)
        discussion = self._discussion(repo, num)
        if not (_owns(writer, repo.namespace) or _owns(writer, discussion.author)):
            raise Refusal(f"{writer.name} cannot change discussion {num} of {discussion.author}.", 403)
        return repo, discussion, writer

    def front_page(self, request: Request) -> Response:
        text = b"kedit development hub. Point huggingface_hub here with HF_ENDPOINT, or kedit with --endpoint.\n"
        return Response(data=text, headers={"Content-Type": "text/plain; charset=utf-8"})


# --- requests -----------------------------------------------------------------------------------------------------

_LIST_PARAMETERS = frozenset(
    ["filter", "pipeline_tag", "author", "search", "sort", "limit", "cursor", "full", "cardData", "expand"]
)


def _owns(user: Identity | None, namespace: str) -> bool:
    return user is not None and user.name.casefold() == namespace.casefold()


def _writer(request: Request) -> Identity:
    """The user of a request that writes; raises Refusal without a write token."""
    if request.user is None:
        raise Refusal("Writing needs a token.", 401)
    if request.user.role != "write":
        raise Refusal("This token can only read. Use one with the role 'write'.", 403)
    return request.user


def _decode(segment: str | None) -> str | None:
    if segment is None:
        return None
    try:
        text = unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise Refusal("The address is not percent-encoded UTF-8.") from None
    if "\0" in text:
        raise Refusal("The address holds a NUL character.")
    return text


def _natural(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise Refusal(f"'{text[:40]}' is not a natural number.")
    return int(text)


def _page(request: Request, max_page: int) -> tuple[int, int]:
    """(offset, limit) of the page that is asked for."""
    limit = _natural(request.one("limit") or str(max_page))
    return _natural(request.one("cursor") or "0"), max(1, min(limit, max_page))


def _next_page(request: Request, offset: int, *, more: bool) -> dict[str, str]:
    """The Link header (RFC 8288) to the next page of a listing."""
    if not more:
        return {}
    query = urlencode({**request.query, "cursor": [offset]}, doseq=True)
    return {"Link": f'<{request.endpoint}{request.path}?{query}>; rel="next"'}


def _byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """[start, stop) of a Range header (RFC 9110, one range), None for the whole; raises Refusal (416)."""
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header or "")
    if match is None or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        raise Refusal(
            f"The range {header} is outside of {size} bytes.", 416, headers={"Content-Range": f"bytes */{size}"}
        )
    return start, stop


# --- the protocol -------------------------------------------------------------------------------------------------

Function = Callable[..., Response]


def _pattern(template: str) -> re.Pattern[str]:
    pieces = {"{kind}": f"(?P<kind>{'|'.join(_KINDS)})"}

    def piece(match: re.Match[str]) -> str:
        name = match.group(1)
        return pieces.get(match.group(0)) or (f"(?P<{name[:-1]}>.+)" if name.endswith("*") else f"(?P<{name}>[^/]+)")

    return re.compile(re.sub(r"\{(\w+\*?)\}", piece, template.replace(".", r"\.")))


def _table(routes: Mapping[str, Function]) -> list[tuple[str, re.Pattern[str], Function]]:
    return [(method, _pattern(path), function) for key, function in routes.items() for method, path in [key.split(" ")]]


_REPO = "/api/{kind}/{user}/{name}"
ROUTES = _table(
    {
        "GET /": Hub.front_page,
        "GET /api/whoami-v2": Hub.whoami,
        "POST /api/validate-yaml": Hub.validate_yaml,
        "POST /api/repos/create": Hub.create_repo,
        "DELETE /api/repos/delete": Hub.delete_repo,
        "GET /api/{kind}": Hub.list_repos,
        f"GET {_REPO}": Hub.repo_info,
        f"GET {_REPO}/revision/{{revision}}": Hub.repo_info,
        f"PUT {_REPO}/settings": Hub.settings,
        f"GET {_REPO}/auth-check": Hub.auth_check,
        f"GET {_REPO}/auth-check/write": Hub.auth_check_write,
        f"GET {_REPO}/tree/{{revision}}": Hub.tree,
        f"GET {_REPO}/tree/{{revision}}/{{path*}}": Hub.tree,
        f"POST {_REPO}/paths-info/{{revision}}": Hub.paths_info,
        f"GET {_REPO}/commits/{{revision}}": Hub.commits,
        f"GET {_REPO}/refs": Hub.refs,
        f"POST {_REPO}/branch/{{branch}}": Hub.create_branch,
        f"DELETE {_REPO}/branch/{{branch}}": Hub.delete_branch,
        f"POST {_REPO}/tag/{{revision}}": Hub.create_tag,
        f"DELETE {_REPO}/tag/{{revision}}": Hub.delete_tag,
        f"POST {_REPO}/preupload/{{revision}}": Hub.preupload,
        f"POST {_REPO}/commit/{{revision}}": Hub.commit,
        f"GET {_REPO}/discussions": Hub.list_discussions,
        f"POST {_REPO}/discussions": Hub.create_discussion,
        f"GET {_REPO}/discussions/{{num}}": Hub.discussion,
        f"POST {_REPO}/discussions/{{num}}/comment": Hub.comment,
        f"POST {_REPO}/discussions/{{num}}/title": Hub.rename,
        f"POST {_REPO}/discussions/{{num}}/status": Hub.set_status,
        f"POST {_REPO}/discussions/{{num}}/merge": Hub.merge,
        "GET /{kind}/{user}/{name}/resolve/{revision}/{path*}": Hub.resolve,
        "GET /{user}/{name}/resolve/{revision}/{path*}": Hub.resolve,
    }
)
