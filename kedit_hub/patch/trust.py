"""Whose patches are let in: a trust policy, one JSON file. Law: what no rule lets in is refused, and why is said rule by rule.

    {"kedit_trust": 1,
     "keys": {"alice": "<64 hex digits>"},
     "rules": [{"base": "org/model", "signers": ["alice"]}, {"base": "*", "authors": ["our-lab"]}]}

    match TrustPolicy.load("kedit.trust").judge(patch, author="our-lab"):
        case Trusted(rule): ...             # number of the first rule that holds, from 1
        case Distrusted(reasons): ...       # one per rule: why it does not hold

A patch is trusted when at least one rule holds. A rule holds when

    base      is the id of the base the patch was made for, letter by letter, or "*" (any base), and
    signers   absent, or the patch carries a verified signature by the key of at least one of them, and
    authors   absent, or the patch came from a branch or tag of a Hub repo in the namespace of one of them (user or
              organization; upper and lower case are one, as on the Hub). A folder, a patch handed over in memory, and a
              pull request, which anybody can open, have no author.

A rule with neither signers nor authors would trust everybody and is an error; without rules nobody is trusted. So are a
signer without a key, a key under two names, a rule twice. A policy that cannot be read is an error, never "no policy".
"""

import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, assert_never

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    WrapValidator,
    model_validator,
)

from kedit_hub import strictjson
from kedit_hub.errors import TrustError
from kedit_hub.limits import MAX_TRUST_BYTES
from kedit_hub.patch.fingerprint import Hex64
from kedit_hub.patch.keys import is_weak
from kedit_hub.patch.manifest import Name, RepoId
from kedit_hub.patch.patch import Patch

VARIABLE = "KEDIT_TRUST"  # environment variable: the policy file of whatever is applied without a policy of its own


# --- verdicts -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reason:
    """What came of one rule. rule: its number, from 1."""

    rule: int
    holds: bool
    why: str


@dataclass(frozen=True)
class Trusted:
    """rule: number of the first rule that holds, from 1. reasons: of every rule, in order."""

    rule: int
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Distrusted:
    """reasons: of every rule, in order; none of them holds."""

    reasons: tuple[Reason, ...]


Verdict = Trusted | Distrusted


def explain(verdict: Verdict) -> str:
    """The verdict in words, one line per rule."""
    match verdict:
        case Trusted(rule=rule):
            head = f"trusted by rule {rule}"
        case Distrusted(reasons=()):
            return "not trusted: the policy has no rules, and without rules nobody is trusted"
        case Distrusted():
            head = "not trusted: no rule holds"
        case _:
            assert_never(verdict)
    return "\n".join((head, *(f"  rule {reason.rule}: {reason.why}" for reason in verdict.reasons)))


# --- the policy ---------------------------------------------------------------------------------------------------


def _any_or(text: Any, check: Callable[[Any], str]) -> str:
    return "*" if text == "*" else check(text)


def _namespace(text: str) -> str:
    if "/" in text:
        raise ValueError("must be a user or an organization of the Hub, without a repo")
    return text


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @model_validator(mode="wrap")
    @classmethod
    def _errors(cls, data: Any, handler: Callable[[Any], Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as cause:
            faults = cause.errors(include_url=False, include_context=False)
            told = "; ".join(
                f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}, got {str(fault['input'])[:80]!r}"
                for fault in faults[:5]
            )
            raise TrustError(f"the trust policy is not valid: {told}. docs/trust.md shows its form.") from None


_LISTED = Field(strict=False)  # a tuple, given as any list


class Rule(_Strict):
    """base: a Hub id or "*". signers: names of keys. authors: namespaces of the Hub. See the head of this file."""

    base: Annotated[RepoId, WrapValidator(_any_or)]
    signers: Annotated[tuple[Name, ...], _LISTED] = ()
    authors: Annotated[tuple[Annotated[RepoId, AfterValidator(_namespace)], ...], _LISTED] = ()


class TrustPolicy(_Strict):
    """keys: ed25519 public keys by the names that rules call them. Raises TrustError for what contradicts itself."""

    kedit_trust: Literal[1] = 1
    keys: dict[Name, Hex64] = {}
    rules: Annotated[tuple[Rule, ...], _LISTED]
    _source: str = PrivateAttr("the trust policy")

    @model_validator(mode="after")
    def _check(self) -> Self:
        owners: dict[str, str] = {}
        for name, key in self.keys.items():
            if is_weak(key):
                raise TrustError(
                    f"the key {key} of {name!r} in the trust policy is a point of small order: anybody can make signatures "
                    "that verify with it. Ask for a key made by `kedit key new`."
                )
            if key in owners:
                raise TrustError(
                    f"the trust policy has the key {key} twice, as {owners[key]!r} and {name!r}. Keep one."
                )
            owners[key] = name
        known: dict[object, int] = {}
        for number, rule in enumerate(self.rules, 1):
            if not rule.signers and not rule.authors:
                raise TrustError(
                    f"rule {number} of the trust policy names neither signers nor authors, so it would trust everybody. "
                    "Name some; to trust everybody use no policy."
                )
            for name in rule.signers:
                if name not in self.keys:
                    raise TrustError(
                        f"rule {number} of the trust policy names the signer {name!r}, who is not in keys "
                        f"({', '.join(sorted(self.keys)) or 'which are empty'}). Add their public key."
                    )
            for name in _repeated(rule.signers) + _repeated(map(_lower, rule.authors)):
                raise TrustError(f"rule {number} of the trust policy names {name!r} twice. Keep one.")
            content = (rule.base, frozenset(rule.signers), frozenset(map(_lower, rule.authors)))
            if content in known:
                raise TrustError(f"rules {known[content]} and {number} of the trust policy are the same. Keep one.")
            known[content] = number
        return self

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "TrustPolicy":
        """Read a policy file. Raises TrustError (LimitError beyond its bounds): there is no such thing as an absent policy."""
        where = f"the trust policy '{os.fspath(path)}'"
        try:
            with open(path, "rb") as file:  # may be a link: the path is the user's own
                data = file.read(MAX_TRUST_BYTES + 1)
        except (OSError, ValueError) as cause:  # ValueError: a path with a NUL in it
            why = cause.strerror if isinstance(cause, OSError) else str(cause)
            raise TrustError(f"{where} cannot be read: {why}. Make one with `kedit trust new`.") from None
        value = strictjson.loads(data, what=where, max_bytes=MAX_TRUST_BYTES, error=TrustError)
        version = value.get("kedit_trust") if isinstance(value, dict) else None
        if type(version) is not int:
            raise TrustError(f'{where} does not begin with {{"kedit_trust": 1, ...: it is no trust policy.')
        if version != 1:
            raise TrustError(f"{where} has kedit_trust {version}; this kedit_hub reads 1. Update kedit_hub.")
        try:
            policy = cls.model_validate(value)
        except TrustError as cause:
            raise TrustError(f"{where} is refused: {cause}") from None
        policy._source = where
        return policy

    def to_bytes(self) -> bytes:
        """What `load` reads."""
        value = self.model_dump(mode="json", exclude={"rules"})
        rules = [rule.model_dump(mode="json", exclude_defaults=True) for rule in self.rules]
        return strictjson.pretty({**value, "rules": rules})

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a new file; one that is there is never replaced. Raises TrustError."""
        target, data = Path(path), self.to_bytes()
        try:
            with open(target, "xb") as file:  # what a crash would leave of it is refused by `load`, not half obeyed
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            raise TrustError(f"'{target}' exists and is left as it is. Name a new file, or edit that one.") from None
        except (OSError, ValueError) as cause:
            why = cause.strerror if isinstance(cause, OSError) else str(cause)
            raise TrustError(f"the trust policy cannot be written to '{target}': {why}.") from None
        return target

    def names(self, keys: Iterable[str]) -> tuple[str, ...]:
        """Public keys as this policy calls them; those it does not know stay keys."""
        owners = {key: name for name, key in self.keys.items()}
        return tuple(owners.get(key, key) for key in keys)

    def judge(self, patch: Patch, author: str | None) -> Verdict:
        """author: namespace of the Hub repo of which a branch or tag holds `patch`; None when there is none."""
        reasons = tuple(self._try(number, rule, patch, author) for number, rule in enumerate(self.rules, 1))
        first = next((reason.rule for reason in reasons if reason.holds), None)
        return Distrusted(reasons) if first is None else Trusted(first, reasons)

    def require(self, patch: Patch, author: str | None) -> Trusted:
        """`judge`, with a refusal as TrustError that holds the whole trace."""
        verdict = self.judge(patch, author)
        match verdict:
            case Trusted():
                return verdict
            case Distrusted():
                whose = "without an author" if author is None else f"from a repo of {author!r}"
                raise TrustError(
                    f"{self._source} refuses patch {patch.id[:12]} {whose}; {explain(verdict)}\n"
                    "Take the patch out; or find out who made it, then add that key or author to the policy."
                )
            case _:
                assert_never(verdict)

    def _try(self, number: int, rule: Rule, patch: Patch, author: str | None) -> Reason:
        base = patch.manifest.base.id
        if rule.base not in ("*", base):
            return Reason(
                number, False, f"is for the base {rule.base!r}, the patch for {base!r}{_warn(base, [rule.base])}"
            )
        kept: list[str] = []
        broken: list[str] = []
        if rule.signers:
            signers = self.names(patch.signers)
            hits = [name for name in rule.signers if self.keys[name] in patch.signers]
            if hits:
                kept.append(f"signed by {' and '.join(hits)}")
            else:
                found = f"signed by {' and '.join(signers)}" if signers else "not signed"
                broken.append(f"wants a signature by {' or '.join(rule.signers)}, the patch is {found}")
        if rule.authors:
            wants = f"wants a branch or tag of a Hub repo of {' or '.join(rule.authors)}"
            if author is None:
                broken.append(f"{wants}, the patch came from none")
            elif _lower(author) in map(_lower, rule.authors):
                kept.append(f"in a repo of {author}")
            else:
                broken.append(f"{wants}, the patch is in one of {author!r}{_warn(author, rule.authors)}")
        return Reason(number, not broken, "; ".join(broken) if broken else f"holds: {', '.join(kept)}")


def policy_of(trust: "str | os.PathLike[str] | TrustPolicy | None") -> TrustPolicy | None:
    """The policy to go by: the one given, else the file that KEDIT_TRUST names, else None (none is set up).

    Raises TrustError for one that cannot be read. An empty KEDIT_TRUST is such a one: a deployment whose setting got
    lost must not run without.
    """
    if isinstance(trust, TrustPolicy):
        return trust
    if trust is not None:
        return TrustPolicy.load(trust)
    path = os.environ.get(VARIABLE)
    if path is None:
        return None
    if not path:
        raise TrustError(f"{VARIABLE} is set and empty. Name the file of a trust policy in it, or unset it.")
    return TrustPolicy.load(path)


# --- names --------------------------------------------------------------------------------------------------------


def _lower(name: str) -> str:
    """Lower case of ASCII letters alone: no other letter of Unicode may become one (the Kelvin sign is no k)."""
    return "".join(char.lower() if char.isascii() else char for char in name)


def _repeated(names: Iterable[str]) -> list[str]:
    listed = list(names)
    return [name for place, name in enumerate(listed) if name in listed[:place]]


def _warn(name: str, listed: Iterable[str]) -> str:
    """Words about the first listed name that a reader could take `name` for."""
    alike = next((known for known in listed if looks_like(name, known)), None)
    return "" if alike is None else f" (which looks like {alike!r}, and is not)"


_LOOKS: Mapping[int, str] = str.maketrans({"0": "o", "1": "l", "i": "l", "_": "-", ".": "-"})


def looks_like(name: str, known: str) -> bool:
    """Two names a reader may confuse: equal up to case, width, 0-o, 1-l-i, _-.-hyphen; or one letter off.

    One letter off: one letter added, left out or changed, or two neighbours swapped; among names of four letters or more.
    """
    a, b = (unicodedata.normalize("NFKC", text).casefold().translate(_LOOKS) for text in (name, known))
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    if not a and not b:
        return True
    return min(len(name), len(known)) >= 4 and (max(len(a), len(b)) == 1 or (len(a) == 2 and a == b[::-1]))
