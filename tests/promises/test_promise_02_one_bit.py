"""Promise 2: one flipped bit anywhere is refused. 2,000 random bits of a signed patch here; every bit of it in
benchmarks/soak.py.
"""

import random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kedit_hub.errors import PatchFormatError
from kedit_hub.patch import Patch
from kedit_hub.patch.signature import sign
from tests.attacks.tools import every, good
from tests.patch.build import EVALS, make_patch

KEY = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def refused(files: dict[str, bytes]) -> bool:
    try:
        Patch.from_files(files)
    except PatchFormatError:
        return True
    return False


def test_of_a_signed_patch():
    files = sign(make_patch().replace_evals(EVALS), KEY).files()
    assert 10_000 < sum(map(len, files.values())) < 30_000 and not refused(files)
    places = [(name, bit) for name in sorted(files) for bit in range(8 * len(files[name]))]
    for name, bit in random.Random(0).sample(places, 2000):
        assert refused({**files, name: flipped(files[name], bit)}), (name, bit)


@pytest.mark.parametrize("start", [good, every], ids=["format 1", "format 2"])
@pytest.mark.parametrize("name", ["config.json", "patch.safetensors", "evals.json"])
def test_of_an_unsigned_patch(start, name):
    """Without a signature every bit of these three files counts too; the card is for people."""
    files = start()
    for bit in random.Random(1).sample(range(8 * len(files[name])), 150):
        assert refused({**files, name: flipped(files[name], bit)}), bit
