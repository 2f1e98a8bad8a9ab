"""One signed patch of every kind, built from scratch, and the digests of its files: `python -m tests.promises.artifact`."""

import json
import os
import random
import tempfile
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kedit_hub.patch import Patch
from kedit_hub.patch.signature import sign
from tests.patch.build import EDITS, EVALS
from tests.patch.kinds import every_kind

KEY = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)


def build(order: int) -> Patch:
    """The same patch with its deltas, settings, scores and circumstances given in another order; 0: as they come."""
    known = every_kind()

    def shuffled(things: dict) -> dict:
        items = list(things.items())
        if order:
            random.Random(order).shuffle(items)
        return dict(items)

    provenance = known.manifest.provenance
    made = Patch.create(
        deltas=shuffled(known.deltas),
        edits=EDITS,
        base=known.manifest.base.model_copy(update={"fingerprint": shuffled(known.manifest.base.fingerprint)}),
        method="every-kind",
        settings=shuffled({"lr": 0.1, "layers": [3, 1, 2], "note": "\u00e9\u0130\u0131", "steps": 20, "tiny": 1e-300}),
        profile_id=known.manifest.profile_id,
        requires=shuffled({"b" * 64: 0, "a" * 64: 0}),
        provenance={
            "version": "0.1.0",
            "seed": 0,
            "environment": shuffled(provenance.environment),
            "versions": shuffled({"torch": "2.13.0", "transformers": "5.23.0"}),
        },
    )
    return sign(made.replace_evals(shuffled(EVALS)), KEY, repo_id="ada/tower", version="1.2.0")


def digests(order: int) -> dict[str, str]:
    """sha256 of every file of its folder, after saving, loading and saving once more."""
    with tempfile.TemporaryDirectory() as temporary:
        first = build(order).save(Path(temporary) / "one")
        again = Patch.load(first).save(Path(temporary) / "two")
        found = {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(again.iterdir())}
        assert found == {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(first.iterdir())}
    return found


if __name__ == "__main__":
    print(json.dumps(digests(int(os.environ.get("ORDER", "0")))))
