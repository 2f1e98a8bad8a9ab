"""13 · JSON that two readers read differently, or that one reader cannot read in time (CVE-2020-10735), and text that looks
like other text.

A text has one reading, or it is refused; config.json has one written form of the same value. Texts of edits may be in any
script: they are normalised to NFC when an edit is made, and characters that cannot be seen are spelled out where shown.
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedit_hub import strictjson
from kedit_hub.commands.output import shown
from kedit_hub.edits import Edit, questions
from kedit_hub.errors import EditError, LimitError, PatchFormatError, UnknownFormatError
from kedit_hub.patch import Patch
from kedit_hub.patch.card import escape
from kedit_hub.stack.stack import PatchStack
from tests.attacks.tools import CONFIG, EVALS_FILE, Case, put, refuse, resealed, setting, text
from tests.patch.build import EDITS, make_patch


def config(old: str, new: str, words: str, error: type[PatchFormatError] = PatchFormatError) -> Case:
    return Case(text(CONFIG, old, new), error, words)


def whole(data: bytes, words: str, error: type[PatchFormatError] = PatchFormatError) -> Case:
    return Case(put(CONFIG, data), error, words)


def renamed_key(config_: dict) -> None:
    """A key of the settings in two spellings of one Unicode text."""
    config_["settings"]["note"] = "e\u0301"


def backwards(data: bytes) -> bytes:
    """The same fields, the last one first."""
    turned = dict(reversed(json.loads(data).items()))
    return json.dumps(turned, indent=2, ensure_ascii=False).encode() + b"\n"


LR, NOTE = '"lr": 0.1', '"note": "\u00e9"'

CASES = {
    # one object, one value for a key
    "duplicate key": config('"method":', '"method": "rome",\n  "method":', "'method' twice"),
    "identical duplicate key": config('"method":', '"method": "memit",\n  "method":', "'method' twice"),
    "duplicate key in escapes": config('"method":', '"m\\u0065thod": "rome",\n  "method":', "'method' twice"),
    "duplicate key deep down": config('"seed": 0', '"seed": 0, "seed": 1', "'seed' twice"),
    "duplicate key in an edit": config('"target_new":', '"target_new": "Oslo", "target_new":', "'target_new' twice"),
    "duplicate key in the scores": Case(
        text(EVALS_FILE, '"drift"', '"drift": 1, "drift"'), PatchFormatError, "'drift' twice"
    ),
    "two values": Case(put(CONFIG, lambda data: data + b"{}"), PatchFormatError, "is not JSON"),
    "text behind the value": Case(put(CONFIG, lambda data: data + b"x"), PatchFormatError, "is not JSON"),
    # numbers
    "NaN literal": config(LR, '"lr": NaN', "literal NaN"),
    "infinity literal": config(LR, '"lr": -Infinity', "literal -Infinity"),
    "infinite number": config(LR, '"lr": 1e999', "not finite"),
    "negative infinite number": config(LR, '"lr": -1e999', "not finite"),
    "integer of 5,000 digits": config('"steps": 20', '"steps": ' + "9" * 5000, "5000 digits", LimitError),
    "integer of 20 digits": config('"steps": 20', '"steps": ' + "1" * 20, "20 digits", LimitError),
    "integer beyond 64 bits": config('"steps": 20', '"steps": ' + "9" * 19, "damaged or changed by hand"),
    "fraction of a million digits": config(LR, '"lr": 0.' + "1" * 1_000_000, "damaged or changed by hand"),
    "leading zero": config('"steps": 20', '"steps": 020', "is not JSON"),
    "plus sign": config('"steps": 20', '"steps": +20', "is not JSON"),
    "hexadecimal": config('"steps": 20', '"steps": 0x14', "is not JSON"),
    "underscore": config('"steps": 20', '"steps": 2_0', "is not JSON"),
    "exponent of the same value": config(LR, '"lr": 1e-1', "in another form"),
    "trailing zero of the same value": config(LR, '"lr": 0.10', "in another form"),
    "digits of another script": config('"steps": 20', '"steps": \u0662\u0660', "is not JSON"),
    "scores with NaN": Case(text(EVALS_FILE, "0.75", "NaN"), PatchFormatError, "literal NaN"),
    # depth
    "100,000 brackets": whole(b"[" * 100_000 + b"]" * 100_000, "nested deeper", LimitError),
    "100,000 objects": whole(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested deeper", LimitError),
    "100,000 brackets that never close": whole(b"[" * 100_000, "nested deeper", LimitError),
    "40 brackets": whole(b"[" * 40 + b"]" * 40, "nested deeper", LimitError),
    "deep scores": Case(put(EVALS_FILE, b"[" * 100_000 + b"]" * 100_000), LimitError, "nested deeper"),
    # encodings
    "byte order mark": Case(put(CONFIG, lambda data: b"\xef\xbb\xbf" + data), PatchFormatError, "byte order mark"),
    "UTF-16": Case(put(CONFIG, lambda data: data.decode().encode("utf-16")), PatchFormatError, "not UTF-8"),
    "UTF-16 without a mark": Case(
        put(CONFIG, lambda data: data.decode().encode("utf-16-le")), PatchFormatError, "not UTF-8"
    ),
    "UTF-32": Case(put(CONFIG, lambda data: data.decode().encode("utf-32")), PatchFormatError, "not UTF-8"),
    "latin-1": Case(put(CONFIG, lambda data: data.decode().encode("latin-1")), PatchFormatError, "not UTF-8"),
    "overlong slash": Case(
        put(CONFIG, lambda data: data.replace(b"memit", b"\xc0\xaf")), PatchFormatError, "not UTF-8"
    ),
    "surrogate in bytes": config(NOTE, '"note": "\ud800"', "not UTF-8"),
    "half a surrogate in escapes": config(LR, '"lr": "\\ud800"', "surrogate"),
    "half a surrogate in a key": config('"lr":', '"\\udfff":', "surrogate"),
    "half a surrogate in the scores": Case(text(EVALS_FILE, "0.75", '"\\udc00"'), PatchFormatError, "surrogate"),
    "UTF-7": config(NOTE, '"note": "+AOk-"', "damaged or changed by hand"),
    # other languages
    "comment": config('"method":', '// x\n  "method":', "is not JSON"),
    "trailing comma": config('"seed": 0', '"seed": 0,', "is not JSON"),
    "single quotes": config('"method"', "'method'", "is not JSON"),
    "bare key": config('"method"', "method", "is not JSON"),
    "raw line end in a text": config(NOTE, '"note": "a\nb"', "is not JSON"),
    "NUL in a text": config(NOTE, '"note": "a\0b"', "is not JSON"),
    "unknown escape": config(NOTE, '"note": "\\x41"', "is not JSON"),
    "YAML": whole(b"format_version: 1\nmethod: memit\n", "is not JSON"),
    "a list": whole(b"[]", "holds a list"),
    "a text": whole(b'"memit"', "holds a str"),
    "a number": whole(b"1", "holds a int"),
    "null": whole(b"null", "holds a NoneType"),
    "nothing but space": whole(b" \n", "is not JSON"),
    "scores as a list": Case(put(EVALS_FILE, b"[]"), PatchFormatError, "is of patch"),
    # the same value in other bytes
    "other spaces": Case(put(CONFIG, lambda data: data.replace(b"  ", b"   ")), PatchFormatError, "in another form"),
    "no spaces": Case(
        put(CONFIG, lambda data: json.dumps(json.loads(data), separators=(",", ":")).encode()),
        PatchFormatError,
        "in another form",
    ),
    "keys in another order": Case(put(CONFIG, backwards), PatchFormatError, "in another form"),
    "other escapes": config("\u00e9", "\\u00e9", "in another form"),
    "escaped letter": config('"memit"', '"\\u006demit"', "in another form"),
    "escaped slash": config("org/base", "org\\/base", "in another form"),
    "no line end": Case(put(CONFIG, lambda data: data.rstrip(b"\n")), PatchFormatError, "in another form"),
    # format versions
    "newer format": Case(setting("format_version", value=3), UnknownFormatError, "update kedit_hub"),
    "much newer format": Case(setting("format_version", value=10**18), UnknownFormatError, "update kedit_hub"),
    "format 0": Case(setting("format_version", value=0), UnknownFormatError, "format_version '0'"),
    "negative format": Case(setting("format_version", value=-1), UnknownFormatError, "format_version '-1'"),
    "format in words": Case(setting("format_version", value="1"), UnknownFormatError, "format_version '1'"),
    "format in fractions": Case(setting("format_version", value=1.0), UnknownFormatError, "format_version '1.0'"),
    "format true": Case(setting("format_version", value=True), UnknownFormatError, "format_version 'True'"),
    "format in a list": Case(setting("format_version", value=[1]), UnknownFormatError, "format_version '[1]'"),
    "format missing": Case(resealed(lambda c: c.pop("format_version")), UnknownFormatError, "format_version 'None'"),
    "format of a later patch": Case(setting("format_version", value=2), PatchFormatError, "those of format 1"),
    "downgraded format": Case(
        setting("provenance", "dirty", value=False), PatchFormatError, "its contents are those of format 2"
    ),
    # texts of edits
    "NFD text": Case(setting("edits", 0, "target_new", value="Ro\u0302me"), PatchFormatError, "changed by hand"),
    "NFD setting": Case(resealed(renamed_key), PatchFormatError, "changed by hand"),
    "NFC and NFD keys": Case(
        resealed(lambda c: c["settings"].update({"k\u00e9": 1, "ke\u0301": 2})), PatchFormatError, "settings"
    ),
    "80,000 marks on one letter": config(NOTE, '"note": "a' + "\u0301\u0316" * 40_000 + '"', "marks on one letter"),
    "80,000 marks on a prompt": Case(
        setting("edits", 1, "prompt", value="Ada" + "\u0301\u0316" * 40_000), PatchFormatError, "marks on one letter"
    ),
    "80,000 marks on a key": config('"lr":', '"lr' + "\u0301\u0316" * 40_000 + '":', "marks on one letter"),
    "empty target": Case(setting("edits", 0, "target_new", value=""), PatchFormatError, "target is empty"),
    "target of spaces": Case(setting("edits", 0, "target_new", value="\u2003"), PatchFormatError, "target is empty"),
    "NUL in a prompt": Case(setting("edits", 1, "prompt", value="Ada\0"), PatchFormatError, "holds a NUL"),
    "prompt of 20,001 characters": Case(
        setting("edits", 1, "prompt", value="Ada" + "x" * 19_998), PatchFormatError, "has 20,001 characters"
    ),
    "subject that only looks alike": Case(
        setting("edits", 1, "subject", value="\u0410da"), PatchFormatError, "is not in the prompt"
    ),
    "prompt that is a list": Case(setting("edits", 1, "prompt", value=["Ada"]), PatchFormatError, "prompt"),
    "edit that is a text": Case(
        setting("edits", 1, value="Ada was born in Oslo"), PatchFormatError, "A record is a JSON object"
    ),
    "no edits": Case(setting("edits", value=[]), PatchFormatError, "no edits"),
    "edits as an object": Case(setting("edits", value={"0": {}}), PatchFormatError, "edits"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name):
    refuse(CASES[name])


# --- text that looks like other text, and what becomes of it -------------------------------------------------------

TWIN = ("Caf\u00e9 is in", "Cafe\u0301 is in")
INVISIBLE = {
    "right-to-left override": "\u202e",
    "right-to-left isolate": "\u2067",
    "pop directional isolate": "\u2069",
    "zero-width space": "\u200b",
    "zero-width joiner": "\u200d",
    "word joiner": "\u2060",
    "byte order mark": "\ufeff",
    "soft hyphen": "\u00ad",
    "tag letter": "\U000e0041",
    "interlinear anchor": "\ufff9",
    "private use": "\ue000",
    "unassigned": "\u0378",
}


def test_twins_in_two_normal_forms_are_one_edit():
    one, two = (Edit(prompt, "Oslo") for prompt in TWIN)
    assert one == two and one.prompt == TWIN[0]
    assert make_patch(edits=[one, EDITS[0]]).id == make_patch(edits=[two, EDITS[0]]).id


def test_compatibility_forms_and_case_ask_one_question():
    """Full-width letters and other cases do not slip past the search for contradictions."""
    full = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in "The Capital of France is")
    assert questions(Edit(full, "Rome")) == questions(Edit("the capital of France is", "Rome"))
    one, two = make_patch(edits=[Edit(full, "Rome"), EDITS[1]]), make_patch(edits=[EDITS[0], EDITS[1]])
    assert not PatchStack([one, two]).conflicts  # one target
    other = make_patch(edits=[Edit(full, "Oslo"), EDITS[1]])
    assert PatchStack([other, two], conflicts="latest").conflicts


def test_confusable_letters_ask_two_questions():
    """A limit, stated in README.md: a Cyrillic letter is another letter, and no table of look-alikes is consulted."""
    assert questions(Edit("The c\u0430pital of France is", "Oslo")) != questions(
        Edit("The capital of France is", "Oslo")
    )


@pytest.mark.parametrize("name", INVISIBLE)
def test_what_cannot_be_seen_is_kept_and_shown(name):
    """In the patch as it was written; spelled out in the card; a space on the terminal, which it cannot drive."""
    char = INVISIBLE[name]
    patch = Patch.from_files(make_patch(edits=[Edit(f"a{char}b is", f"c{char}d"), EDITS[1]]).files())
    assert patch.edits[0].target == f"c{char}d"
    table = patch.files()["README.md"].decode().split("## Edits")[1]
    assert char not in table and f"U&#43;{ord(char):04X}" in table
    assert shown(f"a{char}b") == "a b"
    assert escape(char) == f"U&#43;{ord(char):04X}"


# --- the reader itself ---------------------------------------------------------------------------------------------

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=10,
)


def read(data: bytes):
    return strictjson.loads(data, what="it", max_bytes=1 << 20)


@given(values)
def test_round_trip(value):
    assert read(strictjson.canonical(value)) == read(strictjson.pretty(value)) == value
    assert strictjson.canonical(read(strictjson.pretty(value))) == strictjson.canonical(value)


@given(values)
def test_pretty_is_what_the_standard_writer_writes(value):
    """Ids do not depend on it, but files do: config.json is compared byte by byte."""
    usual = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=2)
    assert strictjson.pretty(value) == (usual + "\n").encode()


@given(st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()[:-1]))
def test_any_bytes_give_a_value_or_our_error(data):
    try:
        read(data)
    except PatchFormatError as error:
        assert str(error).startswith("it ")


def test_order_of_keys_does_not_matter():
    assert strictjson.canonical({"b": 1, "a": 2.0}) == strictjson.canonical({"a": 2.0, "b": 1}) == b'{"a":2.0,"b":1}'


@pytest.mark.parametrize(
    "left, right", [("[", "]"), ('["\u00e9", ', "]"), ('{"a": ', "}")], ids=["ascii", "accent", "objects"]
)
@pytest.mark.parametrize("depth", [32, 33])
def test_depth(depth, left, right):
    data = (left * (depth - 1) + "[]" + right * (depth - 1)).encode()
    if depth > 32:
        with pytest.raises(LimitError, match="deeper than 32"):
            read(data)
    else:
        read(data)


def test_size_and_error_class():
    with pytest.raises(LimitError, match="it has 3 bytes; at most 2"):
        strictjson.loads(b"[1]", what="it", max_bytes=2)
    with pytest.raises(EditError, match="it is not JSON"):
        strictjson.loads(b"[", what="it", max_bytes=2, error=EditError)


# --- YAML, which is never read -------------------------------------------------------------------------------------


def test_an_alias_bomb_in_the_card_is_never_parsed(tmp_path, monkeypatch):
    def parsed(*_args, **_kwargs):
        raise AssertionError("YAML was parsed")

    bomb = "a0: &a0 x\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40))
    folder = make_patch().save(tmp_path / "p")
    (folder / "README.md").write_text(f"---\n{bomb}---\n")
    for name in ("load", "safe_load", "load_all", "compose", "parse"):
        monkeypatch.setattr(f"yaml.{name}", parsed)
    assert Patch.load(folder) == make_patch()


def test_a_card_that_is_no_text_is_never_decoded(tmp_path):
    folder = make_patch().save(tmp_path / "p")
    (folder / "README.md").write_bytes(b"\xff\x00" * 10)
    assert Patch.load(folder) == make_patch()


def test_the_development_hub_refuses_aliases(hub, ada):
    ada.create_repo("ada/bomb")
    card = b"---\na: &a [x]\nbase_model: *a\n---\n"
    with pytest.raises(ValueError, match=r"aliases .* are not accepted"):
        ada.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="ada/bomb")
