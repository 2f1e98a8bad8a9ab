"""Is a patch what it says it is? Law: whatever fails is an error or a fault, never silence, and what was not checked is said.

    found = verify("user/patch", rescore=True)      # KeditError: files, signature, policy or base are not as they must be
    found.faults                                    # claims that do not hold: () when none was found

Files, digests and signature are checked whenever a patch is loaded, the policy by whoever loads it. This adds the base, read from its
checkpoint without loading the model; whether the scores follow from the recorded answers; and, on demand, whether the model gives
these answers again.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kedit_hub import demo
from kedit_hub.api import EMBEDDED, admit, apply, load_model
from kedit_hub.base.load import checkpoint_folder
from kedit_hub.base.stored import verify_stored
from kedit_hub.errors import UnsupportedModelError, WrongBaseError
from kedit_hub.evaluate.claims import Consistent, Inconsistent, NoClaims, NotComparable, check_claims
from kedit_hub.evaluate.rescore import NotReproduced, Reproduced, claimed_mode
from kedit_hub.evaluate.rescore import rescore as ask_again
from kedit_hub.patch.fingerprint import Level
from kedit_hub.patch.patch import Patch
from kedit_hub.patch.trust import TrustPolicy

Claims = NoClaims | NotComparable | Inconsistent | Consistent
Rescored = Reproduced | NotReproduced | NotComparable | NoClaims


@dataclass(frozen=True)
class Verified:
    """What was found. base, levels: None and {} when the base was not looked at. rescored: None when nothing was asked again."""

    patch: Patch
    author: str | None  # namespace of the Hub repo it came from
    base: str | None
    levels: dict[str, Level]
    claims: Claims
    rescored: Rescored | None

    @property
    def faults(self) -> tuple[str, ...]:
        """What is claimed and does not hold, one sentence each."""
        found = []
        if isinstance(self.claims, Inconsistent):
            found.append(f"The scores do not follow from the recorded answers: {self.claims.faults[0]}")
        if isinstance(self.rescored, NotReproduced):
            found.append(
                f"The scores do not reproduce: {len(self.rescored.broken)} of {len(self.rescored.averages)} averages are "
                f"claimed too high, {self.rescored.answered_differently} of {self.rescored.probes} probes answered differently."
            )
        return tuple(found)


def verify(
    patch: Any,
    *,
    base: str | os.PathLike[str] | None = None,
    check_base: bool = True,
    rescore: bool = False,
    tolerance: float = 0.02,
    trust: TrustPolicy | str | os.PathLike[str] | None = None,
    token: str | None = None,
    progress: bool = False,
    models: Mapping[str, Any] | Sequence[Any] = (),
) -> Verified:
    """Load a patch, check it and its base, and hold its scores against the recorded answers.

    patch: whatever `apply` takes for one. base: a Hub id or folder; None = the one the patch names. check_base: False looks at the
    files alone. rescore: load the base, apply the patch and ask its probes again; tolerance: see evaluate.rescore. trust, models: as for
    `apply`.
    Raises KeditError for anything that is not as it must be, except claims, which become `faults`.
    """
    admitted = admit(patch, trust, token=token)
    found = admitted.patch
    name, levels = None, dict[str, Level]()
    if check_base or rescore:
        name, revision = _base_of(found, base)
        levels = _levels(found, name, revision, token)
    rescored: Rescored | None = None
    if rescore:
        assert name is not None
        patched = apply(
            admitted,
            name if base is not None else None,
            mode=claimed_mode(found),
            trust=trust,
            token=token,
            models=models,
        )
        rescored = ask_again(found, patched, tolerance=tolerance, progress=progress)
    return Verified(found, admitted.author, name, levels, check_claims(found), rescored)


def _base_of(patch: Patch, base: str | os.PathLike[str] | None) -> tuple[str, str | None]:
    """(name, revision) of the base to check against."""
    if base is not None:
        return os.fspath(base), None
    wanted = patch.manifest.base
    if wanted.id not in EMBEDDED and "/" not in wanted.id:
        raise WrongBaseError(
            f"the patch was made on a local model called '{wanted.id}', which cannot be looked up: pass its folder as the "
            "base (--base), or check the files alone (--no-base)"
        )
    return wanted.id, wanted.revision


def _levels(patch: Patch, name: str, revision: str | None, token: str | None) -> dict[str, Level]:
    """From the stored checkpoint; from the loaded model where the checkpoint is stored quantized or in another way of its own."""
    folder: Path
    if name in EMBEDDED:
        folder = demo.model_path(EMBEDDED[name])
    else:
        folder = checkpoint_folder(name, revision=revision, token=token)
    try:
        return verify_stored(patch.manifest.base, folder)
    except UnsupportedModelError:
        model, _ = load_model(folder)
        if model.config.model_type != patch.manifest.base.model_type:
            raise WrongBaseError(
                f"'{name}' is a {model.config.model_type}, the patch was made for {patch.manifest.base.id}, a "
                f"{patch.manifest.base.model_type}"
            ) from None
        return patch.verify(model)
