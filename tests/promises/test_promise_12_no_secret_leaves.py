"""Promise 12: nothing secret on disk or in a log. A whole round of work with umask 0, then every file and every word that was
written is searched for the token and the private key.
"""

import logging
import os
import re
import stat
from pathlib import Path

import pytest

from kedit_hub.errors import KeditError
from kedit_hub.hub.localhub import LocalHub
from kedit_hub.patch.keys import load_key, new_key
from kedit_hub.patch.signature import sign
from tests.attacks.lint import ROOT
from tests.cli.conftest import kedit
from tests.hub.patches import make_patch

TOKEN = re.compile(rb"hf_[A-Za-z0-9]{16,}")


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def worked(tmp_path, monkeypatch, open_umask, caplog):
    """(folder with everything that was written, everything that was said, token, text of the private key)"""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path / "home"))
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", str(tmp_path / name))
    said = []

    def run(*arguments, code=0):
        done = kedit(*arguments)
        assert done.code == code, (arguments, done)
        said.append(done.out + done.err)

    with LocalHub(tmp_path / "hub") as hub:
        token = hub.create_user("ada")
        monkeypatch.setenv("HF_TOKEN", token)
        at = ("--endpoint", hub.endpoint)
        run("key", "new", "--out", tmp_path / "ada.pem")
        folder = make_patch().save(tmp_path / "p")
        run("sign", folder, "--key", tmp_path / "ada.pem", "--repo", "ada/tower", "--version", "1.0.0")
        run("push", folder, "ada/tower", "--version", "1.0.0", *at)
        run("push", folder, "ada/tower", "--version", "1.0.0", *at, code=1)
        run("pull", "ada/tower@v1.0.0", "--out", tmp_path / "q", *at)
        run("verify", tmp_path / "q", "--no-base", "--json")
        run("show", tmp_path / "q", "--json")
        run("push", folder, "bob/tower", *at, code=1)
        run("key", "show", tmp_path / "ada.pem")
        monkeypatch.setenv("HF_TOKEN", "hf_" + "wrong0" * 6)
        run("pull", "ada/tower@v2.0.0", "--out", tmp_path / "r", *at, code=1)
    said.append(caplog.text)
    return tmp_path, "\n".join(said), token, (tmp_path / "ada.pem").read_text()


def test_no_token_and_no_key_in_any_file_or_word(worked):
    folder, said, token, pem = worked
    secret = pem.splitlines()[1].encode()
    private = load_key(folder / "ada.pem").private_bytes_raw()
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 15
    for path in files:
        data = path.read_bytes()
        assert token.encode() not in data, path
        assert not TOKEN.search(data), path
        if path.name != "ada.pem":
            assert secret not in data and private not in data and private.hex().encode() not in data, path
    for word in (token, secret.decode(), private.hex(), "wrong0wrong0"):
        assert word not in said
    assert not TOKEN.search(said.encode())


def test_with_umask_0_secrets_are_still_the_owners_alone(worked):
    folder = worked[0]
    private = [folder / "ada.pem", *(folder / "home" / "seen").iterdir(), folder / "hub" / "tokens.json"]
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_key_is_made_for_its_owner_alone(tmp_path, open_umask):
    new_key(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o666, 0o620])
def test_a_key_that_others_can_open_is_refused(tmp_path, mode):
    new_key(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(KeditError, match="chmod 600"):
        load_key(tmp_path / "key")


def test_a_key_shows_in_no_message(tmp_path):
    key = new_key(tmp_path / "key")
    private = key.private_bytes_raw().hex()
    signed = sign(make_patch(), key)
    assert private not in repr(signed) + repr(signed.signature) + repr(key)
    (tmp_path / "key").write_text((tmp_path / "key").read_text().replace("PRIVATE", "PUBLIC"))
    with pytest.raises(KeditError) as caught:
        load_key(tmp_path / "key")
    assert private not in str(caught.value) and "BEGIN" not in str(caught.value)


def test_no_token_lies_in_the_source():
    """Of anybody: what ships is searched for what looks like one (tests make theirs out of repeated letters)."""
    for folder in ("kedit_hub", "space", "docs", "patches", "benchmarks"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix in (".py", ".md", ".json", ".toml", ".txt", ".css"):
                assert not TOKEN.search(path.read_bytes()), path
    assert not TOKEN.search((Path(ROOT) / "README.md").read_bytes())
