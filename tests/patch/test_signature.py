"""What a signature promises: one test per verdict, and a signed patch keeps its bytes wherever it goes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kedit_hub import strictjson
from kedit_hub.errors import LimitError, PatchFormatError, SignatureError
from kedit_hub.limits import Limits
from kedit_hub.patch import Patch
from kedit_hub.patch.keys import public_key
from kedit_hub.patch.patch import _named
from kedit_hub.patch.signature import (
    Changed,
    Extra,
    Invalid,
    Linked,
    Malformed,
    Missing,
    OtherPatch,
    Signature,
    Signed,
    Statement,
    Unsigned,
    check_files,
    check_folder,
    explain,
    sign,
)
from tests.patch.build import EVALS, make_patch

ADA, BOB = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))


def signed(**stated):
    return sign(make_patch().replace_evals(EVALS), ADA, **stated)


FILES = signed().files()


@pytest.fixture
def folder(tmp_path):
    return signed().save(tmp_path / "p")


def contents(folder):
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def forge(files, *, keys=(ADA,), **changes):
    """`files` with a signature.json over them by `keys`, with anything of the statement changed, made without kedit_hub."""
    files = {name: data for name, data in files.items() if name != "signature.json"}
    stated = {
        "patch_id": json.loads(files["config.json"])["id"],
        "files": {name: sha256(data).hexdigest() for name, data in files.items()},
        **changes,
    }
    text = b"kedit signature 1\n" + json.dumps(stated, sort_keys=True, separators=(",", ":")).encode()
    entries = [{"key": public_key(key), "signature": key.sign(text).hex()} for key in keys]
    return files | {
        "signature.json": strictjson.pretty({"kedit_signature": 1, "signatures": entries, "statement": stated})
    }


def refused(files, verdict):
    """Every way in refuses these files with this verdict."""
    assert check_files(files) == verdict
    with pytest.raises(SignatureError) as error:
        Patch.from_files(files)
    assert explain(verdict) in str(error.value)


# --- one per verdict ----------------------------------------------------------------------------------------------


def test_unsigned(tmp_path):
    folder = make_patch().save(tmp_path / "p")
    assert check_folder(folder) == check_files(contents(folder)) == Unsigned()
    loaded = Patch.load(folder)
    assert loaded.signature is None and loaded.signers == ()
    assert "nobody has signed" in explain(Unsigned())


def test_signed(tmp_path):
    patch = signed(repo_id="ada/tower", version="v1.2.0")
    folder = patch.save(tmp_path / "p")
    verdict = check_folder(folder)
    assert isinstance(verdict, Signed) and verdict == check_files(contents(folder))
    stated = verdict.signature.statement
    assert (stated.patch_id, stated.repo_id, stated.version) == (patch.id, "ada/tower", "1.2.0")
    assert {name: sha256(data).hexdigest() for name, data in contents(folder).items() if name in stated.files} == (
        stated.files
    )
    assert set(stated.files) == set(contents(folder)) - {"signature.json"}
    loaded = Patch.load(folder)
    assert loaded.signers == (public_key(ADA),) == verdict.signature.keys
    assert loaded.signature == patch.signature and loaded == patch == make_patch()
    assert explain(verdict) == f"Signed for ada/tower as version 1.2.0 by {public_key(ADA)}."


def test_what_is_signed_is_what_the_format_says():
    assert forge(FILES)["signature.json"] == FILES["signature.json"]


def test_invalid_by_another_key():
    data = FILES["signature.json"].replace(public_key(ADA).encode(), public_key(BOB).encode())
    refused(FILES | {"signature.json": data}, Invalid(public_key(BOB)))


def test_invalid_when_the_statement_is_changed():
    other = json.loads(FILES["signature.json"])
    other["statement"]["version"] = "9.9.9"
    refused(FILES | {"signature.json": strictjson.pretty(other)}, Invalid(public_key(ADA)))


def test_invalid_when_one_of_two_is():
    both = sign(signed(), BOB).files()
    value = json.loads(both["signature.json"])
    value["signatures"][1]["signature"] = value["signatures"][0]["signature"]
    refused(both | {"signature.json": strictjson.pretty(value)}, Invalid(value["signatures"][1]["key"]))


@pytest.mark.parametrize("key", ["0" * 64, "f" * 64, "01" + "0" * 62], ids=["zero", "no point", "neutral"])
def test_keys_that_are_none(key):
    value = json.loads(FILES["signature.json"])
    value["signatures"][0]["key"] = key
    refused(FILES | {"signature.json": strictjson.pretty(value)}, Invalid(key))


@pytest.mark.parametrize("name", ["README.md", "config.json", "evals.json", "patch.safetensors"])
def test_changed_missing_linked(folder, name):
    good = (folder / name).read_bytes()
    (folder / name).write_bytes(good + b"\n")
    assert check_folder(folder) == Changed(name)
    with pytest.raises(SignatureError, match=f"'{name}' is not what was signed"):
        Patch.load(folder)
    refused(FILES | {name: good + b"\n"}, Changed(name))

    (folder / name).unlink()
    assert check_folder(folder) == Missing(name)
    refused({other: data for other, data in FILES.items() if other != name}, Missing(name))

    (folder.parent / "outside").write_bytes(good)
    (folder / name).symlink_to(folder.parent / "outside")
    assert check_folder(folder) == Linked(name)
    with pytest.raises(SignatureError, match=f"'{name}' is a symbolic link. Copy the file"):
        Patch.load(folder)


def test_a_linked_signature(folder):
    (folder / "signature.json").rename(folder.parent / "outside")
    (folder / "signature.json").symlink_to(folder.parent / "outside")
    assert check_folder(folder) == Linked("signature.json")
    (folder.parent / "outside").unlink()
    assert check_folder(folder) == Linked("signature.json")
    with pytest.raises(SignatureError):
        Patch.load(folder)


@pytest.mark.parametrize(
    "name",
    (
        *(".gitattributes", ".gitignore", ".DS_Store", "Config.json", "SIGNATURE.json", "readme.md", "config.json.bak"),
        *("pytorch_model.bin", "evals.json ", "\u200bconfig.json", "a\nb", "\x1b[31m"),
    ),
)
def test_extra_files(folder, name):
    (folder / name).write_bytes(b"x")
    (folder / name).chmod(0)  # it is never opened
    assert check_folder(folder) == Extra(name)
    with pytest.raises(SignatureError, match=r"lies beside the signed files.* Move it out of the folder") as error:
        Patch.load(folder)
    assert str(error.value).isprintable()
    refused(FILES | {name: b"x"}, Extra(name))


@pytest.mark.parametrize("name", [".git", "sub"])
def test_extra_folders(folder, name):
    (folder / name).mkdir()
    assert check_folder(folder) == Extra(name)
    with pytest.raises(SignatureError, match="was not signed"):
        Patch.load(folder)


def test_scores_that_were_not_signed(tmp_path):
    folder = sign(make_patch(), ADA).save(tmp_path / "p")
    (folder / "evals.json").write_bytes(FILES["evals.json"])
    assert check_folder(folder) == Extra("evals.json")


def test_other_patch():
    other = make_patch(method="rome").id
    refused(forge(FILES, patch_id=other), OtherPatch(other))


def test_a_patch_does_not_take_the_signature_of_another():
    with pytest.raises(SignatureError, match=r"signature\.json is of patch"):
        replace(make_patch(method="rome"), signature=signed().signature)


def entries(*keys):
    return [{"key": key, "signature": "0" * 128} for key in keys]


LOW, HIGH = "0" * 64, "1" * 64
VALUE = json.loads(FILES["signature.json"])
STATED = VALUE["statement"]
MALFORMED = {
    "empty": b"",
    "no JSON": b"{",
    "list": b"[]\n",
    "pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "page": b"<!DOCTYPE html>",
    "twice": FILES["signature.json"].replace(b'"kedit_signature": 1', b'"kedit_signature": 1, "kedit_signature": 1'),
    "spaces": FILES["signature.json"] + b" ",
    "compact": strictjson.canonical(VALUE),
    "newer": {**VALUE, "kedit_signature": 2},
    "true": {**VALUE, "kedit_signature": True},
    "float": {**VALUE, "kedit_signature": 1.0},
    "field": {**VALUE, "note": ""},
    "field of the statement": {**VALUE, "statement": {**STATED, "note": ""}},
    "null": {**VALUE, "statement": {**STATED, "repo_id": None}},
    "no statement": {"kedit_signature": 1, "signatures": VALUE["signatures"]},
    "none": {**VALUE, "signatures": []},
    "key twice": {**VALUE, "signatures": entries(LOW, LOW)},
    "not sorted": {**VALUE, "signatures": entries(HIGH, LOW)},
    "17 keys": {**VALUE, "signatures": entries(*(f"{number:064x}" for number in range(17)))},
    "capital hex": {**VALUE, "signatures": [{"key": "A" * 64, "signature": "0" * 128}]},
    "short": {**VALUE, "signatures": [{"key": LOW, "signature": "0" * 126}]},
    "no card": {**VALUE, "statement": {**STATED, "files": {"config.json": LOW, "patch.safetensors": LOW}}},
    "itself": {**VALUE, "statement": {**STATED, "files": {**STATED["files"], "signature.json": LOW}}},
    "path": {**VALUE, "statement": {**STATED, "files": {**STATED["files"], "../x": LOW}}},
    "repo": {**VALUE, "statement": {**STATED, "repo_id": "tower"}},
    "version": {**VALUE, "statement": {**STATED, "version": "v1.0.0"}},
    "newline": {**VALUE, "statement": {**STATED, "version": "1.0.0\n"}},
    "digits": {**VALUE, "statement": {**STATED, "version": "1.0.\u0661"}},
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(name):
    data = MALFORMED[name]
    files = FILES | {"signature.json": data if isinstance(data, bytes) else strictjson.pretty(data)}
    verdict = check_files(files)
    assert isinstance(verdict, Malformed) and verdict.reason.startswith("signature.json ")
    refused(files, verdict)


def test_malformed_by_size(folder):
    data = b" " * ((1 << 20) + 1)
    refused(FILES | {"signature.json": data}, check_files(FILES | {"signature.json": data}))
    (folder / "signature.json").write_bytes(data)
    with pytest.raises(LimitError, match="at most 1,048,576 are read"):
        Patch.load(folder)
    with pytest.raises(LimitError, match="at most 10 are read"):
        signed().save(folder.parent / "q")
        Patch.load(folder.parent / "q", limits=Limits(max_card_bytes=10))


# --- what happens to signed patches -------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_any_file_is_refused(data):
    name = data.draw(st.sampled_from(sorted(FILES)))
    good = FILES[name]
    position = data.draw(st.integers(0, len(good) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "drop"]))
    match kind:
        case "flip":
            mask = 1 << data.draw(st.integers(0, 7))
            changed = good[:position] + bytes([good[position] ^ mask]) + good[position + 1 :]
        case "cut":
            changed = good[:position]
        case "insert":
            changed = good[:position] + data.draw(st.binary(min_size=1, max_size=8)) + good[position:]
        case _:
            changed = good[:position] + good[position + 1 :]
    if changed == good:
        return
    assert not isinstance(check_files(FILES | {name: changed}), Signed | Unsigned)
    with pytest.raises(SignatureError):
        Patch.from_files(FILES | {name: changed})


def test_saving_again_keeps_every_byte(folder, tmp_path):
    first = contents(folder)
    loaded = Patch.load(folder)
    assert loaded.files() == loaded.files("bob/elsewhere") == first  # the card says what was signed
    assert contents(loaded.save(tmp_path / "q", "bob/elsewhere")) == first
    assert contents(loaded.save(folder)) == first


def test_a_card_of_another_version_is_kept(tmp_path):
    files = forge(FILES | {"README.md": b"# as an older kedit_hub wrote it\n"})
    loaded = Patch.from_files(files)
    assert loaded.files() == files
    assert sign(loaded, BOB).signers == tuple(sorted([public_key(ADA), public_key(BOB)]))


def test_tensors_in_another_order_are_kept():
    """Another writer may lay out patch.safetensors otherwise: the tensors are the same, and so are the signed bytes."""
    tensors = _named(make_patch().deltas)
    header, body = {"__metadata__": {"format": "pt"}}, b""
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
    for name in sorted(tensors, reverse=True):
        data = tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": names[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    files = forge(FILES | {"patch.safetensors": len(text).to_bytes(8, "little") + text + body})
    assert files["patch.safetensors"] != FILES["patch.safetensors"]
    assert Patch.from_files(files).files() == files


def test_new_scores_are_unsigned_and_take_the_signature_away(folder):
    scored = Patch.load(folder).replace_evals({"drift": {"kl": 0.5}})
    assert scored.signature is None and scored.signers == ()
    scored.save(folder)
    assert sorted(contents(folder)) == ["README.md", "config.json", "evals.json", "patch.safetensors"]
    assert Patch.load(folder).evals == {"drift": {"kl": 0.5}}


def test_a_signature_under_other_scores_is_not_written(tmp_path):
    with pytest.raises(SignatureError, match=r"evals\.json.* is not what was signed"):
        replace(signed(), evals={"drift": 1}).save(tmp_path / "p")
    with pytest.raises(SignatureError, match=r"evals\.json.* is missing"):
        replace(signed(), evals=None).files()
    assert not (tmp_path / "p").exists()


def test_a_signature_is_no_part_of_the_identity():
    assert signed() == make_patch() and hash(signed()) == hash(make_patch()) and signed().id == make_patch().id


def test_a_signature_that_was_not_made_cannot_be_held():
    good = signed().signature
    with pytest.raises(SignatureError, match="does not verify"):
        Signature(good.statement, ((public_key(BOB), good.signatures[0][1]),), good.card, good.header)


# --- signing ------------------------------------------------------------------------------------------------------


def test_signing_again_changes_nothing():
    once = signed(repo_id="ada/tower", version="1.2.0")
    for again in (
        signed(repo_id="ada/tower", version="1.2.0"),
        sign(once, ADA, repo_id="ada/tower", version="1.2.0"),
        sign(once, ADA),
        sign(Patch.from_files(once.files()), ADA, version="v1.2.0"),
    ):
        assert again.files() == once.files()


def test_two_keys():
    one = signed(repo_id="ada/tower")
    both = sign(one, BOB)
    assert both.signers == tuple(sorted([public_key(ADA), public_key(BOB)]))
    assert both.signature.statement == one.signature.statement
    assert Patch.from_files(both.files()).signers == both.signers
    unsigned = make_patch().replace_evals(EVALS)
    assert sign(sign(unsigned, BOB, repo_id="ada/tower"), ADA).files() == both.files()  # in any order


def test_another_statement_replaces_the_old_one():
    both = sign(signed(repo_id="ada/tower"), BOB)
    moved = sign(both, BOB, repo_id="bob/tower")
    assert moved.signers == (public_key(BOB),) and moved.signature.statement.repo_id == "bob/tower"
    assert b"bob/tower" in moved.files()["README.md"] and b"ada/tower" in both.files()["README.md"]
    later = sign(both, ADA, version="2.0.0")
    assert later.signers == (public_key(ADA),)
    assert (later.signature.statement.repo_id, later.signature.statement.version) == ("ada/tower", "2.0.0")


def test_seventeen_keys():
    patch = signed()
    for number in range(2, 17):
        patch = sign(patch, Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))
    assert len(Patch.from_files(patch.files()).signers) == 16
    with pytest.raises(SignatureError, match="at most 16 signatures"):
        sign(patch, Ed25519PrivateKey.from_private_bytes(bytes([17]) * 32))


@pytest.mark.parametrize("stated", [{"repo_id": "tower"}, {"repo_id": "../x"}, {"repo_id": "a/b@v1"}, {"version": "1"}])
def test_what_cannot_be_stated(stated):
    with pytest.raises(SignatureError, match=r"cannot be signed for repo .*Write user/repo, and a version"):
        signed(**stated)


def test_changed_tensors_are_not_signed():
    patch = make_patch()
    next(iter(patch.deltas.values())).a[0, 0] += 1
    with pytest.raises(PatchFormatError, match=r"is not what the manifest"):
        sign(patch, ADA)


def test_the_same_bytes_in_every_process():
    code = (
        "from tests.patch.test_signature import signed; from hashlib import sha256; "
        "print(sha256(signed(repo_id='ada/tower').files()['signature.json']).hexdigest())"
    )
    expected = sha256(signed(repo_id="ada/tower").files()["signature.json"]).hexdigest()
    for seed, locale in (("1", "C"), ("2", "C.UTF-8")):
        env = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": locale}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
        assert done.stdout.strip() == expected, done.stderr[-2000:]


def test_cryptography_is_not_imported_before_it_is_needed():
    code = "import sys, kedit_hub.patch.patch; print(any(name.startswith('cryptography') for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr[-2000:]


def test_statement_bytes():
    """The signed bytes, spelled out once: a change here breaks every signature ever made."""
    stated = Statement.model_validate({"patch_id": LOW, "files": {"config.json": HIGH}, "version": "1.0.0"})
    text = f'{{"files":{{"config.json":"{HIGH}"}},"patch_id":"{LOW}","version":"1.0.0"}}'
    assert stated.signed_bytes() == f"kedit signature 1\n{text}".encode()
