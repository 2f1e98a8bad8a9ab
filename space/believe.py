"""Can a patch be believed? One line for each question that has an answer. Law: what was checked here, what follows from the
files, and what somebody only says are told apart in words; no line says more than was looked at.

    lines(workshop, held, asked)    Files: ..., Signature: ..., Scores: ...
    mark(held, asked)               "" or the words that stand before the patch wherever it is listed
"""

from dataclasses import dataclass
from typing import Any, Literal, TypedDict, assert_never

from kedit_hub import KeditError, Patch
from kedit_hub.errors import UnsupportedModelError, WrongBaseError
from kedit_hub.evaluate.claims import Consistent, Inconsistent, NoClaims, NotComparable
from kedit_hub.patch import card
from kedit_hub.patch.fingerprint import LEVELS, Level
from kedit_hub.patch.patch import CARD, CONFIG, EVALS, SIGNATURE, TENSORS
from kedit_hub.patch.trust import TrustPolicy
from kedit_hub.verification import Claims
from space.html import Line, Short
from space.state import Held, Workshop, policy

SHOWN_DATASETS = 3


@dataclass(frozen=True)
class Asked:
    """What asking the probes of a patch again gave on this page. reproduced: None where nothing could be compared."""

    reproduced: bool | None
    told: str


def mark(held: Held, asked: Asked | None) -> str:
    """A warning to stand before the patch in a list, in words; "" where nothing is known against its scores."""
    note = card.rescored(held.patch.evals)
    if isinstance(held.claims, Inconsistent):
        return "⚠ scores do NOT follow from its answers · "
    if asked is not None and asked.reproduced is False:
        return "⚠ scores do NOT reproduce · "
    if note is not None and not note.holds and not (asked is not None and asked.reproduced):
        return "⚠ scores did NOT reproduce, says its author · "
    return ""


def label(held: Held, asked: dict[str, Asked]) -> str:
    """Plain text for a list of patches. asked: by patch id."""
    return mark(held, asked.get(held.patch.id)) + held.title


# --- the block ----------------------------------------------------------------------------------------------------


def lines(workshop: Workshop, held: Held, asked: Asked | None) -> list[Line]:
    """What is known of a patch, with its base on this page. TrustError where the policy cannot be read."""
    patch, trust = held.patch, policy()
    found = [_files(patch), _signature(patch, {} if trust is None else _names(patch, trust[1]))]
    if trust is not None:
        found.append(Line("Policy", "good", f"Let in by the trust policy of this page, {trust[0]}."))
    found += [_provenance(patch), _base(workshop, patch), _scores(held.claims)]
    note = _note(patch)
    if note is not None:
        found.append(note)
    return [*found, _asked(asked), Line("Format", "plain", f"Version {patch.manifest.format_version}.")]


def _files(patch: Patch) -> Line:
    names = [CONFIG, TENSORS, *([EVALS] if patch.evals is not None else [])]
    covered = [CARD, *names, SIGNATURE] if patch.signature is not None else names
    try:
        patch.verify()
    except KeditError as error:
        return Line("Files", "bad", f"NOT as described: {error}")
    count = sum(len(entry.tensors) for entry in patch.manifest.modules.values())
    tensors = "1 tensor" if count == 1 else f"{count:,} tensors"
    return Line("Files", "good", f"{', '.join(covered)}, with {tensors}: every digest was computed again and is right.")


def _signature(patch: Patch, names: dict[str, str]) -> Line:
    """names: of keys, as the policy of this page calls them."""
    if patch.signature is None:
        return Line("Signature", "plain", "Not signed: nobody stands behind these files by name.")
    said = patch.signature.statement
    signers = [Short(names.get(key, f"{key[:8]}…{key[-4:]}"), key) for key in patch.signers]
    between = [part for signer in signers for part in (" and ", signer)][1:]
    version = f" as version {said.version}" if said.version else ""
    where = f"for {said.repo_id}{version}" if said.repo_id else f"for no repo in particular{version}"
    return Line("Signature", "good", ("Signed by ", *between, f", {where}."))


def _names(patch: Patch, trust: TrustPolicy) -> dict[str, str]:
    told = zip(patch.signers, trust.names(patch.signers), strict=True)
    return {key: name for key, name in told if name != key}


def _provenance(patch: Patch) -> Line:
    made = patch.manifest.provenance
    commit = ("commit ", Short(made.commit[:12], made.commit)) if made.commit else ("no commit named",)
    dirty = " with local changes" if made.dirty else ""
    sets = [
        f"{item.id} at {item.revision[:12]}" if item.revision else item.id for item in made.datasets[:SHOWN_DATASETS]
    ]
    more = [f"{len(made.datasets) - len(sets)} more"] if len(made.datasets) > len(sets) else []
    data = f"; edits from {', '.join([*sets, *more])}" if sets else "; no data set named"
    said = (f"Its author says: made by {made.tool} {made.version}, ", *commit, f"{dirty}{data}.")
    return Line("Provenance", "warning" if made.dirty else "plain", said)


def _base(workshop: Workshop, patch: Patch) -> Line:
    wanted = patch.manifest.base.id
    try:
        levels = patch.verify(workshop.load(wanted).model)
    except (WrongBaseError, UnsupportedModelError) as error:
        return Line("Base", "bad", f"NOT the model it was made for: {error}")
    except KeditError as error:
        return Line("Base", "warning", str(error))
    level = max(levels.values(), key=LEVELS.index)
    kind: Literal["good", "warning"] = "good" if level in ("exact", "quantized") else "warning"
    return Line("Base", kind, f"{wanted}, {_means(level)}.")


def _means(level: Level) -> str:
    match level:
        case "exact":
            return "recognised exactly: every value of the modules it changes is the same"
        case "quantized":
            return "recognised through its quantization: the largest values agree, the others cannot be seen"
        case "shape":
            return "compared by shapes only: its quantization hides the values"
        case "forced":
            return "not recognised, and taken by force"
        case _:
            assert_never(level)


def _scores(claims: Claims) -> Line:
    match claims:
        case NoClaims():
            return Line("Scores", "plain", "None came with it.")
        case NotComparable(reason):
            return Line("Scores", "warning", f"Cannot be checked: {reason}.")
        case Inconsistent(faults):
            return Line("Scores", "bad", f"Do NOT follow from its recorded answers: {faults[0]}.")
        case Consistent(n):
            return Line(
                "Scores", "good", f"Follow from {n:,} recorded answers. The answers may be invented: ask again."
            )
        case _:
            assert_never(claims)


def _note(patch: Patch) -> Line | None:
    """What the author notes of asking again; readable only where it speaks of the scores that lie beside it."""
    note = card.rescored(patch.evals)
    if note is None:
        return None
    said = f"{note.mismatches:,} of {note.probes:,} probes answered differently on {note.where}"
    if note.holds:
        return Line("Author's note", "plain", f"The author says the scores reproduced: {said}. That is a claim too.")
    return Line("Author's note", "bad", f"The author says the scores did NOT reproduce: {said}.")


def _asked(asked: Asked | None) -> Line:
    if asked is None:
        return Line("Measured here", "plain", "Not yet: ask its probes again.")
    kind: dict[bool | None, Literal["good", "bad", "warning"]] = {True: "good", False: "bad", None: "warning"}
    return Line("Measured here", kind[asked.reproduced], asked.told)


# --- for programs -------------------------------------------------------------------------------------------------


class SignedFor(TypedDict):
    """What a signature says it is for; None: it does not say."""

    repo_id: str | None
    version: str | None


class ClaimsFact(TypedDict):
    """n: recorded answers that all scores follow from. reason: why nothing can be compared. faults: what does not follow."""

    verdict: Literal["NoClaims", "NotComparable", "Inconsistent", "Consistent"]
    n: int | None
    reason: str | None
    faults: list[str]


class Rescored(TypedDict):
    """What the author notes of asking again, as much a claim as the scores are."""

    reproduced: bool
    consistent: bool
    probes: int
    mismatches: int
    tolerance: float


class Facts(TypedDict):
    """What there is to believe a patch by. signers: public keys whose signatures were verified."""

    format_version: int
    signers: list[str]
    signed_for: SignedFor | None
    provenance: dict[str, Any]
    claims: ClaimsFact
    rescored: Rescored | None


def facts(held: Held) -> Facts:
    """JSON values of what `lines` shows, without a model."""
    patch = held.patch
    said = None if patch.signature is None else patch.signature.statement
    note = card.rescored(patch.evals)
    return {
        "format_version": patch.manifest.format_version,
        "signers": list(patch.signers),
        "signed_for": None if said is None else {"repo_id": said.repo_id, "version": said.version},
        "provenance": patch.manifest.provenance.model_dump(mode="json"),
        "claims": _claims(held.claims),
        "rescored": None
        if note is None
        else {
            "reproduced": note.reproduced,
            "consistent": note.consistent,
            "probes": note.probes,
            "mismatches": note.mismatches,
            "tolerance": note.tolerance,
        },
    }


def _claims(claims: Claims) -> ClaimsFact:
    match claims:
        case NoClaims():
            return {"verdict": "NoClaims", "n": None, "reason": None, "faults": []}
        case NotComparable(reason):
            return {"verdict": "NotComparable", "n": None, "reason": reason, "faults": []}
        case Inconsistent(faults):
            return {"verdict": "Inconsistent", "n": None, "reason": None, "faults": list(faults)}
        case Consistent(n):
            return {"verdict": "Consistent", "n": n, "reason": None, "faults": []}
        case _:
            assert_never(claims)
