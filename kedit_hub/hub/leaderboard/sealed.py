"""Small signed JSON files. Law: a signature holds for one statement, of one kind, about one board, and is never taken for another.

    data = seal("submission", Statement(repo_id="lab/board", submission=digest), key)
    statement, signer = unseal(data, "submission", Statement, what="its signature", max_bytes=4096)

What is signed (ed25519, RFC 8032) is "kedit leaderboard <kind> 1\\n" + the canonical JSON of the statement, so a signature made for
another purpose, or on another board, says nothing here. The file has one written form, as every signed file of kedit_hub.
"""

from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from kedit_hub import strictjson
from kedit_hub.errors import SignatureError
from kedit_hub.patch.fingerprint import Hex64
from kedit_hub.patch.keys import public_key, verifies
from kedit_hub.patch.manifest import RepoId

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Kind = Literal["submission", "verification"]


def _owned(text: str) -> str:
    if "/" not in text:
        raise ValueError("must be user/repo")
    return text


class Statement(BaseModel):
    """What is signed. repo_id: the board it is meant for."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
    repo_id: Annotated[RepoId, AfterValidator(_owned)]


class _Seal(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    key: Hex64
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


S = TypeVar("S", bound=Statement)


def seal(kind: Kind, statement: Statement, key: "Ed25519PrivateKey") -> bytes:
    """The file: the statement, the public key and the signature."""
    signature = key.sign(_signed(kind, statement)).hex()
    return strictjson.pretty(
        {
            f"kedit_{kind}": 1,
            "statement": statement.model_dump(mode="json"),
            "key": public_key(key),
            "signature": signature,
        }
    )


def unseal(data: bytes, kind: Kind, of: type[S], *, what: str, max_bytes: int) -> tuple[S, str]:
    """(statement, public key of who signed it, 64 hex digits). Raises SignatureError; what it quotes is bounded."""
    value = strictjson.loads(data, what=what, max_bytes=max_bytes, error=SignatureError)
    fields = {f"kedit_{kind}", "statement", "key", "signature"}
    if not isinstance(value, dict) or set(value) != fields or type(value[f"kedit_{kind}"]) is not int:
        raise SignatureError(f"{what} must have exactly the fields {', '.join(sorted(fields))}.")
    if value[f"kedit_{kind}"] != 1:
        raise SignatureError(
            f"{what} has kedit_{kind} {str(value[f'kedit_{kind}'])[:40]}; this kedit_hub reads 1. If it is newer, update kedit_hub."
        )
    try:
        statement = of.model_validate_json(strictjson.canonical(value["statement"]))
        made = _Seal.model_validate({"key": value["key"], "signature": value["signature"]})
    except ValidationError as cause:
        first = cause.errors(include_url=False, include_context=False, include_input=False)[0]
        raise SignatureError(f"{what}: {'.'.join(map(str, first['loc']))[:120]!r}: {first['msg'][:300]}.") from None
    if data != strictjson.pretty({**value, "statement": statement.model_dump(mode="json")}):
        raise SignatureError(f"{what} is in another form than kedit_hub writes (spaces, escapes, order).")
    if not verifies(made.key, made.signature, _signed(kind, statement)):
        raise SignatureError(f"{what}: the signature by {made.key} does not verify.")
    return statement, made.key


def same_board(a: str, b: str) -> bool:
    """Two names of one repo: the Hub knows no case."""
    return a.lower() == b.lower()


def _signed(kind: Kind, statement: Statement) -> bytes:
    return f"kedit leaderboard {kind} 1\n".encode() + strictjson.canonical(statement.model_dump(mode="json"))
