"""One flipped bit anywhere is refused."""

import random

import pytest

from kedit_hub.errors import PatchFormatError
from kedit_hub.patch import Patch
from tests.attacks.corpus import good

GOOD = good()


@pytest.mark.parametrize("name", ["config.json", "patch.safetensors", "evals.json"])
def test_flips(name):
    data = GOOD[name]
    for bit in random.Random(0).sample(range(len(data) * 8), 700):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PatchFormatError):
            Patch.from_files({**GOOD, name: bytes(flipped)})


@pytest.mark.parametrize("name", ["config.json", "patch.safetensors", "evals.json"])
def test_cuts(name):
    data = GOOD[name]
    for length in random.Random(0).sample(range(len(data)), 200):
        with pytest.raises(PatchFormatError):
            Patch.from_files({**GOOD, name: data[:length]})
