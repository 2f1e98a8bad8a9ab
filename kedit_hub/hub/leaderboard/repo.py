"""A board on the Hub: read it, add to it. Law: one commit that only adds files, made onto the commit that was looked at; what was read once
is read again without a hub.

    submit(runs, "lab/board", key=load_key("ada.pem"), create_pr=True)
    board = rank("lab/board", base="org/model")
    mark_verified("lab/board", my_runs_of_the_same_cells, key=load_key("bob.pem"))
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from tqdm.auto import tqdm

from kedit_hub.errors import HubError, KeditError, PatchFormatError
from kedit_hub.evaluate.run import Run
from kedit_hub.hub.client import Token, client, commit_named, hub_errors
from kedit_hub.hub.leaderboard import card, submission, verification
from kedit_hub.hub.leaderboard.board import METRIC, PROTOCOL, Board, ranking
from kedit_hub.hub.leaderboard.bounds import DEFAULT, Bounds
from kedit_hub.hub.leaderboard.cache import Cache
from kedit_hub.hub.leaderboard.contents import FOLDERS, Contents, Listed, Skipped, admit, choose
from kedit_hub.hub.leaderboard.verification import (
    TOLERANCE,
    Averages,
    Differs,
    OtherCell,
    Reproduced,
    attest,
    cell_of,
    compare,
    recipe,
)
from kedit_hub.hub.localhub.gitids import has_digest
from kedit_hub.patch.keys import public_key
from kedit_hub.patch.safefile import read_file
from kedit_hub.patch.trust import TrustPolicy, policy_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

TYPE = "dataset"
FETCHERS = 8  # files that are fetched at once
CARD = "README.md"


# --- reading ------------------------------------------------------------------------------------------------------


def rank(
    repo_id: str,
    *,
    base: str | None = None,
    suite: str | None = None,
    dataset: str | None = None,
    protocol: str = PROTOCOL,
    metric: str = METRIC,
    n: int | None = None,
    revision: str | None = None,
    trust: str | PathLike[str] | TrustPolicy | None = None,
    token: Token = None,
    endpoint: str | None = None,
) -> Board:
    """The board as it is now; without a hub, as it was when last looked at.

    dataset: id, or the first digits (8 or more) of its sha256. revision: branch, tag, pull request (refs/pr/3) or commit, None for main.
    trust: a policy whose keys get their names, and whose verifications count; None for the file that KEDIT_TRUST names, if any.
    Raises HubError, TrustError, and KeditError for an average that no run has.
    """
    policy = policy_of(trust)
    contents = read(repo_id, revision=revision, token=token, endpoint=endpoint)
    return ranking(
        contents, base=base, suite=suite, dataset=dataset, protocol=protocol, metric=metric, n=n, policy=policy
    )


def read(
    repo_id: str,
    *,
    revision: str | None = None,
    token: Token = None,
    endpoint: str | None = None,
    bounds: Bounds = DEFAULT,
) -> Contents:
    """Everything that lies in the board, checked."""
    repo_id = board_name(repo_id)
    api, cache = client(endpoint, token), Cache(endpoint)
    with hub_errors(f"datasets/{repo_id}", revision=revision, endpoint=endpoint, token=token):
        commit = commit_named(api, repo_id, revision, repo_type=TYPE, cache_dir=cache.folder / "refs")
        known, cut = cache.listing(repo_id, commit), False
        if known is None:
            known, cut = _list(api, repo_id, commit, bounds)
            if not cut:
                cache.keep_listing(repo_id, commit, known)
        chosen, skipped = choose(known, bounds)
        if cut:
            skipped.append(
                Skipped.of("", f"there are more than {bounds.max_files:,} files; the others are not looked at")
            )
        found = list(_fetch(api, cache, repo_id, commit, chosen, skipped))
    return admit(repo_id, commit, found, skipped, bounds)


def _list(api: HfApi, repo_id: str, commit: str, bounds: Bounds) -> tuple[tuple[Listed, ...], bool]:
    """(the files of both folders, whether there are more than are listed)."""
    files: dict[str, RepoFile] = {}
    cut = False
    for folder in FOLDERS:
        tree = api.list_repo_tree(repo_id, folder, recursive=True, expand=True, revision=commit, repo_type=TYPE)
        try:
            listed = list(islice(tree, bounds.max_files + 1))
        except EntryNotFoundError:  # nobody has put anything there
            continue
        cut = cut or len(listed) > bounds.max_files
        files |= {file.path: file for file in listed[: bounds.max_files] if isinstance(file, RepoFile)}
    history = api.list_repo_commits(repo_id, revision=commit, repo_type=TYPE) if files else []
    places = {one.commit_id: (place, tuple(one.authors)) for place, one in enumerate(reversed(history))}
    return tuple(_listed(file, places) for file in files.values()), cut


def _listed(file: RepoFile, places: Mapping[str, tuple[int, tuple[str, ...]]]) -> Listed:
    last = file.last_commit
    if last is None or last.oid not in places:
        raise HubError(
            f"The hub does not say which commit put {file.path[:200]!r} there. Check endpoint= or HF_ENDPOINT."
        )
    place, authors = places[last.oid]
    digest = file.blob_id if file.lfs is None else file.lfs.sha256
    return Listed(file.path, file.size, digest, last.oid, place, last.date.isoformat(), authors)


def _fetch(
    api: HfApi, cache: Cache, repo_id: str, commit: str, files: Sequence[Listed], skipped: list[Skipped]
) -> Iterator[tuple[Listed, bytes]]:
    """The bytes of every file, of the cache where they lie there. What arrives damaged is left out."""

    def one(file: Listed) -> bytes | None:
        data = cache.file(file.digest, file.size)
        if data is None:
            with tempfile.TemporaryDirectory(prefix="kedit-") as folder:
                path = api.hf_hub_download(
                    repo_id, file.path, repo_type=TYPE, revision=commit, cache_dir=folder, tqdm_class=_Silent
                )
                try:
                    data = read_file(Path(path).resolve(), file.size)
                except PatchFormatError:
                    return None
            cache.keep_file(file.digest, data)
        return data if has_digest(data, file.digest) else None

    with ThreadPoolExecutor(FETCHERS) as pool:
        for file, data in zip(files, pool.map(one, files)):
            if data is None:
                skipped.append(
                    Skipped.of(file.path, "it arrived with other bytes than the hub lists; look again later")
                )
            else:
                yield file, data


class _Silent(tqdm):
    """No bar for each of many small files."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})


# --- adding -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Submitted:
    """What became of a submission. commit: 40 hex digits; of main as it is where the submission was there already (is_new False).

    signer: public key, None for an unsigned one. notes: what was changed, or is to be known.
    """

    repo_id: str
    submission: str
    path: str
    runs: int
    signer: str | None
    is_new: bool
    commit: str
    pr_url: str | None
    url: str
    notes: tuple[str, ...]


def submit(
    runs: Iterable[Run],
    repo_id: str,
    *,
    key: "Ed25519PrivateKey | None" = None,
    create_pr: bool = False,
    token: Token = None,
    endpoint: str | None = None,
) -> Submitted:
    """Add runs to a board: one file in one commit. A repo that is not there is made, with its card, unless create_pr is set.

    key: sign it, so that nobody else can replace your rows. create_pr: propose it to a board of somebody else. Outcomes of single edits
    are left out. Raises KeditError for runs that a board would not take, HubError for what the hub refuses.
    """
    repo_id = board_name(repo_id)
    packed, notes = submission.pack(runs)
    files = {packed.path: packed.data}
    if key is not None:
        files[submission.signature_path(packed.digest)] = submission.sign(packed.digest, key, repo_id)
    api = client(endpoint, token)
    with hub_errors(f"datasets/{repo_id}", endpoint=endpoint, token=token):
        title = f"Submit {len(packed.lines)} runs"
        done = _add(api, repo_id, files, title, create_pr=create_pr, create_repo=not create_pr, unless=packed.path)
    if not done.is_new:
        notes += ("These runs are on the board already; nothing was added.",)
        if key is not None:
            notes += ("Whether they are signed was decided then: a submission is signed when it is made.",)
    return Submitted(
        repo_id=repo_id,
        submission=packed.digest,
        path=packed.path,
        runs=len(packed.lines),
        signer=public_key(key) if key is not None and done.is_new else None,
        is_new=done.is_new,
        commit=done.commit,
        pr_url=done.pr_url,
        url=f"{api.endpoint}/datasets/{repo_id}",
        notes=notes,
    )


@dataclass(frozen=True)
class Marked:
    """What came of measuring runs again, by sha256 of the line of the run on the board.

    own: runs of your own, for which you cannot vouch. unknown: keys (`Run.key`) of measured runs whose cells nobody else has submitted.
    commit, pr_url: of what was added; None where nothing was.
    """

    repo_id: str
    verifier: str
    tolerance: float
    reproduced: Mapping[str, Averages]
    differs: Mapping[str, Differs]
    own: tuple[str, ...]
    unknown: tuple[str, ...]
    commit: str | None
    pr_url: str | None


def mark_verified(
    repo_id: str,
    measured: Iterable[Run],
    *,
    key: "Ed25519PrivateKey",
    tolerance: float = TOLERANCE,
    create_pr: bool = False,
    token: Token = None,
    endpoint: str | None = None,
) -> Marked:
    """Vouch for runs of a board with runs of your own of the same cells: those that agree get a signed verification, in one commit.

    tolerance: how far every average may be from the claimed one. Runs that differ get nothing; see `Marked.differs`.
    Raises KeditError for a tolerance that would not mean anything, HubError for what the hub refuses.
    """
    given = {cell_of(run): run for run in measured}
    contents = read(repo_id, token=token, endpoint=endpoint)
    repo_id, mine = contents.repo_id, public_key(key)
    claims: dict[str, Run] = {}
    own: set[str] = set()
    for entry in contents.entries:
        for digest, run in entry.submission.lines:
            if cell_of(run) in given:
                if entry.signer == mine:
                    own.add(digest)
                else:
                    claims[digest] = run
    reproduced: dict[str, Averages] = {}
    differs: dict[str, Differs] = {}
    for digest, run in claims.items():
        match compare(run, given[cell_of(run)], tolerance):
            case Reproduced(found):
                reproduced[digest] = found
            case Differs() as verdict:
                differs[digest] = verdict
            case OtherCell():
                raise AssertionError("they were matched by their cells")
    done: _Added | None = None
    if reproduced:
        made = [attest(digest, found, tolerance, key, repo_id) for digest, found in reproduced.items()]
        files = {f"{verification.FOLDER}/{sha256(data).hexdigest()}.json": data for data in made}
        with hub_errors(f"datasets/{repo_id}", endpoint=endpoint, token=token):
            done = _add(client(endpoint, token), repo_id, files, f"Verify {len(files)} runs", create_pr=create_pr)
    met = {cell_of(run) for run in claims.values()}
    return Marked(
        repo_id=repo_id,
        verifier=mine,
        tolerance=tolerance,
        reproduced=reproduced,
        differs=differs,
        own=tuple(sorted(own - claims.keys())),
        unknown=tuple(sorted(run.key for cell, run in given.items() if cell not in met)),
        commit=done.commit if done is not None else None,
        pr_url=done.pr_url if done is not None else None,
    )


@dataclass(frozen=True)
class _Added:
    """commit: that added the files; that main is at where they were there already."""

    commit: str
    pr_url: str | None = None
    is_new: bool = True


def reverify(
    repo_id: str,
    run: str,
    measure: Callable[..., Sequence[Run]],
    *,
    key: "Ed25519PrivateKey",
    tolerance: float = TOLERANCE,
    create_pr: bool = False,
    token: Token = None,
    endpoint: str | None = None,
    **on: Any,
) -> Marked:
    """Measure a run of the board again, then `mark_verified`. The edits are yours to bring: a board names them by digest alone.

    run: sha256 of its line, or the first digits of it. measure: `kedit_hub.benchmarking.bench`; on: what it is to be told beside `recipe`
    (edits, split, limit, out, ...). Raises KeditError when what was measured is another cell, as with other edits or another base.
    """
    contents = read(repo_id, token=token, endpoint=endpoint)
    known = {digest: one for entry in contents.entries for digest, one in entry.submission.lines}
    found = [digest for digest in known if len(run) >= 8 and digest.startswith(run)]
    if len(found) != 1:
        raise KeditError(
            f"{run[:80]!r} names {len(found)} runs of '{contents.repo_id}'. `kedit leaderboard show --json` lists their digests; give 8 "
            "or more digits of one."
        )
    claimed = known[found[0]]
    measured = measure(**recipe(claimed), **on)
    same = [one for one in measured if cell_of(one) == cell_of(claimed)]
    if not same:
        fields = {
            name for one in measured if isinstance(other := compare(claimed, one), OtherCell) for name in other.fields
        }
        raise KeditError(
            f"what was measured is not what run {found[0][:12]} measured; it differs in: {', '.join(sorted(fields)) or 'everything'}. "
            f"Bring the base and the edits that it names (edits_sha256 {claimed.dataset.edits_sha256})."
        )
    return mark_verified(
        repo_id, same, key=key, tolerance=tolerance, create_pr=create_pr, token=token, endpoint=endpoint
    )


def _add(
    api: HfApi,
    repo_id: str,
    files: Mapping[str, bytes],
    title: str,
    *,
    create_pr: bool,
    create_repo: bool = False,
    unless: str | None = None,
) -> _Added:
    """One commit that adds those of the files that are not there; none where `unless` is there already, or all are.

    Somebody who adds something meanwhile is no reason to fail: their files and ours have other names, so ours are added once more onto
    their commit, and the second time is left to whoever called.
    """
    for attempt in (1, 2):
        head = _head(api, repo_id, create=create_repo)
        present = {file.path for file in api.get_paths_info(repo_id, [CARD, *files], revision=head, repo_type=TYPE)}
        added = {path: data for path, data in files.items() if path not in present}
        if unless in present or not added:
            return _Added(head, is_new=False)
        if CARD not in present and not create_pr:
            added[CARD] = card.render(repo_id)
        try:
            made = api.create_commit(
                repo_id,
                [CommitOperationAdd(path_in_repo=path, path_or_fileobj=data) for path, data in added.items()],
                commit_message=title,
                repo_type=TYPE,
                parent_commit=head,
                create_pr=create_pr,
            )
        except HfHubHTTPError as error:
            if error.response.status_code != 412 or attempt == 2:
                raise
        else:
            return _Added(made.oid, made.pr_url)
    raise AssertionError("the second attempt returns or raises")


def _head(api: HfApi, repo_id: str, *, create: bool) -> str:
    """The commit that main is at, of a repo that is made when it is not there."""
    try:
        refs = api.list_repo_refs(repo_id, repo_type=TYPE)
    except RepositoryNotFoundError:
        if not create:
            raise
        api.create_repo(repo_id, repo_type=TYPE, exist_ok=True)
        refs = api.list_repo_refs(repo_id, repo_type=TYPE)
    head = next((ref.target_commit for ref in refs.branches if ref.name == "main"), None)
    if head is None:
        raise HubError(f"'{repo_id}' has no branch main. Make a board with `kedit leaderboard submit`.")
    return head


def board_name(text: str) -> str:
    """`text` when it is the name of a repo, user/repo and nothing more; raises HubError."""
    try:
        validate_repo_id(text)
        named = "/" in text
    except HFValidationError:
        named = False
    if not named:
        raise HubError(f"{text[:200]!r} is not the name of a board: write user/repo, a dataset repo of the Hub.")
    return text
