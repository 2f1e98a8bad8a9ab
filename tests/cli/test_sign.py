"""sign, key new, key show: what they print, what they write, and that no output ever holds a private key."""

import base64
import os
import stat

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from kedit_hub import Patch
from kedit_hub.hub.localhub import LocalHub
from kedit_hub.patch.bundle import Bundled, check_bundle
from kedit_hub.patch.keys import load_key, public_key
from kedit_hub.patch.signature import Changed, check_folder
from tests.cli.conftest import kedit, refused
from tests.hub.patches import make_patch


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def folder(tmp_path):
    return make_patch().save(tmp_path / "p")


@pytest.fixture
def key(tmp_path):
    file = tmp_path / "ada.pem"
    assert kedit("key", "new", "--out", file).code == 0
    return file


@pytest.fixture
def curve(tmp_path):
    """Files of a private and a public key for bundles."""
    made = ec.generate_private_key(ec.SECP256R1())
    private, public = tmp_path / "curve.pem", tmp_path / "curve.pub"
    private.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    private.chmod(0o600)
    public.write_bytes(made.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def test_key_new_and_show(tmp_path):
    file = tmp_path / "ada.pem"
    made = kedit("key", "new", "--out", file, "--json")
    assert made.code == 0 and made.json["file"] == str(file) and len(made.json["public_key"]) == 64
    assert "keep it to yourself" in made.err
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert kedit("key", "show", file, "--json").json == made.json
    assert kedit("key", "show", file).out.split() == ["public_key", made.json["public_key"], "file", str(file)]
    refused(kedit("key", "new", "--out", file), "is there already", str(file))
    file.chmod(0o644)
    refused(kedit("key", "show", file), "chmod 600", str(file))
    refused(kedit("key", "show", tmp_path / "none"), "cannot be read", "none")


def test_sign(folder, key):
    done = kedit("sign", folder, "--key", key, "--repo", "ada/tower", "--version", "v1.2.0", "--json")
    assert done.code == 0, done
    patch = Patch.load(folder)
    told = done.json
    assert told == {
        "id": patch.id,
        "signers": [public_key(load_key(key))],
        "repo_id": "ada/tower",
        "version": "1.2.0",
        "files": dict(patch.signature.statement.files),
        "bundle": None,
    }
    assert patch.signers == tuple(told["signers"]) and "ada/tower" in (folder / "README.md").read_text("utf-8")
    first = contents(folder)
    again = kedit("sign", folder, "--key", key, "--repo", "ada/tower", "--version", "1.2.0")
    assert again.code == 0 and contents(folder) == first and again.err == ""
    assert all(word in again.out for word in ("config.json", patch.id, told["signers"][0], told["files"]["README.md"]))


def test_two_sign_and_one_for_another_version(folder, key, tmp_path):
    other = tmp_path / "bob.pem"
    bob = kedit("key", "new", "--out", other, "--json").json["public_key"]
    ada = public_key(load_key(key))
    kedit("sign", folder, "--key", key, "--version", "1.0.0")
    assert kedit("sign", folder, "--key", other, "--json").json["signers"] == sorted([ada, bob])
    done = kedit("sign", folder, "--key", other, "--version", "2.0.0", "--json")
    assert done.json["signers"] == [bob] and done.err.strip().startswith(f"No longer signed by {ada}")


def test_what_cannot_be_signed(folder, key, tmp_path):
    first = contents(folder)
    refused(kedit("sign", folder, "--key", tmp_path / "none"), "cannot be read")
    refused(kedit("sign", folder, "--key", folder / "README.md"), "README.md")
    refused(kedit("sign", folder, "--key", key, "--repo", "tower"), "'tower'", "user/repo")
    refused(kedit("sign", folder, "--key", key, "--version", "next"), "'next'", "1.2.0")
    refused(kedit("sign", tmp_path / "none", "--key", key), "is not a folder")
    assert contents(folder) == first
    assert kedit("sign", folder).code == 2


def test_a_signed_folder_that_was_changed(folder, key):
    kedit("sign", folder, "--key", key)
    (folder / "README.md").write_text("changed")
    assert check_folder(folder) == Changed("README.md")
    refused(kedit("sign", folder, "--key", key), "'README.md' is not what was signed", "delete signature.json")
    (folder / "signature.json").unlink()
    assert kedit("sign", folder, "--key", key).code == 0
    (folder / ".gitattributes").write_text("x")
    refused(kedit("show", folder), "'.gitattributes'", "Move it out of the folder")
    assert kedit("verify", folder, "--no-base").code == 1


def test_a_bundle(folder, key, curve, tmp_path):
    private, public = curve
    done = kedit("sign", folder, "--key", key, "--bundle", tmp_path / "b.sig", "--bundle-key", private, "--json")
    assert done.code == 0 and done.json["bundle"] == str(tmp_path / "b.sig")
    assert isinstance(check_bundle(folder, tmp_path / "b.sig", public_key=public), Bundled)
    done = kedit("sign", folder, "--key", key, "--bundle-key", private, "--json")
    assert done.json["bundle"] == str(tmp_path / "p.sig")
    refused(
        kedit("sign", folder, "--key", key, "--bundle", folder / "x", "--bundle-key", private), "lies in the folder"
    )
    refused(kedit("sign", folder, "--key", key, "--bundle-key", key), "P-256")
    assert sorted(contents(folder)) == [
        *("README.md", "config.json", "evals.json", "patch.safetensors", "signature.json"),
    ]


def test_pushed_pulled_and_verified(folder, key, tmp_path):
    kedit("sign", folder, "--key", key, "--repo", "ada/tower", "--version", "1.2.0")
    with LocalHub(tmp_path / "hub") as hub:
        (tmp_path / "token").write_text(hub.create_user("ada"))
        ada = ("--endpoint", hub.endpoint, "--token-file", tmp_path / "token")
        refused(kedit("push", folder, "ada/other", *ada), "was signed for 'ada/tower'")
        assert kedit("push", folder, "ada/tower", "--version", "1.2.0", *ada).code == 0
        done = kedit("pull", "ada/tower@v1.2.0", "--endpoint", hub.endpoint, "--out", tmp_path / "q")
        assert done.code == 0, done
    assert contents(tmp_path / "q") == contents(folder)


def test_no_output_holds_a_private_key(folder, key, curve, tmp_path):
    """Every command that reads a key, in success and in failure, and everything they leave behind."""
    old = os.umask(0)
    try:
        second = tmp_path / "bob.pem"
        told = [
            kedit("key", "new", "--out", second),
            kedit("key", "new", "--out", second),
            kedit("key", "show", second),
            kedit("key", "show", second, "--json"),
            kedit("sign", folder, "--key", second, "--json"),
            kedit("sign", folder, "--key", second, "--repo", "x"),
            kedit("sign", folder, "--key", key, "--bundle-key", curve[0]),
            kedit("sign", folder, "--key", curve[0]),
            kedit("sign", folder, "--key", second, "--bundle-key", second),
        ]
        modes = {stat.S_IMODE(file.stat().st_mode) for file in (key, second)}
        (tmp_path / "damaged.pem").write_bytes(key.read_bytes()[:-60])
        (tmp_path / "damaged.pem").chmod(0o600)
        told.append(kedit("key", "show", tmp_path / "damaged.pem"))
        key.chmod(0o640)
        told.append(kedit("sign", folder, "--key", key))
    finally:
        os.umask(old)
    key.chmod(0o600)
    assert modes == {0o600}
    assert {done.code for done in told} == {0, 1}
    secrets = []
    for file in (key, second):
        raw = load_key(file).private_bytes_raw()
        secrets += [raw, raw.hex().encode(), base64.b64encode(raw), file.read_bytes().splitlines()[1][20:]]
    secrets += [line[8:] for line in curve[0].read_bytes().splitlines()[1:-1]]
    seen = "".join(done.out + done.err for done in told).encode()
    left = [file for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".pem"]
    assert left and not any(secret in data for secret in secrets for data in (seen, *(f.read_bytes() for f in left)))
