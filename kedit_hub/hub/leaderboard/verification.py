"""A verification: somebody measured a run again and signs what came out. Law: it speaks of one run, for one board, with the numbers it
rests on, and it counts only where those numbers still agree with the run's.

    match compare(claimed, measured, tolerance=0.02):
        case Reproduced(averages): attest(digest_of_the_claimed_line, averages, 0.02, key, "lab/board")
        case Differs(differences): ...
        case OtherCell(fields): ...
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from kedit_hub.errors import KeditError, SignatureError
from kedit_hub.evaluate.report.cells import Cell, Stat
from kedit_hub.evaluate.run import ASKED, Run
from kedit_hub.hub.leaderboard.bounds import DEFAULT, Bounds
from kedit_hub.hub.leaderboard.sealed import Statement, same_board, seal, unseal
from kedit_hub.patch.fingerprint import Hex64

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FOLDER = "verifications"
FILE = re.compile(rf"{FOLDER}/([0-9a-f]{{64}})\.json")
TOLERANCE, MAX_TOLERANCE = 0.02, 0.05  # differences of two shares; more would call anything reproduced
BY_CHANCE = "reliability by chance"  # of protocols that choose among answers: nobody's merit
MAX_NAMES, MAX_NAME_CHARS = 256, 120  # averages of one protocol, and the name of one

Averages = dict[str, dict[str, float]]  # protocol -> name of an average -> value


def stats(run: Run) -> dict[str, dict[str, Stat]]:
    """The averages that a board can rank by, of each protocol: {"generate": {"reliability": ..., "score": ...}}; higher is better."""
    cell = Cell(run.to_dict(), 1)
    found = {
        protocol: {
            name: stat for name, stat in cell.metrics(protocol).items() if stat.value is not None and name != BY_CHANCE
        }
        for protocol in cell.protocols
    }
    return {protocol: sheet for protocol, sheet in found.items() if sheet}


def averages(run: Run) -> Averages:
    """The values of `stats`."""
    return {
        protocol: {name: stat.value for name, stat in sheet.items() if stat.value is not None}
        for protocol, sheet in stats(run).items()
    }


# --- comparing ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reproduced:
    """averages: as measured; every one that was claimed is there, within the tolerance."""

    averages: Averages


@dataclass(frozen=True)
class Differs:
    """differences: (protocol, average, claimed, measured), None for one that the other run does not have."""

    differences: tuple[tuple[str, str, float | None, float | None], ...]


@dataclass(frozen=True)
class OtherCell:
    """The two runs did not measure the same. fields: what they differ in."""

    fields: tuple[str, ...]


Comparison = Reproduced | Differs | OtherCell


def compare(claimed: Run, measured: Run, tolerance: float = TOLERANCE) -> Comparison:
    """Whether `measured` says what `claimed` says. Raises KeditError for a tolerance that would not mean anything."""
    if not 0 <= tolerance <= MAX_TOLERANCE:
        raise KeditError(
            f"the tolerance {tolerance!r} is too wide to mean anything: pass one from 0 to {MAX_TOLERANCE}"
        )
    if cell_of(claimed) != cell_of(measured):
        one, other = without_profile(claimed), without_profile(measured)
        return OtherCell(tuple(name for name in ASKED if getattr(one, name) != getattr(other, name)) or ("protocols",))
    said, found = averages(claimed), averages(measured)
    names = sorted({(name, metric) for sheet in (said, found) for name, values in sheet.items() for metric in values})
    differences = []
    for name, metric in names:
        before, now = said.get(name, {}).get(metric), found.get(name, {}).get(metric)
        if before is None or now is None or not agree(before, now, tolerance):
            differences.append((name, metric, before, now))
    return Differs(tuple(differences)) if differences else Reproduced(found)


def cell_of(run: Run) -> str:
    """What was measured, as `Run.key` says it, whatever base profile was used: who measures again may have measured their own."""
    return without_profile(run).key


def without_profile(run: Run) -> Run:
    kept = {name: value for name, value in run.settings.items() if name != "profile"}
    copy = run.model_copy(update={"settings": kept, "per_edit": []})
    copy.__dict__.pop("key", None)  # a copy keeps what the original has worked out
    return copy


def agree(claimed: float, measured: float, tolerance: float) -> bool:
    return abs(claimed - measured) <= tolerance + 1e-12  # 0.9 - 0.88 is a hair above 0.02 in floating point


def recipe(run: Run) -> dict[str, Any]:
    """What `kedit_hub.benchmarking.bench` is told to measure the cell of `run` again, but for the edits and where to keep them."""
    settings: dict[str, Any] = {}
    for name, value in without_profile(run).settings.items():
        inner = settings
        *outer, last = name.split(".")
        for part in outer:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                break
        if not isinstance(inner, dict) or last in inner:
            raise KeditError(f"the setting {name!r} of the run is a value and a group at once: no editor takes that")
        inner[last] = value
    bits = run.base.quantization
    if bits is None and run.suite == "quantization" and run.base.dtype == "bfloat16":
        bits = "bf16"
    return {
        "methods": (run.method,),
        "suites": (run.suite,),
        "base": run.base.id,
        "n": (run.n,),
        "batch_size": run.batch_size if run.suite == "sequential" else 1,
        "seeds": (run.seed,),
        "order_seeds": (run.order_seed,),
        "quantizations": (bits,),
        "modes": ("auto" if run.mode == "-" else run.mode,),
        "protocols": tuple(run.scores["protocols"]),
        "settings": settings,
        "fluency": run.scores.get("fluency") is not None,
    }


# --- the file -----------------------------------------------------------------------------------------------------


def _few(found: Averages) -> Averages:
    for name, values in found.items():
        if len(found) + len(values) > MAX_NAMES or max(map(len, (name, *values))) > MAX_NAME_CHARS:
            raise ValueError(f"has more than {MAX_NAMES} averages, or a name of more than {MAX_NAME_CHARS} characters")
    return found


class Finding(Statement):
    """What was measured. run: sha256 of the run's line. averages: see `averages`. tolerance: how far they may be from the claimed ones."""

    run: Hex64
    averages: Annotated[dict[str, dict[str, Annotated[float, Field(ge=0, le=1)]]], AfterValidator(_few)]
    tolerance: Annotated[float, Field(ge=0, le=MAX_TOLERANCE)]

    def supports(self, protocol: str, metric: str, claimed: float) -> bool:
        """True where this average was measured too, within the tolerance of what is claimed."""
        measured = self.averages.get(protocol, {}).get(metric)
        return measured is not None and agree(claimed, measured, self.tolerance)


def attest(run: str, measured: Averages, tolerance: float, key: "Ed25519PrivateKey", repo_id: str) -> bytes:
    """The file; it is named by its own digest. Raises KeditError for averages beyond the bounds of one."""
    try:
        finding = Finding(repo_id=repo_id, run=run, averages=measured, tolerance=float(tolerance))
    except ValidationError as cause:
        first = cause.errors(include_url=False, include_context=False, include_input=False)[0]
        raise KeditError(f"run {run[:12]} cannot be vouched for: {first['loc'][0]}: {first['msg'][:300]}") from None
    return seal("verification", finding, key)


def parse(data: bytes, repo_id: str, bounds: Bounds = DEFAULT) -> tuple[Finding, str]:
    """(finding, public key of who measured). Raises SignatureError for anything else, and for another board's."""
    finding, key = unseal(data, "verification", Finding, what="it", max_bytes=bounds.max_verification_bytes)
    if not same_board(finding.repo_id, repo_id):
        raise SignatureError(f"it was made for the board {finding.repo_id!r}, not for {repo_id!r}")
    return finding, key
