"""Key files: readable by their owner alone, never overwritten, and their content in no message."""

import os
import stat

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from kedit_hub.errors import KeditError
from kedit_hub.patch.keys import is_weak, load_key, new_key, public_key, verifies


def write(path, data):
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def pem(key, encryption=None, form=PrivateFormat.PKCS8):
    return key.private_bytes(Encoding.PEM, form, encryption or NoEncryption())


def test_a_new_key_is_read_back(tmp_path):
    key = new_key(tmp_path / "k.pem")
    again = load_key(tmp_path / "k.pem")
    assert public_key(again) == public_key(key) and again.private_bytes_raw() == key.private_bytes_raw()
    assert (tmp_path / "k.pem").read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert len(public_key(key)) == 64 and public_key(new_key(tmp_path / "other.pem")) != public_key(key)


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_mode_is_0600_under_any_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        new_key(tmp_path / "k.pem")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "k.pem").stat().st_mode) == 0o600


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("mine", "link"):
        with pytest.raises(KeditError, match="is there already, and keys are never overwritten"):
            new_key(tmp_path / name)
    assert (tmp_path / "mine").read_text() == "mine" and not (tmp_path / "nowhere").exists()
    with pytest.raises(KeditError, match="cannot be written"):
        new_key(tmp_path / "none" / "k.pem")


def test_a_key_that_cannot_be_written_whole_is_not_there(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeditError, match="No space left"):
        new_key(tmp_path / "k.pem")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620])
def test_a_key_that_others_may_open(tmp_path, mode):
    new_key(tmp_path / "k.pem")
    (tmp_path / "k.pem").chmod(mode)
    with pytest.raises(KeditError, match=rf"mode {mode:04o}\)\. Run: chmod 600 .*k\.pem"):
        load_key(tmp_path / "k.pem")


def test_links_folders_pipes_large_files(tmp_path):
    new_key(tmp_path / "k.pem")
    (tmp_path / "link").symlink_to(tmp_path / "k.pem")
    os.mkfifo(tmp_path / "pipe", 0o600)
    write(tmp_path / "large", b"-" * ((1 << 16) + 1))
    for name, message in (
        ("link", "is a symbolic link"),
        ("pipe", "is not a regular file"),
        ("large", "has more than 65,536 bytes"),
        ("none", "cannot be read: No such file"),
        (".", "cannot be read|is not a regular file"),
    ):
        with pytest.raises(KeditError, match=message):
            load_key(tmp_path / name)


def test_keys_of_other_kinds(tmp_path):
    curve, ours = ec.generate_private_key(ec.SECP256R1()), Ed25519PrivateKey.generate()
    public = ours.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for data, message in (
        (pem(curve), "of another kind than ed25519"),
        (pem(rsa.generate_private_key(65537, 2048)), "of another kind than ed25519"),
        (pem(ours, BestAvailableEncryption(b"secret")), "holds an encrypted key"),
        (public, "holds no private key in PEM form"),
        (ours.private_bytes_raw(), "holds no private key in PEM form"),
        (b"", "holds no private key in PEM form"),
        (pem(ours)[:-40], "holds no private key in PEM form"),
    ):
        with pytest.raises(KeditError, match=message) as error:
            load_key(write(tmp_path / "k", data))
        assert "kedit key new" in str(error.value)
        assert error.value.__cause__ is None and (error.value.__context__ is None or error.value.__suppress_context__)
        # short pieces of random bytes (a line of one letter) are found in any sentence
        body = [line for line in data.decode("latin-1").splitlines() if len(line) >= 8]
        assert not any(line in str(error.value) for line in body)


def test_keys_of_ssh_are_no_surprise(tmp_path):
    """OpenSSH's own form is either read right or refused."""
    ours = Ed25519PrivateKey.generate()
    file = write(tmp_path / "k", pem(ours, form=PrivateFormat.OpenSSH))
    try:
        assert public_key(load_key(file)) == public_key(ours)
    except KeditError as error:
        assert "no private key in PEM form" in str(error)


def test_no_repr_holds_the_key(tmp_path):
    key = new_key(tmp_path / "k.pem")
    assert key.private_bytes_raw().hex() not in repr(key) + str(key)


def test_what_verifies():
    key = Ed25519PrivateKey.generate()
    name, signature = public_key(key), key.sign(b"text").hex()
    assert verifies(name, signature, b"text")
    assert not verifies(name, signature, b"texts")
    assert not verifies(public_key(Ed25519PrivateKey.generate()), signature, b"text")


def test_keys_for_which_anybody_can_sign():
    """With R the neutral point and S zero, a signature under a key of small order verifies for every 8th text or more."""
    forged = "01" + "00" * 63
    neutral = "01" + "00" * 31
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(neutral)).verify(bytes.fromhex(forged), b"any text")  # as it is
    # Every encoding of the eight points of small order: y, or y + p where that fits, with either sign of x.
    points = (
        *("00" * 32, "01" + "00" * 31, "ec" + "ff" * 30 + "7f", "ed" + "ff" * 30 + "7f", "ee" + "ff" * 30 + "7f"),
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    )
    for point in map(bytes.fromhex, points):
        for key in (point.hex(), (point[:31] + bytes([point[31] | 0x80])).hex()):
            assert is_weak(key) and not any(verifies(key, forged, bytes([number])) for number in range(64))
