"""Whose a commit is. Law: a commit belongs to a repo when a branch or a tag of the repo leads to it.

    is_published(HubRef("our-lab/tower", "<40 hex digits>"))      # False for the commits of somebody's pull request

Anybody can open a pull request, and its commits can be asked for by their digits like the repo's own. Branches and tags are
made by members alone.
"""

from kedit_hub.hub.client import Token, client, hub_errors
from kedit_hub.hub.ref import HubRef


def is_published(commit: HubRef, *, endpoint: str | None = None, token: Token = None) -> bool:
    """Asks the hub for the history of every branch and tag, until one holds the commit. Raises HubError."""
    with hub_errors(commit.repo_id, revision=commit.revision, endpoint=endpoint, token=token):
        api = client(endpoint, token)
        refs = api.list_repo_refs(commit.repo_id)
        heads = list(dict.fromkeys(ref.target_commit for ref in (*refs.branches, *refs.tags)))
        return commit.revision in heads or any(
            commit.revision == older.commit_id
            for head in heads
            for older in api.list_repo_commits(commit.repo_id, revision=head)
        )
