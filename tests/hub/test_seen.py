"""What is remembered of a repo, and what later pulls are compared with."""

import json
import os
import stat
import warnings

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from huggingface_hub import constants

from kedit_hub.errors import HubError
from kedit_hub.hub import seen
from kedit_hub.hub.seen import check, forget, is_version, precedence
from kedit_hub.limits import MAX_SEEN_BYTES
from kedit_hub.patch.keys import public_key
from kedit_hub.patch.signature import sign

from .patches import make_patch

ADA, BOB, EVE = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2, 3))
HUB, REPO = "http://127.0.0.1:9", "ada/tower"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def no_warning_unseen():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def made(*keys, version=None):
    patch = make_patch()
    for key in keys:
        patch = sign(patch, key, repo_id=REPO, version=version)
    return patch


COMMIT = "0" * 40


def pulled(*keys, version=None, revision=None):
    """As if the newest on main, or `revision`, had been signed so."""
    check(HUB, REPO, revision, made(*keys, version=version))


def remembered(home):
    files = list((home / "seen").iterdir()) if (home / "seen").is_dir() else []
    (file,) = files or (None,)
    return None if file is None else json.loads(file.read_text())


def keys(*private):
    return sorted(map(public_key, private))


def test_the_first_signers_are_remembered(home):
    pulled(ADA, BOB, version="1.2.0")
    told = {"kedit_seen": 1, "endpoint": HUB, "repo_id": REPO, "signers": keys(ADA, BOB), "version": "1.2.0"}
    assert remembered(home) == told
    (file,) = (home / "seen").iterdir()
    assert len(file.stem) == 64 and file.suffix == ".json"
    if os.name == "posix":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_of_a_repo_that_was_never_signed_nothing_is_remembered(home):
    pulled()
    pulled()
    assert remembered(home) is None
    pulled(ADA)
    assert remembered(home)["signers"] == keys(ADA)


def test_another_signer_is_refused(home):
    pulled(ADA)
    with pytest.raises(HubError) as refusal:
        pulled(EVE)
    told = str(refusal.value)
    assert public_key(ADA) in told and public_key(EVE) in told
    assert "kedit trust forget ada/tower" in told and f"--endpoint {HUB}" in told
    assert remembered(home)["signers"] == keys(ADA)  # a refusal changes nothing


def test_a_repo_that_is_no_longer_signed_is_refused():
    pulled(ADA)
    for revision in (None, "main", "feature", "v1.0.0", COMMIT):
        with pytest.raises(HubError, match=f"signed by {public_key(ADA)} when .* is not signed"):
            pulled(revision=revision)


def test_a_key_is_replaced_by_signing_once_with_both(home):
    pulled(ADA)
    pulled(ADA, BOB)
    pulled(BOB)
    assert remembered(home)["signers"] == keys(BOB)
    with pytest.raises(HubError):
        pulled(ADA)  # it has been replaced


def test_versions_rise(home):
    for version in ("1.9.0", "1.10.0-rc.1", "1.10.0", "1.10.0"):
        pulled(ADA, version=version)
        assert remembered(home)["version"] == version


@pytest.mark.parametrize("version", ["1.9.9", "1.10.0-rc.2", None])
def test_a_lower_version_gives_a_warning(home, version):
    pulled(ADA, version="1.10.0")
    for revision in (None, "main", "feature", "latest", "v1"):
        with pytest.warns(UserWarning, match=r"'ada/tower' now holds .* version 1\.10\.0 was pulled before"):
            pulled(ADA, version=version, revision=revision)
    for revision in ("v1.9.9", "1.9.9", "refs/tags/v1.9.9", COMMIT):  # it was asked for
        pulled(ADA, version=version, revision=revision)
    assert remembered(home)["version"] == "1.10.0"


def test_without_versions_there_is_nothing_to_warn_of(home):
    pulled(ADA)
    pulled(ADA)
    pulled(ADA, version="0.1.0")
    assert remembered(home)["version"] == "0.1.0"


def test_old_content_brings_no_old_signer_back(home):
    """A key that was replaced, and then got out, cannot come back by way of the version that both had signed."""
    pulled(ADA, version="1.0.0")
    pulled(ADA, BOB, version="1.1.0")
    pulled(BOB, version="1.2.0")
    with pytest.warns(UserWarning, match="old content"):
        pulled(ADA, BOB, version="1.1.0")
    pulled(ADA, BOB, version="1.1.0", revision="v1.1.0")
    assert remembered(home)["signers"] == keys(BOB)
    with pytest.raises(HubError):
        pulled(ADA, version="9.0.0")


def test_a_version_that_was_asked_for_says_nothing_about_who_signs_now(home):
    pulled(ADA, BOB, version="1.0.0")
    pulled(ADA, version="2.0.0", revision="v2.0.0")
    assert remembered(home) | {"signers": keys(ADA, BOB), "version": "2.0.0"} == remembered(home)
    pulled(BOB, version="2.1.0")


def test_every_hub_and_repo_has_a_memory_of_its_own(home):
    check(HUB, "ada/tower", None, made(ADA))
    check(HUB, "ada/other", None, make_patch())
    check("http://127.0.0.1:10", "ada/tower", None, made(EVE))
    assert len(list((home / "seen").iterdir())) == 2


def test_case_and_slash_are_no_way_around():
    check(HUB, "ada/tower", None, made(ADA))
    with pytest.raises(HubError):
        check(f"{HUB}/", "Ada/Tower", None, made(EVE))


def test_the_default_hub(monkeypatch):
    check(None, REPO, None, made(ADA))
    with pytest.raises(HubError) as refusal:
        check(constants.ENDPOINT, REPO, None, made(EVE))
    assert "forget ada/tower  and" in str(refusal.value)  # no --endpoint
    monkeypatch.setattr(constants, "ENDPOINT", HUB)
    check(None, REPO, None, made(EVE))


def test_forgetting(home):
    assert forget(HUB, REPO) is False
    pulled(ADA)
    assert forget(HUB, "Ada/tower") is True
    assert remembered(home) is None
    pulled(EVE)
    for repo in ("../x", "ada/tower@v1.0.0", "a/b/c"):
        with pytest.raises(HubError):
            forget(HUB, repo)


@pytest.mark.parametrize("revision", ["refs/pr/3", "pr/3"])
def test_pull_requests_are_somebody_elses(home, revision):
    pulled(EVE, revision=revision)
    assert remembered(home) is None
    pulled(ADA, version="1.0.0")
    before = remembered(home)
    pulled(EVE, version="9.0.0", revision=revision)
    pulled(revision=revision)
    assert remembered(home) == before


def test_a_bare_commit_is_compared_but_begins_no_memory(home):
    """It may be of a pull request; remembered first, it would make the owner look like the stranger."""
    pulled(EVE, revision=COMMIT)
    assert remembered(home) is None
    pulled(ADA)
    with pytest.raises(HubError):
        pulled(EVE, revision=COMMIT)


# --- the file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-10],
        lambda text: text.replace('"kedit_seen": 1', '"kedit_seen": 2'),
        lambda text: text.replace("ada/tower", "ada/other"),
        lambda text: text.replace(HUB, "http://other"),
        lambda text: text.replace(public_key(ADA), public_key(ADA)[:-1]),
        lambda text: text.replace("1.0.0", "one"),
        lambda text: json.dumps(json.loads(text) | {"signers": []}),
        lambda text: json.dumps(json.loads(text) | {"more": 1}),
        lambda text: text[:-2] + ', "signers": []}',
        lambda text: "[" * 1000,
        lambda text: text + " " * MAX_SEEN_BYTES,
    ],
)
def test_a_damaged_memory_is_an_error_with_a_remedy(home, damage):
    pulled(ADA, version="1.0.0")
    (file,) = (home / "seen").iterdir()
    file.write_text(damage(file.read_text()))
    for patch in (made(ADA, version="1.0.0"), made(EVE), make_patch()):
        with pytest.raises(HubError, match=f"{file.name}.*cannot be read.*kedit trust forget ada/tower --endpoint"):
            check(HUB, REPO, None, patch)
    assert forget(HUB, REPO)
    pulled(ADA)


def test_a_link_is_not_followed(home, tmp_path):
    pulled(ADA)
    (file,) = (home / "seen").iterdir()
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HubError, match="symbolic link"):
        pulled(ADA)


def test_a_crash_while_writing_leaves_the_old_memory(home, monkeypatch):
    pulled(ADA, version="1.0.0")
    before = remembered(home)

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(seen.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        pulled(ADA, version="2.0.0")
    assert remembered(home) == before  # and nothing beside it


def test_where_nothing_can_be_written_a_warning_says_so(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be remembered.*KEDIT_HOME"):
        pulled(ADA)


# --- names of versions --------------------------------------------------------------------------------------------


def test_precedence():
    """The order of semver.org, with its own example."""
    rising = [
        "0.9.9", "1.0.0-0", "1.0.0-2", "1.0.0-10", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2",
        "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.1-a", "1.0.1", "1.0.10", "1.2.0", "1.10.0", "2.0.0",
    ]  # fmt: skip
    assert sorted(reversed(rising), key=precedence) == rising
    assert precedence("1.0.0-a-b.1") < precedence("1.0.0")


@pytest.mark.parametrize("revision", ["v1.2.0", "1.2.0", "v1.0.0-rc.1", "refs/tags/v1.2.0"])
def test_versions(revision):
    assert is_version(revision)


@pytest.mark.parametrize("revision", [None, "main", "v1", "refs/pr/1", "v1.2.0\n", COMMIT, "feat/v1.2.0", "latest"])
def test_what_is_no_version(revision):
    assert not is_version(revision)
