"""Promise 8: old artifacts load for ever, and are written back as they were. What is newer than the reader is refused with
the advice to update.
"""

from hashlib import sha256
from pathlib import Path

import pytest

from kedit_hub.errors import UnknownFormatError
from kedit_hub.patch import Patch
from kedit_hub.patch.deltas import KINDS
from kedit_hub.patch.manifest import VERSIONS
from kedit_hub.patch.signature import Signed, Unsigned, check_folder
from tests.cli.conftest import kedit

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
ADA = "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c"
BOB = "8139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394"
FOLDERS = {  # name: (id, format version, signers)
    "format-1/three-kinds": ("25d7bdb574498e0f01f412d6bd5beffeb3ea84197e0a06fa693a1e35631802bb", 1, ()),
    "format-1/signed": ("25d7bdb574498e0f01f412d6bd5beffeb3ea84197e0a06fa693a1e35631802bb", 1, (ADA,)),
    "format-2/every-kind": ("74d68d9b1392a7245dad904673304bbb656e6080f5f424b0987811cd76faec80", 2, ()),
    "format-2/signed-twice": ("74d68d9b1392a7245dad904673304bbb656e6080f5f424b0987811cd76faec80", 2, (BOB, ADA)),
}
FILES = {  # sha256 of every file that lies here: none of them ever changes
    "format-1/signed/README.md": "1cbe1eb9913c68b0c308e8a8e598f4a7efafce4efc6cda060122e06892f8360a",
    "format-1/signed/config.json": "3c723543ecded5a89076ab31d1dc9f6def748808be8c245de3568505da4567b6",
    "format-1/signed/evals.json": "3c7e614fa527f4b395fa49609fc2478d6179d0f8125e0dffa9c7f60f2e314d6d",
    "format-1/signed/patch.safetensors": "7700a9e0aa013d8dd5e8a7c015e21058dcbb05ed69f45d8e4d730bf1b061f663",
    "format-1/signed/signature.json": "7f53a7eb0a173f1e1165e1ea941a4cd9769b473fc7ab37610f2e657e1f5a7865",
    "format-1/three-kinds/README.md": "736a721751ed7014107623bd1adeca6547a20b4790a606ef92b146b68309c8d9",
    "format-1/three-kinds/config.json": "3c723543ecded5a89076ab31d1dc9f6def748808be8c245de3568505da4567b6",
    "format-1/three-kinds/evals.json": "3c7e614fa527f4b395fa49609fc2478d6179d0f8125e0dffa9c7f60f2e314d6d",
    "format-1/three-kinds/patch.safetensors": "7700a9e0aa013d8dd5e8a7c015e21058dcbb05ed69f45d8e4d730bf1b061f663",
    "format-2/every-kind/README.md": "9d45594b9456ba799e7d0e29fa83be11f1d82a733817327cfa77d420eb0d17a0",
    "format-2/every-kind/config.json": "0b8431f827c44095a2b883a79ce1180735e5089521fa4ca10163afc777d2009f",
    "format-2/every-kind/evals.json": "1e7d6b07315c2129a7e5ab8d1a0ab0b048b828286477a8e5800e01a901621103",
    "format-2/every-kind/patch.safetensors": "77edc9a7849a926e1fa6d6193fd8259c9b2fe27be71dd36246900e37e69fe183",
    "format-2/signed-twice/README.md": "98c53b3f730ece7aa6d6a1f948a85e33989912731fc52930563bc60bf8d23176",
    "format-2/signed-twice/config.json": "0b8431f827c44095a2b883a79ce1180735e5089521fa4ca10163afc777d2009f",
    "format-2/signed-twice/evals.json": "1e7d6b07315c2129a7e5ab8d1a0ab0b048b828286477a8e5800e01a901621103",
    "format-2/signed-twice/patch.safetensors": "77edc9a7849a926e1fa6d6193fd8259c9b2fe27be71dd36246900e37e69fe183",
    "format-2/signed-twice/signature.json": "c771950fe58f19a6a76bafb3ccd6968c36ba088328ede41bfd496544b2959eda",
    "newer-format/config.json": "18ed1a50a268efad63034fb9294f38a1df3fbbee8a6af8202b885b05f055b574",
    "newer-format/patch.safetensors": "7700a9e0aa013d8dd5e8a7c015e21058dcbb05ed69f45d8e4d730bf1b061f663",
}


def test_nothing_here_has_changed():
    found = {str(path.relative_to(GOLDEN)): sha256(path.read_bytes()).hexdigest() for path in GOLDEN.glob("*/**/*.*")}
    assert found == FILES


@pytest.mark.parametrize("name", FOLDERS)
def test_it_loads_and_is_what_it_was(name):
    patch = Patch.load(GOLDEN / name)
    assert (patch.id, patch.manifest.format_version, patch.signers) == FOLDERS[name]
    patch.verify()
    assert patch.evals is not None and len(patch.edits) == 2
    assert isinstance(check_folder(GOLDEN / name), Signed if patch.signers else Unsigned)


@pytest.mark.parametrize("name", FOLDERS)
def test_it_is_written_back_as_it_was(name, tmp_path):
    """config.json, patch.safetensors and evals.json byte for byte; a signed one whole, its card too."""
    again = Patch.load(GOLDEN / name).save(tmp_path / "p")
    written = {path.name: path.read_bytes() for path in again.iterdir()}
    stored = {path.name: path.read_bytes() for path in (GOLDEN / name).iterdir()}
    assert set(written) == set(stored)
    same = set(stored) if "signature.json" in stored else set(stored) - {"README.md"}
    assert {file: written[file] for file in same} == {file: stored[file] for file in same}


@pytest.mark.parametrize("name", FOLDERS)
def test_the_command_line_takes_it(name, tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path))
    done = kedit("verify", GOLDEN / name, "--no-base", "--json")
    assert done.code == 0 and done.json["id"] == FOLDERS[name][0]


def test_every_format_version_and_kind_has_one():
    patches = [Patch.load(GOLDEN / name) for name in FOLDERS]
    assert {patch.manifest.format_version for patch in patches} == set(VERSIONS)
    deltas = [delta for patch in patches for delta in patch.deltas.values()]
    assert {delta.kind for delta in deltas} == set(KINDS)
    assert any(getattr(delta, "precision", None) == "f16" for delta in deltas)
    assert any(getattr(delta, "whitened_keys", None) is not None for delta in deltas)


def test_what_is_newer_is_refused_with_advice(tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path))
    with pytest.raises(UnknownFormatError, match=r"format_version '3'; this kedit_hub reads .* update kedit_hub"):
        Patch.load(GOLDEN / "newer-format")
    done = kedit("verify", GOLDEN / "newer-format", "--no-base")
    assert done.code == 1 and done.out == "" and "update kedit_hub" in done.err
