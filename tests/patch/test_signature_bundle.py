"""Bundles of OpenSSF model-signing over a patch folder: everything in it is covered, nothing beside it is let in."""

import base64
import json
import os
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from kedit_hub.errors import KeditError, SignatureError
from kedit_hub.patch import bundle as module
from kedit_hub.patch.bundle import (
    Bundled,
    Changed,
    Extra,
    Invalid,
    Linked,
    Malformed,
    Missing,
    Unsigned,
    check_bundle,
    explain_bundle,
    sign_bundle,
)
from tests.patch.build import EVALS, make_patch

pytest.importorskip("model_signing", reason="the extra [sign] is not installed")


def write_keys(folder, name, curve=None):
    key = ec.generate_private_key(curve or ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    private.chmod(0o600)
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return write_keys(tmp_path_factory.mktemp("keys"), "ada")


@pytest.fixture
def folder(tmp_path):
    return make_patch().replace_evals(EVALS).save(tmp_path / "tower")


@pytest.fixture
def signed(folder, keys):
    sign_bundle(folder, key=keys[0])
    return folder


def judge(folder, keys, verdict):
    found = check_bundle(folder, public_key=keys[1])
    assert found == verdict
    told = explain_bundle(found)
    assert told.isprintable() and told.endswith(".")


def test_round_trip_beside_the_folder(folder, keys, monkeypatch):
    judge(folder, keys, Unsigned())
    monkeypatch.chdir(folder)
    assert sign_bundle(".", key=keys[0]) == folder.with_name("tower.sig")
    verdict = check_bundle(".", public_key=keys[1])
    assert isinstance(verdict, Bundled) and len(verdict.signer) == 64
    judge(folder, keys, verdict)
    assert sorted(os.listdir(folder.parent)) == ["tower", "tower.sig"]
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "evals.json", "patch.safetensors"]
    renamed = folder.rename(folder.with_name("elsewhere"))
    assert check_bundle(renamed, folder.with_name("tower.sig"), public_key=keys[1]) == verdict


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_larger_curves(folder, tmp_path, curve):
    private, public = write_keys(tmp_path, "k", curve)
    assert sign_bundle(folder, tmp_path / "b.json", key=private) == tmp_path / "b.json"
    assert isinstance(check_bundle(folder, tmp_path / "b.json", public_key=public), Bundled)


def test_signing_again_replaces_the_bundle(signed, keys):
    (signed / "README.md").write_text("# another card")
    sign_bundle(signed, key=keys[0])
    assert isinstance(check_bundle(signed, public_key=keys[1]), Bundled)


@pytest.mark.parametrize("name", [".gitattributes", ".gitignore", "x.bin", "Config.json", "\x1b[31m"])
def test_an_added_file(signed, keys, name):
    (signed / name).write_bytes(b"x")
    judge(signed, keys, Extra(name))


@pytest.mark.parametrize("name", [".git/config", ".github/x", "sub/a/b"])
def test_an_added_folder(signed, keys, name):
    (signed / name).parent.mkdir(parents=True)
    (signed / name).write_bytes(b"x")
    judge(signed, keys, Extra(name))


def test_files_in_folders_are_covered(folder, keys):
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_bytes(b"x")
    sign_bundle(folder, key=keys[0])
    assert isinstance(check_bundle(folder, public_key=keys[1]), Bundled)
    (folder / ".git" / "config").write_bytes(b"y")
    judge(folder, keys, Changed(".git/config"))


@pytest.mark.parametrize("name", ["README.md", "config.json", "evals.json", "patch.safetensors"])
def test_a_file_changed_removed_linked_replaced_by_a_pipe(signed, keys, name):
    good = (signed / name).read_bytes()
    (signed / name).write_bytes(good[:-1])
    judge(signed, keys, Changed(name))
    (signed / name).unlink()
    judge(signed, keys, Missing(name))
    os.mkfifo(signed / name)
    judge(signed, keys, Changed(name))
    (signed / name).unlink()
    (signed.parent / "outside").write_bytes(good)
    (signed / name).symlink_to(signed.parent / "outside")
    judge(signed, keys, Linked(name))


def test_another_key(signed, keys, tmp_path):
    verdict = check_bundle(signed, public_key=write_keys(tmp_path, "bob")[1])
    assert isinstance(verdict, Invalid) and "not signed by whom you named" in explain_bundle(verdict)


def test_another_signature_or_statement(signed, keys):
    at = signed.with_name("tower.sig")
    value = json.loads(at.read_text())
    envelope = value["dsseEnvelope"]
    signature = bytearray(base64.b64decode(envelope["signatures"][0]["sig"]))
    signature[-1] ^= 1
    other = {**envelope, "signatures": [{**envelope["signatures"][0], "sig": base64.b64encode(signature).decode()}]}
    at.write_text(json.dumps({**value, "dsseEnvelope": other}))
    assert isinstance(check_bundle(signed, public_key=keys[1]), Invalid)
    (signed / "README.md").write_text("changed, and the statement with it")
    statement = json.loads(base64.b64decode(envelope["payload"]))
    for resource in statement["predicate"]["resources"]:
        if resource["name"] == "README.md":
            resource["digest"] = module._digest(signed / "README.md")
    payload = base64.b64encode(json.dumps(statement).encode()).decode()
    at.write_text(json.dumps({**value, "dsseEnvelope": {**envelope, "payload": payload}}))
    assert isinstance(check_bundle(signed, public_key=keys[1]), Invalid)


def test_a_bundle_made_with_the_defaults_of_the_library(folder, keys):
    """It leaves .gitattributes out; here that file is held against it all the same."""
    import model_signing

    at = folder.with_name("tower.sig")
    model_signing.signing.Config().use_elliptic_key_signer(private_key=keys[0]).sign(folder, at)
    assert isinstance(check_bundle(folder, public_key=keys[1]), Bundled)
    (folder / ".gitattributes").write_bytes(b"x")
    model_signing.verifying.Config().use_elliptic_key_verifier(public_key=keys[1]).verify(folder, at)  # as it does it
    judge(folder, keys, Extra(".gitattributes"))


def test_what_the_library_says_of_ours(signed, keys):
    import model_signing

    verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=keys[1])
    verifier.verify(signed, signed.with_name("tower.sig"))


MALFORMED = {
    "empty": "",
    "list": "[]",
    "no envelope": '{"mediaType": "x", "verificationMaterial": {}}',
    "key twice": '{"mediaType": "x", "mediaType": "y"}',
    "no base64": '{"mediaType": "x", "verificationMaterial": {}, "dsseEnvelope": '
    '{"payload": "e30=-", "payloadType": "x", "signatures": []}}',
    "no statement": '{"mediaType": "x", "verificationMaterial": {}, "dsseEnvelope": '
    '{"payload": "e30=", "payloadType": "x", "signatures": []}}',
    "second spelling": '{"mediaType": "x", "verificationMaterial": {}, "dsse_envelope": {}, "dsseEnvelope": '
    '{"payload": "e30=", "payloadType": "x", "signatures": []}}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(folder, keys, name):
    folder.with_name("tower.sig").write_text(MALFORMED[name])
    verdict = check_bundle(folder, public_key=keys[1])
    assert isinstance(verdict, Malformed) and "cannot be read" in explain_bundle(verdict)
    with pytest.raises(KeditError, match="is there already and is no bundle"):
        sign_bundle(folder, key=keys[0])
    assert folder.with_name("tower.sig").read_text() == MALFORMED[name]


def test_a_linked_bundle(signed, keys):
    at = signed.with_name("tower.sig")
    at.rename(signed.with_name("real.sig"))
    at.symlink_to("real.sig")
    assert isinstance(check_bundle(signed, public_key=keys[1]), Malformed)


def test_the_bundle_lies_outside(folder, keys):
    for name in ("tower.sig", "sub/../x.sig"):
        with pytest.raises(KeditError, match="lies in the folder it signs"):
            sign_bundle(folder, folder / name, key=keys[0])
    with pytest.raises(KeditError, match="cannot be written"):
        sign_bundle(folder, folder.parent / "none" / "x.sig", key=keys[0])


def test_links_and_pipes_are_not_signed(folder, keys):
    (folder / "link").symlink_to("README.md")
    with pytest.raises(SignatureError, match="'link' is a symbolic link"):
        sign_bundle(folder, key=keys[0])
    (folder / "link").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(KeditError, match="cannot be signed"):
        sign_bundle(folder, key=keys[0])
    assert os.listdir(folder.parent) == ["tower"]


def test_keys_that_do_not_fit(folder, keys, tmp_path):
    ours = Ed25519PrivateKey.generate()
    wrong = tmp_path / "wrong.pem"
    wrong.write_bytes(ours.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    wrong.chmod(0o600)
    with pytest.raises(KeditError, match="they take P-256, P-384 and P-521"):
        sign_bundle(folder, key=wrong)
    koblitz, public = write_keys(tmp_path, "koblitz", ec.SECP256K1())
    with pytest.raises(KeditError, match="they take P-256, P-384 and P-521"):
        sign_bundle(folder, key=koblitz)
    with pytest.raises(KeditError, match="no unencrypted private key"):
        sign_bundle(folder, key=_private_copy(keys[1], tmp_path))
    koblitz.chmod(0o644)
    with pytest.raises(KeditError, match="chmod 600"):
        sign_bundle(folder, key=koblitz)
    sign_bundle(folder, key=keys[0])
    wrong.write_bytes(ours.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for file in (public, wrong, folder / "README.md"):
        with pytest.raises(KeditError, match="holds no public key on P-256"):
            check_bundle(folder, public_key=file)
    with pytest.raises(KeditError, match="cannot be read: No such file"):
        check_bundle(folder, public_key=tmp_path / "none")


def _private_copy(file, folder):
    copy = folder / "copy"
    copy.write_bytes(file.read_bytes())
    copy.chmod(0o600)
    return copy


def test_who_has_to_be_named(folder, keys):
    for wrong in ({}, {"key": keys[0], "sigstore": True}):
        with pytest.raises(KeditError, match="give key=, or sigstore=True"):
            sign_bundle(folder, **wrong)
    for wrong in ({}, {"identity": "a@b"}, {"issuer": "x"}, {"public_key": keys[1], "identity": "a", "issuer": "b"}):
        with pytest.raises(KeditError, match="Say who should have signed"):
            check_bundle(folder, **wrong)


def test_no_network_no_sigstore(signed, monkeypatch):
    """Whatever its client raises is one message, and never a yes."""
    import sigstore.models

    def offline(*_):
        raise ConnectionError("no route")

    monkeypatch.setattr(sigstore.models.ClientTrustConfig, "production", offline)
    with pytest.raises(KeditError, match=r"Sigstore did not answer as it should \(ConnectionError\)"):
        sign_bundle(signed, sigstore=True)
    with pytest.raises(KeditError, match=r"Sigstore did not answer as it should \(ConnectionError\)"):
        check_bundle(signed, identity="ada@example.org", issuer="https://accounts.example.org")


def test_without_the_extra(folder, keys, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_signing.signing", None)
    with pytest.raises(KeditError, match=r'pip install "kedit-hub\[sign\]"'):
        sign_bundle(folder, key=keys[0])


def test_no_socket_is_opened(folder, keys):
    """A key pair needs no network: signing and checking in a process that may not connect."""
    code = (
        "import socket, sys\n"
        "def no(*_): raise SystemExit('a socket was opened')\n"
        "socket.socket.connect = no\n"
        "from kedit_hub.patch.bundle import *\n"
        "folder, private, public = sys.argv[1:]\n"
        "sign_bundle(folder, key=private)\n"
        "print(type(check_bundle(folder, public_key=public)).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder, *keys], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "Bundled\n"), done.stderr[-2000:]
