"""evals.json: scores, and whose they are. Law: {"patch_id": whose, "sha256": of the rest, ...} in one written form, or refused.

unseal(seal({"protocols": {}}, patch.id), patch.id, DEFAULT) == {"protocols": {}}
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from kedit_hub import strictjson
from kedit_hub.errors import PatchFormatError
from kedit_hub.limits import DEFAULT, Limits
from kedit_hub.patch.safefile import refuse_impostor
from kedit_hub.patch.signature import EVALS


def plain(value: Any) -> dict[str, Any]:
    """Scores as the JSON object that is written. PatchFormatError for anything else."""
    try:
        found = strictjson.loads(strictjson.canonical(value), what="evals", max_bytes=DEFAULT.max_evals_bytes)
    except (TypeError, ValueError) as cause:
        raise PatchFormatError(f"Scores must be JSON with finite numbers: {cause}.") from None
    if not isinstance(found, dict) or {"patch_id", "sha256"} & set(found):
        raise PatchFormatError("Scores are a JSON object without the keys patch_id and sha256, which saving adds.")
    return found


def seal(evals: Mapping[str, Any], patch_id: str) -> bytes:
    """evals.json."""
    digest = hashlib.sha256(strictjson.canonical({**evals, "patch_id": patch_id})).hexdigest()
    return strictjson.pretty({**evals, "patch_id": patch_id, "sha256": digest})


def unseal(data: bytes, patch_id: str, limits: Limits) -> dict[str, Any]:
    """Read evals.json of this patch. PatchFormatError where it is of another one, or not as it was written."""
    refuse_impostor(data, EVALS)
    evals = strictjson.loads(data, what=EVALS, max_bytes=limits.max_evals_bytes, limits=limits)
    owner = evals.pop("patch_id", None) if isinstance(evals, dict) else None
    if owner != patch_id:
        raise PatchFormatError(f"{EVALS} is of patch {str(owner)[:64]!r}, not of {patch_id!r}. Score the patch again.")
    evals.pop("sha256", None)
    if data != seal(evals, patch_id):
        raise PatchFormatError(f"{EVALS} was damaged or changed by hand. Score the patch again.")
    return evals
