"""A submission: one file of runs. Law: its name is the digest of its bytes, it has one written form, and it is checked in the same way
by who submits it and by everybody who reads it.

    packed, notes = pack(runs)                      # sorted, each once, without the outcomes of single edits
    parse(packed.data, packed.digest)               # the same submission; KeditError for anything a stranger made of it
    sign(packed.digest, key, "lab/board")           # the file beside it that says whose it is
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

from kedit_hub import strictjson
from kedit_hub.errors import KeditError, LimitError, SignatureError
from kedit_hub.evaluate.run import Run
from kedit_hub.hub.leaderboard.bounds import DEFAULT, Bounds
from kedit_hub.hub.leaderboard.sealed import Statement, same_board, seal, unseal
from kedit_hub.hub.leaderboard.verification import stats
from kedit_hub.patch.fingerprint import Hex64
from kedit_hub.patch.safefile import refuse_impostor

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FOLDER = "submissions"
SLACK = 1e-9  # a bootstrap mean of ones may be a hair above one
FILE = re.compile(rf"{FOLDER}/([0-9a-f]{{64}})\.jsonl")
SIGNATURE = re.compile(rf"{FOLDER}/([0-9a-f]{{64}})\.sig\.json")


@dataclass(frozen=True)
class Submission:
    """data: the file. lines: (sha256 of its line, run) in the order of the file."""

    digest: str
    lines: tuple[tuple[str, Run], ...]
    data: bytes = field(repr=False)

    @property
    def path(self) -> str:
        return f"{FOLDER}/{self.digest}.jsonl"


def pack(runs: Iterable[Run], bounds: Bounds = DEFAULT) -> tuple[Submission, tuple[str, ...]]:
    """The submission of these runs, and what was changed to make it. Raises KeditError for what no board would take."""
    given = list(runs)
    if not given:
        raise KeditError("there is no run to submit: measure one with `kedit bench`")
    stripped = sum(bool(run.per_edit) for run in given)
    lines = [run.model_copy(update={"per_edit": []}).to_bytes() for run in given]
    data = b"".join(line + b"\n" for line in sorted(set(lines)))
    submission = parse(data, sha256(data).hexdigest(), bounds)
    notes = []
    if stripped:
        notes.append(f"The outcomes of single edits are left out of {stripped} run(s): a board holds averages.")
    if len(submission.lines) < len(given):
        notes.append(f"{len(given) - len(submission.lines)} run(s) were given twice and are submitted once.")
    return submission, tuple(notes)


def parse(data: bytes, digest: str, bounds: Bounds = DEFAULT) -> Submission:
    """Read a submission, which may be a stranger's. digest: the one in its name. Raises KeditError."""
    if len(data) > bounds.max_submission_bytes:
        raise LimitError(f"it has {len(data):,} bytes; at most {bounds.max_submission_bytes:,} are read")
    if sha256(data).hexdigest() != digest:
        raise KeditError("its bytes are not those its name says: it was damaged, or changed after it was submitted")
    refuse_impostor(data, "it")
    if not data.endswith(b"\n"):
        raise KeditError("it is cut short: its last line has no end")
    raw = data[:-1].split(b"\n")
    if len(raw) > bounds.max_runs:
        raise LimitError(f"it has {len(raw):,} runs; at most {bounds.max_runs:,} are read")
    for number, line in enumerate(raw, 1):
        if len(line) > bounds.max_run_bytes:
            raise LimitError(f"line {number} has {len(line):,} bytes; at most {bounds.max_run_bytes:,} are read")
    if sorted(set(raw)) != raw:
        raise KeditError("its lines are not sorted, or one is there twice")
    lines = tuple(_line(line, f"line {number}") for number, line in enumerate(raw, 1))
    twice = [run for run, count in Counter(run.key for _, run in lines).items() if count > 1]
    if twice:
        raise KeditError(
            f"{len(twice)} cell(s) of it are measured twice, and nothing says which counts. Submit one run of each"
        )
    return Submission(digest, lines, data)


def _line(line: bytes, what: str) -> tuple[str, Run]:
    run = Run.parse(line, what=what)
    if line != strictjson.canonical(strictjson.loads(line, what=what, max_bytes=len(line), error=KeditError)):
        raise KeditError(f"{what} is in another form than kedit_hub writes (spaces, escapes, order)")
    for protocol, sheet in stats(run).items():
        for name, stat in sheet.items():
            if stat.low is not None and stat.high is not None and not -SLACK <= stat.low <= stat.high <= 1 + SLACK:
                raise KeditError(
                    f"{what}: {protocol[:40]!r} {name[:80]!r} lies in {stat.low:g} to {stat.high:g}: no interval of a share"
                )
    if run.per_edit:
        raise KeditError(f"{what} holds the outcomes of {len(run.per_edit):,} single edits; a board holds averages")
    named = run.dataset
    if named.sha256 is None and named.revision is None and named.edits_sha256 is None:
        raise KeditError(
            f"{what}: its data set {named.id!r} is known by name alone, so nothing can be compared with it"
        )
    return sha256(line).hexdigest(), run


# --- whose it is --------------------------------------------------------------------------------------------------


class Ownership(Statement):
    """submission: the digest that names it."""

    submission: Hex64


def signature_path(digest: str) -> str:
    return f"{FOLDER}/{digest}.sig.json"


def sign(digest: str, key: "Ed25519PrivateKey", repo_id: str) -> bytes:
    """The file at `signature_path`."""
    return seal("submission", Ownership(repo_id=repo_id, submission=digest), key)


def signer(data: bytes, digest: str, repo_id: str, bounds: Bounds = DEFAULT) -> str:
    """Public key of who signed the submission for this board. Raises SignatureError for any other signature."""
    stated, key = unseal(data, "submission", Ownership, what="its signature", max_bytes=bounds.max_signature_bytes)
    if not same_board(stated.repo_id, repo_id):
        raise SignatureError(f"its signature was made for the board {stated.repo_id!r}, not for {repo_id!r}")
    if stated.submission != digest:
        raise SignatureError(f"its signature is of another submission, {stated.submission}")
    return key
