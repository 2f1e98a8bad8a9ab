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
from space.sentences import Language, counted, message, spoken, told
from space.state import Held, Workshop, policy

SHOWN_DATASETS = 3


@dataclass(frozen=True)
class Asked:
    """What asking the probes of a patch again gave on this page. reproduced: None where nothing could be compared."""

    reproduced: bool | None
    told: str


def mark(held: Held, asked: Asked | None, language: Language = "en") -> str:
    """A warning to stand before the patch in a list, in words; "" where nothing is known against its scores."""
    note = card.rescored(held.patch.evals)
    if isinstance(held.claims, Inconsistent):
        return told(language, "mark_inconsistent")
    if asked is not None and asked.reproduced is False:
        return told(language, "mark_refuted")
    if note is not None and not note.holds and not (asked is not None and asked.reproduced):
        return told(language, "mark_noted")
    return ""


def label(held: Held, asked: dict[str, Asked], language: Language = "en") -> str:
    """Plain text for a list of patches. asked: by patch id."""
    return mark(held, asked.get(held.patch.id), language) + held.titled(language)


# --- the block ----------------------------------------------------------------------------------------------------


def lines(workshop: Workshop, held: Held, asked: Asked | None, language: Language = "en") -> list[Line]:
    """What is known of a patch, with its base on this page. TrustError where the policy cannot be read."""
    patch, trust = held.patch, policy()
    found = [_files(patch, language), _signature(patch, {} if trust is None else _names(patch, trust[1]), language)]
    if trust is not None:
        found.append(Line(told(language, "policy"), "good", told(language, "let_in", name=trust[0])))
    found += [_provenance(patch, language), _base(workshop, patch, language), _scores(held.claims, language)]
    note = _note(patch, language)
    if note is not None:
        found.append(note)
    version = told(language, "format_version", version=patch.manifest.format_version)
    return [*found, _asked(asked, language), Line(told(language, "format"), "plain", version)]


def _files(patch: Patch, language: Language = "en") -> Line:
    name = told(language, "files")
    files = [CONFIG, TENSORS, *([EVALS] if patch.evals is not None else [])]
    covered = [CARD, *files, SIGNATURE] if patch.signature is not None else files
    try:
        patch.verify()
    except KeditError as error:
        return Line(name, "bad", told(language, "files_bad", error=error))
    count = sum(len(entry.tensors) for entry in patch.manifest.modules.values())
    tensors = counted(language, "tensors", count)
    return Line(name, "good", told(language, "files_good", files=", ".join(covered), tensors=tensors))


def _signature(patch: Patch, names: dict[str, str], language: Language = "en") -> Line:
    """names: of keys, as the policy of this page calls them."""
    name = told(language, "signature")
    if patch.signature is None:
        return Line(name, "plain", told(language, "unsigned"))
    said = patch.signature.statement
    signers = [Short(names.get(key, f"{key[:8]}…{key[-4:]}"), key) for key in patch.signers]
    between = [part for signer in signers for part in (told(language, "and"), signer)][1:]
    version = told(language, "as_version", version=said.version) if said.version else ""
    where = (
        told(language, "signed_for", repo=said.repo_id, version=version)
        if said.repo_id
        else told(language, "signed_for_none", version=version)
    )
    return Line(name, "good", (told(language, "signed_by"), *between, where))


def _names(patch: Patch, trust: TrustPolicy) -> dict[str, str]:
    named = zip(patch.signers, trust.names(patch.signers), strict=True)
    return {key: name for key, name in named if name != key}


def _provenance(patch: Patch, language: Language = "en") -> Line:
    made = patch.manifest.provenance
    commit = (
        (told(language, "commit"), Short(made.commit[:12], made.commit))
        if made.commit
        else (told(language, "no_commit"),)
    )
    dirty = told(language, "dirty") if made.dirty else ""
    sets = [
        told(language, "set_at", name=item.id, revision=item.revision[:12]) if item.revision else item.id
        for item in made.datasets[:SHOWN_DATASETS]
    ]
    left = len(made.datasets) - len(sets)
    more = [told(language, "more_sets", count=left)] if left > 0 else []
    listed = told(language, "comma").join([*sets, *more])
    data = told(language, "from_sets", sets=listed) if sets else told(language, "no_set")
    said = (told(language, "made_by", tool=made.tool, version=made.version), *commit, f"{dirty}{data}")
    return Line(told(language, "provenance"), "warning" if made.dirty else "plain", said)


def _base(workshop: Workshop, patch: Patch, language: Language = "en") -> Line:
    wanted, name = patch.manifest.base.id, told(language, "pane_base")
    try:
        levels = patch.verify(workshop.load(wanted).model)
    except (WrongBaseError, UnsupportedModelError) as error:
        return Line(name, "bad", told(language, "base_bad", error=error))
    except KeditError as error:
        return Line(name, "warning", message(language, error))
    level = max(levels.values(), key=LEVELS.index)
    kind: Literal["good", "warning"] = "good" if level in ("exact", "quantized") else "warning"
    return Line(name, kind, told(language, "base_is", base=wanted, how=_means(level, language)))


def _means(level: Level, language: Language) -> str:
    match level:
        case "exact":
            return told(language, "level_exact")
        case "quantized":
            return told(language, "level_quantized")
        case "shape":
            return told(language, "level_shape")
        case "forced":
            return told(language, "level_forced")
        case _:
            assert_never(level)


def _scores(claims: Claims, language: Language = "en") -> Line:
    name = told(language, "scores")
    match claims:
        case NoClaims():
            return Line(name, "plain", told(language, "scores_none"))
        case NotComparable(reason):
            return Line(name, "warning", told(language, "scores_not_comparable", reason=reason))
        case Inconsistent(faults):
            return Line(name, "bad", told(language, "scores_bad", fault=faults[0]))
        case Consistent(n):
            return Line(name, "good", told(language, "scores_good", count=n))
        case _:
            assert_never(claims)


def _note(patch: Patch, language: Language = "en") -> Line | None:
    """What the author notes of asking again; readable only where it speaks of the scores that lie beside it."""
    note = card.rescored(patch.evals)
    if note is None:
        return None
    probes = told(language, "note_probes", mismatches=note.mismatches, probes=note.probes, where=note.where)
    kind: Literal["plain", "bad"] = "plain" if note.holds else "bad"
    return Line(told(language, "note"), kind, told(language, "note_good" if note.holds else "note_bad", probes=probes))


def _asked(asked: Asked | None, language: Language = "en") -> Line:
    name = told(language, "measured_here")
    if asked is None:
        return Line(name, "plain", told(language, "measured_not"))
    kind: dict[bool | None, Literal["good", "bad", "warning"]] = {True: "good", False: "bad", None: "warning"}
    return Line(name, kind[asked.reproduced], spoken(language, asked.told))


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
