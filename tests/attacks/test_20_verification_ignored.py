"""20 · Verification ignored: a check that fails, and somebody goes on (model-signing 1.0.1: "passed", and exit 0).

Every verdict is a type of its own, handled one by one; what is no success raises, and a raised refusal is exit 1 everywhere.
The full table of attacks and entrances is tests/promises/test_promise_11_failed_is_never_zero.py.
"""

import ast
from typing import get_args

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kedit_hub.errors import SignatureError
from kedit_hub.patch.signature import (
    Changed,
    Extra,
    Invalid,
    Linked,
    Malformed,
    Missing,
    OtherPatch,
    Refused,
    Signed,
    Unsigned,
    Verdict,
    accept,
    check_folder,
    explain,
    sign,
)  # fmt: skip
from kedit_hub.patch.trust import Verdict as TrustVerdict
from tests.attacks.lint import ROOT, sources
from tests.cli.conftest import kedit
from tests.patch.build import make_patch

ADA = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
REFUSED = {
    Malformed: Malformed("signature.json is not JSON."),
    Invalid: Invalid("0" * 64),
    Changed: Changed("config.json"),
    Missing: Missing("config.json"),
    Extra: Extra("x"),
    Linked: Linked("config.json"),
    OtherPatch: OtherPatch("0" * 64),
}


def test_every_verdict_that_is_no_success_is_listed_here():
    assert set(get_args(Refused)) == set(REFUSED)
    assert set(get_args(Verdict)) == {Signed, Unsigned, *REFUSED}


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_a_refusal_is_raised_and_explained(kind):
    with pytest.raises(SignatureError) as caught:
        accept(REFUSED[kind])
    assert str(caught.value) == explain(REFUSED[kind])


def test_a_verdict_of_no_known_type_is_no_success():
    with pytest.raises(AssertionError):
        accept(object())  # type: ignore[arg-type]


def test_a_verdict_has_no_truth_value_of_its_own():
    """`if check_folder(...)` would take every verdict for a success: so none may be the only falsy one."""
    assert all(bool(verdict) for verdict in (*REFUSED.values(), Unsigned()))


def test_every_match_over_verdicts_names_all_of_them():
    """The last case is `assert_never`, or a name that takes what is left."""
    names = {kind.__name__ for kind in (*get_args(Verdict), *get_args(TrustVerdict))}
    matches = 0
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Match) and any(_classes(case.pattern) & names for case in node.cases):
                matches += 1
                last = node.cases[-1].pattern
                takes_the_rest = isinstance(last, ast.MatchAs) and last.pattern is None
                assert takes_the_rest or _returns(node), f"{path.relative_to(ROOT)} line {node.lineno}"
    assert matches >= 4  # there are some to look at


def _classes(pattern: ast.pattern) -> set[str]:
    """Names of the classes that a pattern is about."""
    return {ast.unparse(node.cls) for node in ast.walk(pattern) if isinstance(node, ast.MatchClass)}


def _returns(node: ast.Match) -> bool:
    """Every case returns or raises: that none is missing is then proved by mypy."""
    return all(isinstance(case.body[-1], ast.Return | ast.Raise) for case in node.cases)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path / "home"))
    return sign(make_patch(), ADA).save(tmp_path / "p")


def broken(folder, kind):
    match kind.__name__:
        case "Malformed":
            (folder / "signature.json").write_text("{")
        case "Invalid":
            text = (folder / "signature.json").read_text()
            at = text.index('"signature": "') + 14
            (folder / "signature.json").write_text(text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :])
        case "Changed":
            (folder / "README.md").write_text("# another card\n")
        case "Missing":
            (folder / "README.md").unlink()
        case "Extra":
            (folder / ".gitattributes").write_text("")
        case "Linked":
            (folder / "README.md").rename(folder.parent / "elsewhere")
            (folder / "README.md").symlink_to(folder.parent / "elsewhere")
        case "OtherPatch":
            (folder / "signature.json").rename(folder.parent / "signature.json")
            other = sign(make_patch(method="rome"), ADA)
            stated = other.files()["signature.json"]
            (folder / "signature.json").write_bytes(stated)


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_no_command_takes_a_broken_signature(folder, kind):
    broken(folder, kind)
    assert isinstance(check_folder(folder), tuple(REFUSED))
    for arguments in (
        ["verify", folder, "--no-base"],
        ["verify", folder, "--no-base", "--json"],
        ["show", folder],
        ["stack", "status", folder, "--no-base"],
        ["diff", folder, folder],
        ["sign", folder, "--key", folder.parent / "none.pem"],
    ):
        done = kedit(*arguments)
        assert done.code == 1 and done.out == "" and done.err.startswith("Error: "), arguments
