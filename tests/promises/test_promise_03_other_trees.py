"""Promise 3: an extra, missing, renamed, linked or look-alike file beside a signature is refused. 16 kinds of change here, at
every file; 1,000 random trees in benchmarks/soak.py.
"""

import shutil

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kedit_hub.errors import PatchFormatError
from kedit_hub.patch import Patch
from kedit_hub.patch.signature import Signed, check_folder, sign
from tests.patch.build import EVALS, make_patch
from tests.promises.trees import CHANGES

KEY = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
FILES = ("README.md", "config.json", "evals.json", "patch.safetensors", "signature.json")


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    return sign(make_patch().replace_evals(EVALS), KEY).save(tmp_path_factory.mktemp("signed") / "p")


@pytest.mark.parametrize("change", CHANGES)
def test_refused(signed, tmp_path, change):
    for name in FILES:
        folder = shutil.copytree(signed, tmp_path / name / "p")
        assert isinstance(check_folder(folder), Signed)
        CHANGES[change](folder, name)
        if change in ("a missing file", "a renamed file") and name == "signature.json":
            continue  # then it is an unsigned folder: see test_a_signature_can_be_taken_away
        with pytest.raises(PatchFormatError):
            Patch.load(folder)
        try:
            assert not isinstance(check_folder(folder), Signed)
        except PatchFormatError:
            continue


def test_a_signature_can_be_taken_away(signed, tmp_path):
    """The limit: without signature.json it is an unsigned patch, which a policy or an earlier pull refuses, not the files."""
    folder = shutil.copytree(signed, tmp_path / "p")
    (folder / "signature.json").unlink()
    assert Patch.load(folder).signers == ()
