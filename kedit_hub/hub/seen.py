"""Trust on first use: who had signed a repo when it was last pulled. Law: a repo that changes hands is refused, not loaded.

    check(None, "ada/tower", "v1.2.0", patch)     # at the end of every pull: refuses, warns, or remembers
    forget(None, "ada/tower")                     # the next pull is a first one again

Remembered per hub and repo, in $KEDIT_HOME/seen (or ~/.cache/kedit_hub/seen): the public keys of the signers and the highest
signed version. Of repos that were never signed nothing is remembered. What comes later

    is not signed, or shares no signer with what was seen     is refused;
    shares a signer                                           is taken: so a key is replaced by signing once with both;
    has a lower signed version than the highest seen, or none is taken with a warning, unless a tag or commit asked for it.

An old version, asked for or not, never brings back signers that newer ones have left. A pull request is neither compared nor
remembered: it is somebody else's by nature. Nor does a bare commit begin a memory: it may be of a pull request. The first
pull of all is believed as it is: a policy (kedit_hub.patch.trust) says beforehand whom to believe.
"""

import os
import re
import shlex
import tempfile
import warnings
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from huggingface_hub import constants
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kedit_hub import strictjson
from kedit_hub.errors import HubError, PatchFormatError
from kedit_hub.home import home
from kedit_hub.hub.ref import repo_name
from kedit_hub.limits import MAX_SEEN_BYTES
from kedit_hub.patch.fingerprint import Hex64
from kedit_hub.patch.patch import Patch
from kedit_hub.patch.safefile import read_file
from kedit_hub.patch.signature import VERSION


class _Seen(BaseModel):
    """signers: who signed what was pulled last. version: the highest that was signed, None: none was."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    kedit_seen: Literal[1] = 1
    endpoint: str
    repo_id: str
    signers: Annotated[tuple[Hex64, ...], Field(min_length=1)]
    version: Annotated[str, Field(pattern=rf"^{VERSION}$")] | None


_COMMIT, _PROPOSAL = re.compile(r"[0-9a-f]{40}"), re.compile(r"(?:refs/)?pr/\d+")


def is_version(revision: str | None) -> bool:
    """True for the tag of a version, as `push` makes it."""
    return revision is not None and re.fullmatch(rf"(?:refs/tags/)?v?{VERSION}", revision) is not None


def check(endpoint: str | None, repo_id: str, revision: str | None, patch: Patch) -> None:
    """Compare what was pulled with what was seen before, and remember it. revision: as asked for; None: the newest on main.

    Raises HubError when the repo was signed and now is not, or by others alone, and when the memory is damaged.
    """
    if revision is not None and _PROPOSAL.fullmatch(revision):
        return
    is_commit = revision is not None and _COMMIT.fullmatch(revision) is not None
    is_explicit = is_commit or is_version(revision)
    hub, repo_id = _hub(endpoint), repo_id.lower()
    before = _read(hub, repo_id)
    if before is not None and not set(before.signers) & set(patch.signers):
        now = f"signed by {', '.join(patch.signers)}" if patch.signers else "not signed"
        raise HubError(
            f"'{repo_id}' was signed by {', '.join(before.signers)} when it was last pulled; what it holds now is {now}. "
            "Somebody else may have taken the repo over. Ask its author, not through the repo, whether this is meant; if "
            f"it is, run: {_remedy(hub, repo_id)}  and pull again."
        )
    signature = patch.signature
    if signature is None:
        return
    version = signature.statement.version
    if before is None:
        if not is_commit:
            _write(_Seen(endpoint=hub, repo_id=repo_id, signers=patch.signers, version=version))
        return
    is_older = before.version is not None and (version is None or precedence(version) < precedence(before.version))
    if is_older and not is_explicit:
        warnings.warn(
            f"'{repo_id}' now holds {f'version {version}' if version else 'a patch signed without a version'}, and "
            f"version {before.version} was pulled before: somebody may be serving old content. Pull a version by its "
            "tag if you want that one.",
            stacklevel=3,  # the caller of pull
        )
    signers = before.signers if is_older or is_explicit else patch.signers
    now_seen = before.model_copy(
        update={"signers": signers, "version": before.version if is_older else version or before.version}
    )
    if now_seen != before:
        _write(now_seen)


def forget(endpoint: str | None, repo_id: str) -> bool:
    """Drop what is remembered of a repo; False when nothing was. Raises HubError."""
    file = _file(_hub(endpoint), repo_name(repo_id).lower())
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    except OSError as cause:
        raise HubError(f"'{file}', which remembers '{repo_id}', cannot be deleted: {cause.strerror}.") from None
    return True


def precedence(version: str) -> tuple[object, ...]:
    """Versions in the order of semver.org, 11: 1.0.0-rc.2 < 1.0.0-rc.10 < 1.0.0 < 1.0.1."""
    numbers, _, before_release = version.partition("-")
    parts = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in before_release.split(".")]
    return (*map(int, numbers.split(".")), not before_release, parts)


# --- files --------------------------------------------------------------------------------------------------------


def _hub(endpoint: str | None) -> str:
    return (endpoint or constants.ENDPOINT).rstrip("/")


def _file(hub: str, repo_id: str) -> Path:
    return home() / "seen" / f"{sha256(f'{hub} {repo_id}'.encode()).hexdigest()}.json"


def _read(hub: str, repo_id: str) -> _Seen | None:
    file = _file(hub, repo_id)
    if not os.path.lexists(file):
        return None
    try:
        data = read_file(file, MAX_SEEN_BYTES)
        value = strictjson.loads(data, what="it", max_bytes=MAX_SEEN_BYTES)
        seen = _Seen.model_validate_json(strictjson.canonical(value))
        if (seen.endpoint, seen.repo_id) != (hub, repo_id):
            raise PatchFormatError(f"it is about {seen.repo_id[:200]!r} of {seen.endpoint[:200]!r}")
    except (PatchFormatError, ValidationError) as cause:
        why = "it does not have the fields of this version" if isinstance(cause, ValidationError) else str(cause)
        raise HubError(
            f"'{file}' remembers who signed '{repo_id}', and cannot be read: {why.rstrip('.')}. Nothing is loaded unchecked. "
            f"To start anew run: {_remedy(hub, repo_id)}"
        ) from None
    return seen


def _write(seen: _Seen) -> None:
    """Whole or not at all, readable by its owner alone. Where nothing can be written a warning says what that costs."""
    file = _file(seen.endpoint, seen.repo_id)
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".seen-")  # mode 0600
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(strictjson.pretty(seen.model_dump(mode="json")))
                out.flush()
                os.fsync(out.fileno())
            os.replace(temporary, file)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as cause:
        warnings.warn(
            f"Who signed '{seen.repo_id}' cannot be remembered in '{file.parent}' ({cause.strerror}), so the next pull cannot "
            "notice another signer. Set KEDIT_HOME to a folder that can be written, or name signers in a trust policy.",
            stacklevel=4,  # the caller of pull
        )


def _remedy(hub: str, repo_id: str) -> str:
    where = "" if hub == _hub(None) else f" --endpoint {shlex.quote(hub)}"
    return f"kedit trust forget {repo_id}{where}"
