"""Policy files: what is read, what is refused, and that an unreadable one is never the same as none."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedit_hub.errors import KeditError, LimitError, TrustError
from kedit_hub.limits import MAX_TRUST_BYTES
from kedit_hub.patch.trust import VARIABLE, Rule, TrustPolicy, policy_of
from tests.patch.test_trust import ALICE, BOB, KEYS, Double

RULE = {"base": "*", "signers": ["alice"]}


def text(keys=KEYS, rules=(RULE,), **more) -> str:
    return json.dumps({"kedit_trust": 1, "keys": dict(keys), "rules": list(rules), **more})


@pytest.fixture
def file(tmp_path):
    return tmp_path / "kedit.trust"


def test_a_policy_is_read(file):
    file.write_text(text(rules=[RULE, {"base": "org/base", "authors": ["our-lab"]}]))
    policy = TrustPolicy.load(file)
    assert policy.keys == KEYS
    assert policy.rules == (Rule(base="*", signers=("alice",)), Rule(base="org/base", authors=("our-lab",)))
    assert TrustPolicy.load(str(file)).judge(Double((ALICE,)), None).rule == 1


def test_what_is_saved_is_read(file):
    made = TrustPolicy(keys=KEYS, rules=(Rule(base="*", signers=("alice", "bob")), Rule(base="a/b", authors=("c",))))
    assert made.save(file) == file
    read = TrustPolicy.load(file)
    assert (read.keys, read.rules) == (made.keys, made.rules)
    assert read.to_bytes() == file.read_bytes()


def test_a_file_is_never_replaced(file):
    file.write_text("mine")
    with pytest.raises(TrustError, match="exists and is left as it is"):
        TrustPolicy(rules=()).save(file)
    assert file.read_text() == "mine"
    with pytest.raises(TrustError, match="cannot be written"):
        TrustPolicy(rules=()).save(file / "below")


def test_a_refusal_names_the_file(file):
    file.write_text(text())
    with pytest.raises(TrustError, match=f"^the trust policy '{file}' refuses patch ffffffffffff"):
        TrustPolicy.load(file).require(Double(), None)


def test_a_link_to_a_policy_is_followed(file, tmp_path):
    """As deployments mount their settings; the path is the user's own, not a stranger's."""
    file.write_text(text())
    (tmp_path / "link").symlink_to(file)
    assert TrustPolicy.load(tmp_path / "link").keys == KEYS


@pytest.mark.parametrize(
    ("content", "told"),
    [
        # no policy at all
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "no trust policy"),
        ("null", "no trust policy"),
        ("{}", "no trust policy"),
        ('{"keys": {}, "rules": []}', "no trust policy"),
        (text(kedit_trust="1"), "no trust policy"),
        (text(kedit_trust=True), "no trust policy"),
        (text(kedit_trust=1.0), "no trust policy"),
        (text(kedit_trust=2), "kedit_trust 2; this kedit_hub reads 1"),
        # ambiguous
        (text()[:-1] + ', "rules": []}', "'rules' twice"),
        (text().replace('"bob": "', f'"alice": "{BOB}", "carol": "'), "'alice' twice"),
        ("\ufeff" + text(), "byte order mark"),
        (text(note=float("nan")), "NaN"),
        # fields
        (text(note="x"), "note: Extra inputs"),
        (text(rules=[{**RULE, "autors": ["bob"]}]), "autors: Extra inputs"),
        ('{"kedit_trust": 1, "keys": {}}', "rules: Field required"),
        (text(rules=[{"signers": ["alice"]}]), "base: Field required"),
        (text(rules=[{**RULE, "signers": "alice"}]), "signers: Input should be a valid tuple"),
        (text(rules=[{**RULE, "signers": [1]}]), "signers.0: .*got '1'"),
        (text(rules=["alice"]), "got 'alice'"),
        (text(rules=[{**RULE, "base": "**"}]), r"base: .*got '\*\*'"),
        (text(rules=[{**RULE, "base": "../org"}]), r"base: .*got '\.\./org'"),
        (text(rules=[{**RULE, "base": None}]), "base: .*got 'None'"),
        (text(rules=[{"base": "*", "authors": ["ada/tower"]}]), "authors.0: .*got 'ada/tower'"),
        (text(rules=[{"base": "*", "authors": ["a da"]}]), "authors.0: .*got 'a da'"),
        (text(rules=[{"base": "*", "authors": ["*"]}]), r"authors.0: .*got '\*'"),
        # keys
        (text(keys={"alice": ALICE[:-1]}), f"keys.alice: .*got '{ALICE[:-1]}'"),
        (text(keys={"alice": ALICE.upper()}), f"got '{ALICE.upper()}'"),
        (text(keys={"alice": ALICE + "\n"}), "keys.alice"),
        (text(keys={"alice": "g" * 64}), "keys.alice"),
        (text(keys={"alice": 7}), "keys.alice"),
        (text(keys={"alice": None}), "keys.alice"),
        (text(keys={"": ALICE}), "keys"),
        (text(keys={"al ice": ALICE}), "keys.al ice"),
        (text(keys={"alice": ALICE, "again": ALICE}), f"{ALICE} twice, as 'alice' and 'again'"),
        # rules that contradict the rest
        (text(rules=[{"base": "*", "signers": ["carol"]}]), r"'carol', who is not in keys \(alice, bob\)"),
        (text(keys={}), "'alice', who is not in keys .which are empty"),
        (text(rules=[{"base": "*", "signers": ["Alice"]}]), "'Alice', who is not in keys"),
        (text(rules=[RULE, {"base": "org/base"}]), "rule 2 .* would trust everybody"),
        (text(rules=[{"base": "*", "signers": [], "authors": []}]), "rule 1 .* would trust everybody"),
        (text(rules=[RULE, RULE]), "rules 1 and 2 .* are the same"),
        (
            text(rules=[{"base": "*", "signers": ["alice", "bob"]}, {"base": "*", "signers": ["bob", "alice"]}]),
            "rules 1 and 2 .* are the same",
        ),
        (
            text(rules=[{"base": "*", "authors": ["Ada"]}, RULE, {"base": "*", "authors": ["ada"]}]),
            "rules 1 and 3 .* are the same",
        ),
        (text(rules=[{"base": "*", "signers": ["alice", "alice"]}]), "'alice' twice"),
        (text(rules=[{"base": "*", "authors": ["Ada", "ada"]}]), "'ada' twice"),
    ],
)  # fmt: skip
def test_malformed_policies(file, content, told):
    file.write_text(content, encoding="utf-8")
    with pytest.raises(TrustError, match=told) as refusal:
        TrustPolicy.load(file)
    assert str(file) in str(refusal.value)


@pytest.mark.parametrize(
    "key",
    [
        "00" * 32,
        "01" + "00" * 31,  # the neutral element: a signature of (1, 0) verifies for every message
        "00" * 31 + "80",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",  # p, another way to write 0
        "ee" + "ff" * 30 + "ff",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    ],
)
def test_keys_that_anybody_can_sign_with(file, key):
    file.write_text(text(keys={"alice": key}))
    with pytest.raises(TrustError, match=f"{key} of 'alice' .* small order"):
        TrustPolicy.load(file)


def test_bytes_that_are_no_text(file):
    file.write_bytes(b'{"kedit_trust": 1, "keys": {"\xff": ""}, "rules": []}')
    with pytest.raises(TrustError, match="not UTF-8"):
        TrustPolicy.load(file)


def test_bounds(file):
    file.write_text(text() + " " * MAX_TRUST_BYTES)
    with pytest.raises(LimitError, match="at most"):
        TrustPolicy.load(file)
    file.write_text('{"kedit_trust": 1, "rules": ' + "[" * 100_000)
    with pytest.raises(KeditError):
        TrustPolicy.load(file)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read(file):
    file.write_text(text())
    file.chmod(0)
    with pytest.raises(TrustError, match="cannot be read: Permission denied"):
        TrustPolicy.load(file)


@pytest.mark.parametrize("path", ["missing", ".", "a\0b", ""])
def test_a_path_that_is_no_file(tmp_path, path):
    with pytest.raises(TrustError, match="cannot be read"):
        TrustPolicy.load(str(tmp_path / path) if path else "")


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("any") / "kedit.trust"
    file.write_bytes(data)
    with pytest.raises(KeditError):
        TrustPolicy.load(file)


# --- which policy -------------------------------------------------------------------------------------------------


def test_no_policy_is_none(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert policy_of(None) is None


def test_the_variable_names_the_policy_of_those_who_give_none(file, tmp_path, monkeypatch):
    file.write_text(text())
    monkeypatch.setenv(VARIABLE, str(file))
    assert policy_of(None).keys == KEYS
    own = TrustPolicy(rules=())
    assert policy_of(own) is own
    own.save(tmp_path / "own.trust")
    assert policy_of(tmp_path / "own.trust").keys == {}


@pytest.mark.parametrize("value", ["", "/nowhere/kedit.trust"])
def test_a_variable_that_names_no_policy_is_an_error(monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(TrustError):
        policy_of(None)
