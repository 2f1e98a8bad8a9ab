"""A run: one measured cell of a benchmark, and the file that runs are kept in. Law: a run says everything its numbers depend on, and a
line of a results file is a whole run or it does not count.

    runs = RunsFile("results/runs.jsonl")
    runs.append(run)                            # one line, on disk when this returns
    for run in runs: print(run.method, run.n, run.scores["protocols"]["generate"]["reliability"])
    wanted.key in runs.keys()                   # measured already?

The file is JSON lines of runs, append-only. A process that was killed while writing leaves half a line at its end: reading passes over
it (`torn` says so), and the next append cuts it off. Anything else that is no run is an error, never skipped.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from kedit_hub import strictjson
from kedit_hub.errors import KeditError
from kedit_hub.limits import DEFAULT
from kedit_hub.patch.fingerprint import Hex64
from kedit_hub.patch.guard import alone
from kedit_hub.patch.manifest import Commit, Name, RepoId, Scalar, SettingName

Suite = Literal["single", "batch", "sequential", "stack", "quantization"]
Installed = Literal["gated", "joint", "sum", "weights", "-"]
SUITES: tuple[Suite, ...] = get_args(Suite)
MAX_RUN_BYTES = DEFAULT.max_evals_bytes  # of one line: it is a score sheet with a few words around it
ASKED = (  # the fields that say what was measured
    "suite", "method", "mode", "base", "dataset", "n", "batch_size", "seed", "order_seed", "settings",
)  # fmt: skip
MAX_NUMBER = 1.1e304  # exp(700), beyond which no perplexity is told: thousands of such numbers still have a mean
SHARES = (  # the averages of a protocol that lie in 0..1
    "reliability", "generalization", "locality", "locality_unfiltered", "portability", "contains", "before", "score",
)  # fmt: skip

Count = Annotated[int, Field(ge=1, le=DEFAULT.max_edits)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Bytes = Annotated[int, Field(ge=0, lt=1 << 63)]


def _plain(value: Any) -> Any:
    """JSON with finite numbers, tuples as the lists they are read back as."""
    try:
        return strictjson.loads(strictjson.canonical(value), what="it", max_bytes=MAX_RUN_BYTES, error=KeditError)
    except (TypeError, ValueError, KeditError) as cause:
        raise ValueError(f"must be JSON with finite numbers: {cause}") from None


def _sheet(scores: dict[str, Any]) -> dict[str, Any]:
    """What a reader may count on: averages by protocol, every share of them in 0..1, the drift, no number that has no mean."""
    protocols, drift = scores.get("protocols"), scores.get("drift")
    if not isinstance(protocols, dict) or not all(isinstance(averages, dict) for averages in protocols.values()):
        raise ValueError("must hold the averages of each protocol under protocols")
    if not isinstance(drift, dict) or not isinstance(scores.get("environment", {}), dict):
        raise ValueError("must hold the drift as an object, and so the environment")
    for name, averages in protocols.items():
        for path, share in _leaves({role: averages[role] for role in SHARES if role in averages}):
            if share is not None and not (type(share) in (int, float) and 0 <= share <= 1):
                raise ValueError(f"{name[:40]!r}{path[:80]} is {str(share)[:40]!r}; a share lies in 0..1, or is null")
    if (number := _largest(scores)) > MAX_NUMBER:
        raise ValueError(f"holds the number {number:g}; at most {MAX_NUMBER:g} is taken")
    return scores


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path} {key}")
    else:
        yield path, value


def _largest(value: Any) -> float:
    """The largest |x| in JSON values."""
    if isinstance(value, dict | list):
        return max(map(_largest, value.values() if isinstance(value, dict) else value), default=0.0)
    return abs(value) if isinstance(value, float) else 0.0


def _few(settings: dict[str, Any]) -> dict[str, Any]:
    if len(settings) > DEFAULT.max_settings:
        raise ValueError(f"has {len(settings):,} entries; at most {DEFAULT.max_settings} are taken")
    if max((len(value) for value in settings.values() if isinstance(value, str)), default=0) > DEFAULT.max_text_chars:
        raise ValueError(f"has a text of more than {DEFAULT.max_text_chars:,} characters")
    return settings


def _counts(retention: dict[str, float]) -> dict[str, float]:
    for first in retention:
        if not (first.isascii() and first.isdigit() and first == str(int(first))) or len(first) > 6:
            raise ValueError(f"is by number of edits, not by {first[:40]!r}")
    return _few(retention)


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Base(_Part):
    """The model that was asked. parameters: of the full-precision model. dtype: of its floating-point weights. quantization: "int8",
    "nf4", ... fingerprint: digest over what is known of its first editable map, in full precision."""

    id: RepoId
    revision: Commit | None = None
    model_type: Name
    parameters: Annotated[int, Field(ge=1, lt=1 << 63)]
    dtype: Name
    quantization: Name | None = None
    fingerprint: Hex64 | None = None


class Records(_Part):
    """Where the edits come from. sha256: of the whole file. edits_sha256: over the records of the edits of this run, in their order."""

    id: RepoId
    revision: Commit | None = None
    sha256: Hex64 | None = None
    split: Name | None = None
    edits_sha256: Hex64 | None = None


class Efficiency(_Part):
    """What the patches cost: seconds per edit; train_s of the editor itself, once, 0 where it is not trained; artifact_bytes of all
    patches (config.json and patch.safetensors); high-water marks of memory while they were made, None where the system tells none."""

    edit_cpu_s: Seconds
    edit_wall_s: Seconds
    train_s: Seconds
    artifact_bytes: Bytes
    peak_rss_bytes: Bytes | None = None
    peak_device_bytes: Bytes | None = None


class Source(_Part):
    """What measured: the tool's own commit, dirty where files differ from it, and the libraries."""

    commit: Commit | None = None
    dirty: bool | None = None
    versions: Annotated[dict[Name, Name], AfterValidator(_few)] = {}


class Run(_Part):
    """One measured cell. KeditError for anything malformed.

    mode: how the patches were installed; "weights": written into the weights one after another; "-": the mode changes nothing.
    n: edits; batch_size: of them in one patch. settings: what was asked of the method, flat, and the id of the base profile.
    scores: `Scores.to_dict()` without per_edit, and under "making" how many edits the editor failed on. per_edit: their outcomes, or [].
    retention: {"10": reliability of the first 10 edits after the last one}, under `generate` where it was asked, else the first protocol.
    verified: somebody else measured it again.
    """

    kedit_run: Literal[1] = 1
    suite: Suite
    method: Name
    mode: Installed
    base: Base
    dataset: Records
    n: Count
    batch_size: Count
    seed: Seed
    order_seed: Seed
    settings: Annotated[dict[SettingName, Scalar], AfterValidator(_few)] = {}
    scores: Annotated[dict[str, Any], AfterValidator(_plain), AfterValidator(_sheet)]
    per_edit: Annotated[list[dict[str, Any]], AfterValidator(_plain)] = []
    retention: Annotated[dict[str, Annotated[float, Field(ge=0, le=1)]], AfterValidator(_counts)] = {}
    efficiency: Efficiency
    provenance: Source = Source()
    verified: bool = False

    @model_validator(mode="wrap")
    @classmethod
    def _errors(cls, data: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(data)
        except ValidationError as cause:
            faults = cause.errors(include_url=False, include_context=False)
            told = "; ".join(f"{'.'.join(map(str, fault['loc']))[:120]}: {fault['msg'][:300]}" for fault in faults[:5])
            raise KeditError(f"this is not a run: {told.rstrip('.')}{'; ...' if len(faults) > 5 else ''}.") from None

    @model_validator(mode="after")
    def _consistent(self) -> "Run":
        if self.batch_size > self.n:
            raise KeditError(f"this is not a run: {self.batch_size} edits in each patch, and {self.n} in all.")
        return self

    @cached_property
    def key(self) -> str:
        """64 hex digits over what was measured: everything but what came out, what it cost and who measured it. Two runs of one key
        asked the same questions of the same model under the same edits."""
        scores = self.scores
        asked = {name: getattr(self, name) for name in ASKED}
        return key_of(
            asked,
            protocols=tuple(scores["protocols"]),
            texts_sha256=scores["drift"].get("texts_sha256"),
            fluency=scores.get("fluency") is not None,
            distractors=scores.get("environment", {}).get("distractors"),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return self.model_dump(mode="json")

    def to_bytes(self) -> bytes:
        """One line of canonical JSON, without the line end."""
        return strictjson.canonical(self.to_dict())

    @classmethod
    def parse(cls, data: bytes, *, what: str = "the run") -> "Run":
        """Read one line, which may be a stranger's. KeditError naming `what` and the fault."""
        value = strictjson.loads(data, what=what, max_bytes=MAX_RUN_BYTES, error=KeditError)
        if not isinstance(value, dict) or value.get("kedit_run") != 1:
            version = value.get("kedit_run") if isinstance(value, dict) else None
            raise KeditError(
                f"{what} has kedit_run {str(version)[:40]!r}; this kedit_hub reads 1. If it is newer, update kedit_hub; if it is "
                "missing, this is no results file."
            )
        try:
            return cls.model_validate_json(strictjson.canonical(value))
        except KeditError as cause:
            raise KeditError(f"{what}: {cause}") from None


def key_of(asked: Mapping[str, Any], *, protocols: tuple[str, ...], **how: Any) -> str:
    """`Run.key` of a run that is still to be measured. asked: the fields ASKED, as a Run takes them. how: texts_sha256 of what drift is
    measured on, fluency (whether it is measured), distractors (digest of the wrong answers that were given, or None)."""
    parts = {
        name: value.model_dump(mode="json", exclude_none=True) if isinstance(value, _Part) else value
        for name, value in asked.items()
    }
    key = {**parts, "asked": {**how, "protocols": sorted(protocols)}}
    return hashlib.sha256(b"kedit run 1\n" + strictjson.canonical(key)).hexdigest()


# --- the file -----------------------------------------------------------------------------------------------------


class RunsFile:
    """See the head of this file. path: need not exist; it is made by the first append, its folder too."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    def __iter__(self) -> Iterator[Run]:
        """Every run, one line in memory at a time. KeditError naming file and line for what is none."""
        for number, line in self._lines():
            if line.endswith(b"\n"):
                yield Run.parse(line, what=f"line {number} of '{self.path}'")
            elif (last := self._last(line)) is not None:
                yield last

    def keys(self) -> set[str]:
        """The keys of all runs: what is measured already."""
        return {run.key for run in self}

    def torn(self) -> int:
        """Bytes at the end of the file that are half a line, left by a process that was killed; 0 for none."""
        if not self.path.exists():
            return 0
        with open(self.path, "rb") as file:
            end = at = file.seek(0, os.SEEK_END)
            tail = b""
            while at > 0 and b"\n" not in tail and len(tail) <= MAX_RUN_BYTES:
                at = file.seek(max(0, at - (1 << 16)))
                tail = file.read(end - len(tail) - at) + tail
            last = tail.rpartition(b"\n")[2]
        return len(last) if last and self._last(last) is None else 0

    def append(self, run: Run) -> None:
        """One more line, written through to the disk; on an error the file is as long as before."""
        data = run.to_bytes() + b"\n"
        if len(data) > MAX_RUN_BYTES:
            raise KeditError(
                f"the run has {len(data):,} bytes, at most {MAX_RUN_BYTES:,} are read: leave the outcomes of the single edits out "
                "(per_edit=False)"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
        try:
            with alone(handle):
                end = os.fstat(handle).st_size
                torn = self.torn() if end else 0
                if torn:
                    end -= torn
                    os.truncate(handle, end)
                elif end and os.pread(handle, 1, end - 1) != b"\n":
                    data = b"\n" + data
                try:
                    _write(handle, data)
                except BaseException:
                    os.truncate(handle, end)
                    raise
                os.fsync(handle)
        finally:
            os.close(handle)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            number = 0
            while line := file.readline(MAX_RUN_BYTES + 1):
                number += 1
                if len(line) > MAX_RUN_BYTES:
                    raise KeditError(
                        f"line {number} of '{self.path}' has more than {MAX_RUN_BYTES:,} bytes: it is no results file"
                    )
                yield number, line

    def _last(self, line: bytes) -> Run | None:
        """The run of a line without a line end, which may be whole all the same; None for half a line."""
        try:
            return Run.parse(line)
        except KeditError:
            return None


def _write(handle: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]
