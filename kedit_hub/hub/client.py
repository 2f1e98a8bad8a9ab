"""One client of the Hub, and its failures in our words. Law: no message holds a token or a control character.

with hub_errors("user/repo", revision="v1", endpoint=None, token=token):
    client(endpoint, token).model_info("user/repo", revision="v1")
"""

import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import httpx2  # what huggingface_hub speaks HTTP with: its transport errors come out of every call
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from kedit_hub import __version__
from kedit_hub.errors import HubError

Token = str | bool | None  # None: the token of `hf auth login`, if any; False: none
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{16,}|Bearer\s+\S+", re.IGNORECASE)
_STUMBLED = (  # what comes out of huggingface_hub where an answer, or an address, is not of the kind it counts on
    httpx2.InvalidURL,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    RecursionError,
)
_LOGIN = "log in with `hf auth login`, or pass token="


def client(endpoint: str | None, token: Token) -> HfApi:
    """endpoint: address of a hub, None for huggingface_hub's own (the variable HF_ENDPOINT)."""
    return HfApi(endpoint=endpoint, token=token, library_name="kedit_hub", library_version=__version__)


def cache_folder(cache_dir: str | os.PathLike[str] | None, endpoint: str | None) -> Path:
    """A cache of its own for every hub: repos of two hubs may have one name."""
    if cache_dir is not None:
        return Path(cache_dir)
    hub = (endpoint or constants.ENDPOINT).rstrip("/")
    if hub == constants.HUGGINGFACE_CO_URL_HOME.rstrip("/"):
        return Path(constants.HF_HUB_CACHE)
    return Path(constants.HF_HOME) / "kedit" / sha256(hub.encode()).hexdigest()[:16]


def commit_named(
    api: HfApi,
    repo_id: str,
    revision: str | None,
    *,
    repo_type: str | None = None,
    cache_dir: Path | None = None,
) -> str:
    """The commit that a revision names now. Without a hub, or where something else answers, the one it named when last seen."""

    def ask(cached: bool) -> str:
        return api.resolve_revision(
            repo_id, repo_type=repo_type, revision=revision, cache_dir=cache_dir, local_files_only=cached
        ).resolved

    try:
        return ask(cached=False)
    except _STUMBLED as error:
        if not _over_an_answer(error):
            raise
        try:
            return ask(cached=True)
        except RevisionResolutionError:
            raise error from None


@contextmanager
def hub_errors(
    repo_id: str | None, *, revision: str | None = None, endpoint: str | None, token: Token
) -> Iterator[None]:
    """Turn every failure of huggingface_hub inside the block into a HubError that says what to do."""
    try:
        yield
    except (
        httpx2.HTTPError,  # of which HfHubHTTPError is one
        EntryNotFoundError,
        RevisionResolutionError,
        HFValidationError,
        OfflineModeIsEnabled,
        FileMetadataError,
    ) as error:
        message = _explain(error, repo_id, revision, endpoint or constants.ENDPOINT)
        # `from None`: the cause quotes what the server said, which may be anything it was sent, a token too
        raise HubError(redact(message, token)) from None
    except LocalTokenNotFoundError:
        raise HubError(
            f"The hub was to be asked with the token of a login (token=True), and there is none: {_LOGIN}."
        ) from None
    except UnicodeEncodeError as error:
        if not _in_their_code(error):
            raise
        raise HubError(f"The token has characters that no token has. Copy it again, and {_LOGIN}.") from None
    except _STUMBLED as error:
        if not _over_an_answer(error):
            raise
        raise HubError(redact(_strange(endpoint or constants.ENDPOINT, error), token)) from None


def _over_an_answer(error: Exception) -> bool:
    return _in_their_code(error) and not isinstance(error, UnicodeEncodeError)  # of a header: the token


def _in_their_code(error: Exception) -> bool:
    """Whether huggingface_hub stumbled. A fault of our own code is no fault of the hub, and must not look like one."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").partition(".")[0] == "huggingface_hub" for frame, _ in frames)


def _strange(hub: str, error: Exception) -> str:
    return (
        f"{hub} does not answer like a hub ({type(error).__name__}). Check endpoint= or HF_ENDPOINT, any proxy, and whether "
        "the network wants you to log in first."
    )


def redact(text: str, token: Token) -> str:
    """Without anything that is or looks like a token, and printable."""
    if isinstance(token, str) and token:
        text = text.replace(token, "***")
    return printable(_TOKEN.sub("***", text))


def printable(text: str) -> str:
    """A stranger's text without characters that could drive a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def _explain(error: Exception, repo_id: str | None, revision: str | None, hub: str) -> str:
    where = f"'{repo_id}'" if repo_id else "The list of patches"
    match error:
        case GatedRepoError():
            return f"{where} is gated. Ask for access at {hub}/{repo_id}, then {_LOGIN}."
        case RepositoryNotFoundError():
            return f"{hub} has no repo {where} that you can read. Check the spelling; for a private repo {_LOGIN}."
        case RevisionNotFoundError():
            return f"{where} has no branch, tag or commit '{revision}'. Look at {hub}/{repo_id} for those it has."
        case LocalEntryNotFoundError() | RevisionResolutionError() | OfflineModeIsEnabled():
            return (
                f"{hub} cannot be reached, and {where}{f' at {revision}' if revision else ''} is not wholly in the "
                "cache. Pull it once while online; then it works offline, by tag and by commit."
            )
        case EntryNotFoundError():
            return (
                f"{where} holds no config.json and patch.safetensors{f' at {revision}' if revision else ''}: no patch."
            )
        case HFValidationError():
            return f"{where} is not the name of a repo: write user/name."
        case HfHubHTTPError():
            return _explain_status(error, where, hub)
        case FileMetadataError():
            return _strange(hub, error)
        case _:
            return f"{hub} cannot be reached ({type(error).__name__}). Check the network and endpoint= or HF_ENDPOINT."


def _explain_status(error: HfHubHTTPError, where: str, hub: str) -> str:
    said = f" It said: {error.server_message[:300]}" if error.server_message else ""
    match error.response.status_code:
        case 401:
            return f"{hub} does not know this token. Get a new one and {_LOGIN}.{said}"
        case 403:
            return f"{where} is forbidden to this token. To push, use one with write access, or create_pr=True.{said}"
        case 409:
            return f"{where}: the hub reports a conflict.{said}"
        case 412:
            return (
                f"Somebody pushed to {where} meanwhile. Nothing was lost: their commit stands and yours was not made. "
                "Pull, look at what changed, and push again."
            )
        case 413:
            return f"{where}: the hub refuses files of this size.{said}"
        case 429:
            return f"{hub} asks for fewer requests. Wait a minute and try again.{said}"
        case status if status >= 500:
            return (
                f"{hub} failed with status {status}. Try again later; see whether a push arrived before repeating it."
            )
        case status:
            return f"{where}: the hub refused with status {status}.{said}"
