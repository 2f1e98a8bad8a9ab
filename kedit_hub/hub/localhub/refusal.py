"""A request that the hub refuses. Law: the status and the X-Error-Code are what the Hub answers in the same case.

huggingface_hub turns the codes into exceptions: RepoNotFound -> RepositoryNotFoundError, RevisionNotFound ->
RevisionNotFoundError, EntryNotFound -> RemoteEntryNotFoundError. It retries 429 and 5xx, so a mistake is a 4xx.
"""

from kedit_hub.errors import HubError


class Refusal(HubError):
    """Refused with an HTTP status; `code` is the X-Error-Code, `headers` go out with the answer."""

    def __init__(
        self, message: str, status: int = 400, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}


def no_repo(repo_id: str) -> Refusal:
    """A missing repo and a private one look the same to those who may not read it."""
    return Refusal(f"There is no repo '{repo_id}', or this token cannot read it.", 404, "RepoNotFound")


def no_revision(revision: str) -> Refusal:
    return Refusal(f"There is no branch, tag or commit '{revision}' in this repo.", 404, "RevisionNotFound")


def no_entry(path: str, commit: str) -> Refusal:
    """The commit travels along: clients remember that this commit has no such file."""
    message = f"A file with this name doesn't exist: '{path}' at {commit}."
    return Refusal(message, 404, "EntryNotFound", {"X-Repo-Commit": commit})
