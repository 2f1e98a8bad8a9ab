"""The ranking. Law: only what was measured in the same way is compared, and every row says how sure it is and who vouches for it.

    board = ranking(contents, protocol="generate", metric="score", base="org/model")
    for row in board.rows: row.contest, row.rank, row.method, row.value.mean, row.mark
    for title, columns, rows in tables(board): ...        # as a page or a terminal would show it: plain text

A contest is one base (id, revision, fingerprint, quantization), one data set (by its bytes), one suite, one number of edits, one
protocol and one average; contests are ranked apart, always. Where two submissions under one order seed asked different edits, they
are different contests too. A row is one way of editing by one submitter: their newest measurement of each seed, averaged over seeds.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from statistics import fmean
from typing import Any, assert_never

from kedit_hub import strictjson
from kedit_hub.errors import KeditError
from kedit_hub.evaluate.report.cells import Stat, Summary, summary
from kedit_hub.evaluate.report.text import visible
from kedit_hub.evaluate.run import ASKED, Run
from kedit_hub.hub.leaderboard.contents import Contents, Entry, Skipped, Witness
from kedit_hub.hub.leaderboard.verification import stats
from kedit_hub.patch.trust import TrustPolicy

METRIC, PROTOCOL = "score", "generate"


@dataclass(frozen=True)
class Contest:
    """What the rows of one ranking have in common. data: which bytes. edits: digest of the edits of the lowest order seed."""

    base: str
    revision: str | None
    fingerprint: str | None
    quantization: str | None
    dataset: str
    data: str
    edits: str | None
    suite: str
    n: int
    protocol: str
    metric: str

    @property
    def title(self) -> str:
        revision = f"@{self.revision[:12]}" if self.revision else ""
        edits = f", edits {self.edits[:12]}" if self.edits else ""
        weights = f" (weights {self.fingerprint[:12]})" if self.fingerprint else ""
        numbers = f" in {self.quantization}" if self.quantization else ""
        kind, _, digest = self.data.partition(" ")
        return (
            f"{self.protocol} {self.metric} · {self.suite}, {self.n:,} edit(s) · {self.base}{revision}{weights}{numbers} · "
            f"{self.dataset} ({kind} {digest[:12]}{edits})"
        )


# --- who vouches --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verified:
    """All runs of the row were measured again by keys that the reader's policy names. names: as the policy calls them."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Attested:
    """All runs of the row were measured again by others, whom the reader's policy does not name. keys: public keys."""

    keys: tuple[str, ...]


@dataclass(frozen=True)
class Claimed:
    """The submitter says that the runs were measured again; nobody signed that."""


@dataclass(frozen=True)
class Unchecked:
    """Nobody says to have measured the runs again."""


Mark = Verified | Attested | Claimed | Unchecked


def told(mark: Mark) -> str:
    """A mark in words."""
    match mark:
        case Verified(names):
            return f"verified by {', '.join(names)}"
        case Attested(keys):
            return f"attested by {', '.join(map(_short, keys))}"
        case Claimed():
            return "says so itself"
        case Unchecked():
            return "no"
        case _:
            assert_never(mark)


# --- rows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One way of editing. submitter: a name of the reader's policy, a public key, or users of the hub; signed: which of these it can be.

    settings: sha256 of them. seeds: (seed, order seed) of each run. seconds: to make one edit; train_s: of the editor, once; bytes: of all
    patches; each averaged over the runs. submissions, runs: digests.
    """

    contest: Contest
    rank: int
    submitter: str
    signed: bool
    method: str
    mode: str
    settings: str
    dtype: str
    batch_size: int
    value: Summary
    seeds: tuple[tuple[int, int], ...]
    seconds: float
    train_s: float
    bytes: float
    mark: Mark
    submissions: tuple[str, ...]
    runs: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        plain = {**asdict(self), "seeds": [list(pair) for pair in self.seeds]}
        return {**plain, "mark": {"kind": type(self.mark).__name__.lower(), **asdict(self.mark)}}


@dataclass(frozen=True)
class Board:
    """rows: by contest, then rank. without: runs of the protocol that do not have the average, and so no place. skipped: files left out."""

    repo_id: str
    commit: str
    rows: tuple[Row, ...]
    without: int
    skipped: tuple[Skipped, ...]

    @property
    def contests(self) -> dict[Contest, list[Row]]:
        found: dict[Contest, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.contest, []).append(row)
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "repo_id": self.repo_id,
            "commit": self.commit,
            "contests": [
                {
                    **asdict(contest),
                    "rows": [{k: v for k, v in row.to_dict().items() if k != "contest"} for row in rows],
                }
                for contest, rows in self.contests.items()
            ],
            "without": self.without,
            "skipped": [asdict(one) for one in self.skipped],
        }


@dataclass(frozen=True)
class _Measured:
    """One run that has the average."""

    entry: Entry
    digest: str
    run: Run
    stat: Stat

    @cached_property
    def settings(self) -> str:
        return sha256(strictjson.canonical(self.run.settings)).hexdigest()

    @property
    def way(self) -> tuple[Any, ...]:
        run = self.run
        return self.entry.submitter, run.method, run.mode, self.settings, run.base.dtype, run.batch_size

    @property
    def contest(self) -> tuple[Any, ...]:
        base, run = self.run.base, self.run
        return base.id, base.revision, base.fingerprint, base.quantization, _bytes_of(run), run.suite, run.n

    @property
    def age(self) -> tuple[Any, ...]:
        """Smaller is older; the same for everybody who sorts by it."""
        return self.entry.listed.place, self.entry.submission.digest, self.digest


def _bytes_of(run: Run) -> str:
    """Which bytes the edits were read from, whatever their file is called."""
    named = run.dataset
    if named.sha256 is not None:
        return f"sha256 {named.sha256}"
    if named.revision is not None:
        return f"revision {named.revision} of {named.id} {named.split or ''}".rstrip()
    return f"edits {named.edits_sha256}"


# --- ranking ------------------------------------------------------------------------------------------------------


def ranking(
    contents: Contents,
    *,
    base: str | None = None,
    suite: str | None = None,
    dataset: str | None = None,
    protocol: str = PROTOCOL,
    metric: str = METRIC,
    n: int | None = None,
    policy: TrustPolicy | None = None,
) -> Board:
    """The contests that match everything given. dataset: its id, or the first digits of its sha256.

    Raises KeditError when runs of the protocol are there, and none of them has the average.
    """
    newest: dict[tuple[Any, ...], _Measured] = {}
    known: set[str] = set()
    without = 0
    for entry in contents.entries:
        for digest, run in entry.submission.lines:
            if not _wanted(run, base, suite, dataset, n) or protocol not in run.scores["protocols"]:
                continue
            sheet = stats(run).get(protocol, {})
            known.update(sheet)
            if metric not in sheet:
                without += 1
                continue
            found = _Measured(entry, digest, run, sheet[metric])
            cell = (entry.submitter, strictjson.canonical(run.model_dump(mode="json", include=set(ASKED))))
            before = newest.get(cell)
            if before is None or before.age < found.age:
                newest[cell] = found
    if known and metric not in known:
        raise KeditError(
            f"no run here has the average {metric!r} of {protocol!r}; they have {', '.join(sorted(known))[:500]}."
        )
    vouched: dict[str, list[Witness]] = {}
    for witness in contents.witnesses:
        vouched.setdefault(witness.finding.run, []).append(witness)
    rows: list[Row] = []
    for alike in _grouped((measured.contest, measured) for measured in newest.values()):
        for drawn in _draws(alike):
            rows += _rows(drawn, protocol, metric, vouched, policy)
    rows.sort(key=lambda row: (_order(row.contest), row.rank))  # stable: rows of one rank stay the oldest first
    return Board(contents.repo_id, contents.commit, tuple(rows), without, contents.skipped)


def _wanted(run: Run, base: str | None, suite: str | None, dataset: str | None, n: int | None) -> bool:
    data = run.dataset
    return (
        base in (None, run.base.id)
        and suite in (None, run.suite)
        and n in (None, run.n)
        and (dataset in (None, data.id) or (len(dataset or "") >= 8 and (data.sha256 or "").startswith(dataset or " ")))
    )


def _draws(alike: Iterable[_Measured]) -> list[list[_Measured]]:
    """Runs of one contest, apart where they asked different edits.

    The edits follow from the data set and the order seed, so runs of one order seed must have asked the same ones: those who did not
    have chosen. A run of another order seed goes with the other runs of its own row.
    """
    draws: list[tuple[dict[int, str | None], set[tuple[Any, ...]], list[_Measured]]] = []
    for one in sorted(alike, key=lambda one: (one.run.order_seed, one.age)):
        order, edits = one.run.order_seed, one.run.dataset.edits_sha256
        same = [draw for draw in draws if order in draw[0] and draw[0][order] == edits]
        own = [draw for draw in draws if order not in draw[0] and one.way in draw[1]]
        home = (same or own or [({}, set(), [])])[0]
        if not same and not own:
            draws.append(home)
        home[0][order] = edits
        home[1].add(one.way)
        home[2].append(one)
    return [runs for _, _, runs in draws]


def _rows(
    drawn: list[_Measured],
    protocol: str,
    metric: str,
    vouched: Mapping[str, list[Witness]],
    policy: TrustPolicy | None,
) -> list[Row]:
    oldest = min(drawn, key=lambda one: one.age)
    base, data = oldest.run.base, oldest.run.dataset
    lowest = min(drawn, key=lambda one: (one.run.order_seed, one.age)).run.dataset.edits_sha256
    contest = Contest(
        base.id, base.revision, base.fingerprint, base.quantization, data.id, _bytes_of(oldest.run), lowest,
        oldest.run.suite, oldest.run.n, protocol, metric,
    )  # fmt: skip
    ways = [sorted(own, key=lambda one: one.age) for own in _grouped((one.way, one) for one in drawn)]
    valued = [(own, value) for own in ways if (value := summary([one.stat for one in own])) is not None]
    valued.sort(key=lambda pair: (-pair[1].mean, pair[0][0].age))
    rows: list[Row] = []
    for place, (own, value) in enumerate(valued, 1):
        tied = bool(rows) and rows[-1].value.mean == value.mean
        run, efficiency = own[0].run, [one.run.efficiency for one in own]
        rows.append(
            Row(
                contest=contest,
                rank=rows[-1].rank if tied else place,
                submitter=_name(own[0].entry, policy),
                signed=own[0].entry.signer is not None,
                method=run.method,
                mode=run.mode,
                settings=own[0].settings,
                dtype=run.base.dtype,
                batch_size=run.batch_size,
                value=value,
                seeds=tuple(sorted((one.run.seed, one.run.order_seed) for one in own)),
                seconds=fmean(cost.edit_wall_s for cost in efficiency),
                train_s=fmean(cost.train_s for cost in efficiency),
                bytes=fmean(cost.artifact_bytes for cost in efficiency),
                mark=_mark(own, protocol, metric, vouched, policy),
                submissions=tuple(sorted({one.entry.submission.digest for one in own})),
                runs=tuple(one.digest for one in own),
            )
        )
    return rows


def _name(entry: Entry, policy: TrustPolicy | None) -> str:
    if entry.signer is not None:
        return entry.signer if policy is None else policy.names([entry.signer])[0]
    return visible(", ".join(entry.listed.authors)) or "nobody the hub names"


def _mark(
    own: list[_Measured],
    protocol: str,
    metric: str,
    vouched: Mapping[str, list[Witness]],
    policy: TrustPolicy | None,
) -> Mark:
    """A row is as well vouched for as its least run. Who submitted a run does not vouch for it."""
    named = {key: name for name, key in policy.keys.items()} if policy is not None else {}
    trusted: list[set[str]] = []
    others: list[set[str]] = []
    for one in own:
        keys = {
            witness.key
            for witness in vouched.get(one.digest, [])
            if one.stat.value is not None
            and witness.finding.supports(protocol, metric, one.stat.value)
            and is_other(witness.key, witness.listed.authors, one.entry, trusted=witness.key in named)
        }
        trusted.append({named[key] for key in keys if key in named})
        others.append(keys)
    if all(trusted):
        return Verified(tuple(sorted(set().union(*trusted))))
    if all(others):
        return Attested(tuple(sorted(set().union(*others))))
    return Claimed() if all(one.run.verified for one in own) else Unchecked()


def is_other(key: str, authors: tuple[str, ...], entry: Entry, *, trusted: bool) -> bool:
    """Whether `key`, brought by these users of the hub, is somebody else than the submitter. A second key is made in a second, so one that
    nobody trusts must also come from another account.
    """
    return key != entry.signer and (trusted or authors != entry.listed.authors)


def _order(contest: Contest) -> tuple[str, ...]:
    """Of contests on a page; None first."""
    return tuple(f"{value:>12}" if isinstance(value, int) else (value or "") for value in vars(contest).values())


def _grouped(pairs: Iterable[tuple[Any, _Measured]]) -> list[list[_Measured]]:
    groups: dict[Any, list[_Measured]] = {}
    for key, one in pairs:
        groups.setdefault(key, []).append(one)
    return list(groups.values())


# --- for people ---------------------------------------------------------------------------------------------------

COLUMNS = (
    "rank",
    "method",
    "mode",
    "settings",
    "numbers",
    "per patch",
    "value",
    "sd",
    "interval",
    "seeds",
    "s/edit",
    "bytes",
    "by",
    "verified",
)


def tables(board: Board) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """(title, names of columns, rows) of each contest, all plain text: whoever puts it into a page escapes it as text."""
    return [(contest.title, COLUMNS, [_cells(row) for row in rows]) for contest, rows in board.contests.items()]


def _short(name: str) -> str:
    """The first digits of a public key; 64 bits of it are enough to tell keys apart that nobody ground for days."""
    return name[:16] if re.fullmatch("[0-9a-f]{64}", name) else name


def _cells(row: Row) -> tuple[str, ...]:
    value = row.value
    interval = f"{value.low:.3f} to {value.high:.3f}" if value.low is not None and value.high is not None else "-"
    by = f"{_short(row.submitter)} (signed)" if row.signed else row.submitter
    return (
        str(row.rank), row.method, row.mode, row.settings[:8], row.dtype, f"{row.batch_size:,}", f"{value.mean:.3f}",
        "-" if value.sd is None else f"{value.sd:.3f}", interval, str(value.seeds), f"{row.seconds:.3g}", f"{row.bytes:,.0f}",
        by, told(row.mark),
    )  # fmt: skip
