"""What lies in a board, checked. Law: a file that breaks a rule is left out by name and reason, and breaks nothing else.

contents = admit("lab/board", commit, files, skipped)     # files as the repo holds them; runs nothing, asks nobody
contents.entries, contents.witnesses, contents.skipped
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from kedit_hub.errors import KeditError, SignatureError
from kedit_hub.evaluate.report.text import visible
from kedit_hub.hub.leaderboard import submission, verification
from kedit_hub.hub.leaderboard.bounds import DEFAULT, Bounds
from kedit_hub.hub.leaderboard.submission import Submission
from kedit_hub.hub.leaderboard.verification import Finding

FOLDERS = (submission.FOLDER, verification.FOLDER)
MAX_REASON_CHARS = 500


@dataclass(frozen=True)
class Listed:
    """A file as the hub lists it. digest: its git blob id (40 hex digits) or sha256 (64).

    commit: that put it there; place: how many commits came before that one; at: its time, as the hub says; authors: users of the hub who
    made it.
    """

    path: str
    size: int
    digest: str
    commit: str
    place: int
    at: str
    authors: tuple[str, ...]


@dataclass(frozen=True)
class Skipped:
    """A file that does not count, and why: text of strangers, made harmless for a terminal and bounded."""

    path: str
    reason: str

    @classmethod
    def of(cls, path: str, reason: object) -> "Skipped":
        return cls(visible(path), visible(str(reason).rstrip("."), MAX_REASON_CHARS))


@dataclass(frozen=True)
class Entry:
    """A submission that counts. signer: public key, None where nobody signed it."""

    submission: Submission
    signer: str | None
    listed: Listed

    @property
    def submitter(self) -> tuple[str, ...]:
        """Who it is by: the key that signed it, else the users of the hub whose commit brought it."""
        return ("key", self.signer) if self.signer is not None else ("hub", *self.listed.authors)


@dataclass(frozen=True)
class Witness:
    """Somebody who measured a run again. key: public key."""

    finding: Finding
    key: str
    listed: Listed


@dataclass(frozen=True)
class Contents:
    """Everything that counts, the oldest first, and everything that does not."""

    repo_id: str
    commit: str
    entries: tuple[Entry, ...]
    witnesses: tuple[Witness, ...]
    skipped: tuple[Skipped, ...] = field(repr=False)


# --- which files are looked at ------------------------------------------------------------------------------------


def choose(files: Iterable[Listed], bounds: Bounds = DEFAULT) -> tuple[list[Listed], list[Skipped]]:
    """(the files to fetch, those that are left out by their name, size or number alone). Nothing is fetched to know that."""
    skipped: list[Skipped] = []
    kept: list[Listed] = []
    seen: dict[re.Pattern[str], int] = {}
    total = 0
    most = {
        submission.FILE: (bounds.max_submissions, bounds.max_submission_bytes),
        submission.SIGNATURE: (bounds.max_submissions, bounds.max_signature_bytes),
        verification.FILE: (bounds.max_verifications, bounds.max_verification_bytes),
    }
    for file in sorted(files, key=lambda file: (file.place, file.path)):
        kind = next((pattern for pattern in most if pattern.fullmatch(file.path)), None)
        if kind is None:
            skipped.append(Skipped.of(file.path, "a board holds no file of this name"))
            continue
        count, size = most[kind]
        if file.size > size:
            skipped.append(Skipped.of(file.path, f"it has {file.size:,} bytes; at most {size:,} are read"))
        elif seen.get(kind, 0) >= count:
            skipped.append(
                Skipped.of(file.path, f"{count:,} such files are read, the oldest first; it comes after them")
            )
        elif total + file.size > bounds.max_total_bytes:
            skipped.append(
                Skipped.of(file.path, f"{bounds.max_total_bytes:,} bytes are read in all; it comes after them")
            )
        else:
            seen[kind] = seen.get(kind, 0) + 1
            total += file.size
            kept.append(file)
    return kept, skipped


# --- what they hold -----------------------------------------------------------------------------------------------


def admit(
    repo_id: str,
    commit: str,
    files: Sequence[tuple[Listed, bytes]],
    skipped: Iterable[Skipped] = (),
    bounds: Bounds = DEFAULT,
) -> Contents:
    """Check every file. files: those of `choose` and their bytes. skipped: what was left out before."""
    left_out = list(skipped)
    ordered = sorted(files, key=lambda pair: (pair[0].place, pair[0].path))
    signatures = {match[1]: pair for pair in ordered if (match := submission.SIGNATURE.fullmatch(pair[0].path))}
    entries: list[Entry] = []
    witnesses: list[Witness] = []
    for listed, data in ordered:
        if match := submission.FILE.fullmatch(listed.path):
            try:
                parsed = submission.parse(data, match[1], bounds)
                key = _signer(repo_id, listed, signatures.pop(match[1], None), left_out, bounds)
            except KeditError as cause:
                left_out.append(Skipped.of(listed.path, cause))
            else:
                entries.append(Entry(parsed, key, listed))
        elif match := verification.FILE.fullmatch(listed.path):
            try:
                if sha256(data).hexdigest() != match[1]:
                    raise KeditError("its bytes are not those its name says")
                witnesses.append(Witness(*verification.parse(data, repo_id, bounds), listed))
            except KeditError as cause:
                left_out.append(Skipped.of(listed.path, cause))
    left_out += [Skipped.of(listed.path, "it signs no submission that counts") for listed, _ in signatures.values()]
    runs = {digest for entry in entries for digest, _ in entry.submission.lines}
    for witness in witnesses:
        if witness.finding.run not in runs:
            left_out.append(Skipped.of(witness.listed.path, "it is about a run that is not on the board"))
    known = tuple(witness for witness in witnesses if witness.finding.run in runs)
    return Contents(repo_id, commit, tuple(entries), known, tuple(left_out))


def _signer(
    repo_id: str,
    listed: Listed,
    signature: tuple[Listed, bytes] | None,
    left_out: list[Skipped],
    bounds: Bounds,
) -> str | None:
    """Public key of who signed a submission; SignatureError for a signature that does not hold.

    Only who submits can sign: a signature that another commit brought would let anybody put a name to an unsigned submission.
    """
    if signature is None:
        return None
    brought, data = signature
    if brought.commit != listed.commit:
        left_out.append(
            Skipped.of(
                brought.path, "another commit than that of the submission brought it, so it is not by who submitted"
            )
        )
        return None
    try:
        return submission.signer(data, submission.FILE.fullmatch(listed.path)[1], repo_id, bounds)  # type: ignore[index]
    except SignatureError:
        raise
    except KeditError as cause:  # over a bound
        raise SignatureError(str(cause)) from None
