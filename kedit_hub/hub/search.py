"""Find patches on the Hub. Law: what is found is only shown; nothing is downloaded, and cards are not believed.

    for found in find(base="openai-community/gpt2", query="tower"):
        found.repo_id, found.method, found.last_modified

Patches carry the tag `kedit`, and the Hub derives `base_model:adapter:<id>` from their cards.
"""

from dataclasses import dataclass
from datetime import datetime

from huggingface_hub.hf_api import ModelInfo

from kedit_hub.hub.client import Token, client, hub_errors, printable

_METHOD = "kedit-method:"


@dataclass(frozen=True)
class Found:
    """A patch repo as its author describes it. commit: head of main; None: not said."""

    repo_id: str
    commit: str | None
    base: str | None
    method: str | None
    tags: tuple[str, ...]
    last_modified: datetime | None
    downloads: int | None
    likes: int | None
    private: bool


def find(
    base: str | None = None,
    query: str | None = None,
    author: str | None = None,
    *,
    limit: int = 100,
    endpoint: str | None = None,
    token: Token = None,
) -> list[Found]:
    """Patches for a base model ("org/model"), with words in their names, of a user; the newest first.

    Raises HubError when the hub cannot be asked.
    """
    tags = ["kedit"] if base is None else ["kedit", f"base_model:adapter:{base}"]
    with hub_errors(None, endpoint=endpoint, token=token):
        models = client(endpoint, token).list_models(
            filter=tags,
            search=query,
            author=author,
            sort="last_modified",
            limit=limit,
            expand=["cardData", "downloads", "lastModified", "likes", "private", "sha", "tags"],
        )
        return [_found(model) for model in models]


def _found(model: ModelInfo) -> Found:
    tags = tuple(_shown(tag) for tag in model.tags or ())
    card_base = getattr(model.card_data, "base_model", None)
    return Found(
        repo_id=_shown(model.id),
        commit=model.sha,
        base=_shown(card_base) if isinstance(card_base, str) else None,
        method=next((tag.removeprefix(_METHOD) for tag in tags if tag.startswith(_METHOD)), None),
        tags=tags,
        last_modified=model.last_modified,
        downloads=model.downloads,
        likes=model.likes,
        private=bool(model.private),
    )


def _shown(text: str) -> str:
    return printable(text[:200])
