"""12 · Malformed safetensors. The reference reader (0.8) loads names twice, metadata keys twice, NaN, unknown fields, any name
and shape [0, 99999999999]; our own pass over the header refuses them before a tensor is touched.
"""

import json

import pytest
import torch

from kedit_hub.errors import LimitError, PatchFormatError
from kedit_hub.patch import Patch
from tests.attacks.tools import (
    DENSE,
    TENSORS,
    Case,
    entry,
    good,
    header,
    header_text,
    join,
    put,
    refuse,
    renamed,
    split,
)  # fmt: skip
from tests.patch.build import PATHS, make_patch

A, B = f"{PATHS[0]}/a", f"{PATHS[0]}/b"
SCALAR = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


def raw(text: bytes, body: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + body


def zero_sized(count: int) -> bytes:
    """`count` tensors of no bytes."""
    entries = ",".join(f'"m.x{i}/t":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(count))
    return raw(f'{{"__metadata__":{{"format":"pt"}},{entries}}}'.encode())


def shifted(entries):
    """The tensors begin 4 bytes later than they should."""
    for name, item in entries.items():
        if name != "__metadata__":
            item["data_offsets"] = [at + 4 for at in item["data_offsets"]]


def doubled(entries, body):
    """The bytes of a bfloat16 matrix as float64: a dtype that the container knows and no delta takes."""
    entries[DENSE].update(dtype="F64", shape=[2, 12])
    return entries, body


CASES = {
    # the frame
    "header of 2^64 bytes": Case(put(TENSORS, lambda data: b"\xff" * 8 + data[8:]), LimitError, "claims a header of"),
    "header of 2^63 bytes": Case(
        put(TENSORS, lambda data: b"\0" * 7 + b"\x80" + data[8:]), LimitError, "claims a header of"
    ),
    "header one byte too long": Case(
        put(TENSORS, lambda data: (len(data) - 7).to_bytes(8, "little") + data[8:]), PatchFormatError, "cut short"
    ),
    "header of no bytes": Case(put(TENSORS, bytes(8)), PatchFormatError, "does not begin with"),
    "header one byte short": Case(
        put(TENSORS, lambda data: (int.from_bytes(data[:8], "little") - 8).to_bytes(8, "little") + data[8:]),
        PatchFormatError,
        "is not JSON",
    ),
    "list as header": Case(put(TENSORS, raw(b"[]")), PatchFormatError, "does not begin with"),
    "space before the header": Case(
        put(TENSORS, lambda data: raw(b" " + json.dumps(split(data)[0]).encode(), split(data)[1])),
        PatchFormatError,
        "does not begin with",
    ),
    "byte order mark in the header": Case(
        put(TENSORS, lambda data: raw(b"\xef\xbb\xbf" + json.dumps(split(data)[0]).encode(), split(data)[1])),
        PatchFormatError,
        "does not begin with",
    ),
    "two headers": Case(header_text(lambda text: text + text), PatchFormatError, "is not JSON"),
    "NUL behind the header": Case(header_text(lambda text: text + "\0"), PatchFormatError, "is not JSON"),
    "header in latin-1": Case(put(TENSORS, raw(b'{"\xe9": 1}')), PatchFormatError, "is not UTF-8"),
    "header nested deeply": Case(
        put(TENSORS, raw(b'{"__metadata__":' + b"[" * 100_000 + b"]" * 100_000 + b"}")), LimitError, "nested deeper"
    ),
    "trailing byte": Case(put(TENSORS, lambda data: data + b"x"), PatchFormatError, "1 bytes behind"),
    "no tensor at all": Case(put(TENSORS, raw(b'{"__metadata__":{"format":"pt"}}')), PatchFormatError, "holds no tensor"),
    "9,000 tensors of no bytes": Case(put(TENSORS, zero_sized(9000)), LimitError, "holds about 9,000 tensors"),
    "100,000 tensors of no bytes": Case(put(TENSORS, zero_sized(100_000)), LimitError, "holds about 100,000 tensors"),
    "300,000 tensors of no bytes": Case(put(TENSORS, zero_sized(300_000)), LimitError, "claims a header of"),
    # one name, one tensor
    "duplicate name": Case(header_text(lambda text: f'{text[:-1]}, "{DENSE}": {SCALAR}}}'), PatchFormatError, "twice"),
    "identical duplicate": Case(
        header_text(lambda text: f'{text[:-1]}, "{DENSE}": {json.dumps(json.loads(text)[DENSE])}}}'),
        PatchFormatError,
        "twice",
    ),
    "duplicate name in escapes": Case(
        header_text(lambda text: f'{text[:-1]}, "\\u006d{DENSE[1:]}": {SCALAR}}}'), PatchFormatError, "twice"
    ),
    "NFD twin": Case(
        header_text(lambda text: f'{text[:-1]}, "mode\\u0301l/delta": {SCALAR}}}'), PatchFormatError, "plain ASCII"
    ),
    "case twin": Case(
        header_text(lambda text: f'{text[:-1]}, "{DENSE.replace("delta", "Delta")}": {SCALAR}}}'),
        PatchFormatError,
        "plain ASCII",
    ),
    "letters of another script": Case(renamed("mod\u0435l/delta"), PatchFormatError, "plain ASCII"),
    "empty name": Case(renamed(""), PatchFormatError, "plain ASCII"),
    "name of 10,000 characters": Case(renamed("m" * 10_000 + "/delta"), LimitError, "a name of 10,006 characters"),
    "metadata as a tensor": Case(renamed("__metadata__"), PatchFormatError, "exactly the metadata"),
    # metadata
    "duplicate metadata key": Case(
        header_text(lambda text: text.replace('{"format": "pt"}', '{"format": "xx", "format": "pt"}')),
        PatchFormatError,
        "'format' twice",
    ),
    "duplicate metadata": Case(
        header_text(lambda text: text[:-1] + ', "__metadata__": {"format": "pt"}}'), PatchFormatError, "twice"
    ),
    "more metadata": Case(
        header(lambda entries: entries["__metadata__"].update(base="evil")), PatchFormatError, "exactly the metadata"
    ),
    "no metadata": Case(header(lambda entries: entries.pop("__metadata__")), PatchFormatError, "exactly the metadata"),
    "metadata of another writer": Case(
        header(lambda entries: entries.update(__metadata__={"format": "tf"})), PatchFormatError, "exactly the metadata"
    ),
    "metadata that is a list": Case(
        header(lambda entries: entries.update(__metadata__=["format", "pt"])), PatchFormatError, "exactly the metadata"
    ),
    # entries
    "unknown field": Case(entry("note", "x"), PatchFormatError, "exactly dtype, shape and data_offsets"),
    "field in capitals": Case(entry("Dtype", "F32"), PatchFormatError, "exactly dtype, shape and data_offsets"),
    "field missing": Case(
        header(lambda entries: entries[DENSE].pop("shape")), PatchFormatError, "exactly dtype, shape and data_offsets"
    ),
    "entry that is a list": Case(
        header(lambda entries: entries.update({DENSE: ["BF16", [8, 12], [0, 192]]})), PatchFormatError, "exactly dtype"
    ),
    "unknown dtype": Case(entry("dtype", "F8_E4M3"), PatchFormatError, "dtype 'F8_E4M3'"),
    "dtype in small letters": Case(entry("dtype", "bf16"), PatchFormatError, "dtype 'bf16'"),
    "dtype that is a number": Case(entry("dtype", 3), PatchFormatError, "dtype 3"),
    "dtype that is a list": Case(entry("dtype", ["BF16"]), PatchFormatError, "dtype ['BF16']"),
    "dtype of another size": Case(entry("dtype", "F32"), PatchFormatError, "needs 384 bytes"),
    "empty tensor": Case(entry("shape", [0, 99999999999]), PatchFormatError, "an empty tensor"),
    "shape overflow": Case(entry("shape", [2**62, 4]), PatchFormatError, "needs"),
    "shape that overflows to the right size": Case(entry("shape", [2**32, 2**32, 96]), PatchFormatError, "needs"),
    "shape of 5,000 digits": Case(
        header_text(lambda text: text.replace("[8, 12]", f"[{'9' * 5000}, 12]")), LimitError, "5000 digits"
    ),
    "negative shape": Case(entry("shape", [-8, -12]), PatchFormatError, "not whole numbers"),
    "fraction as a size": Case(entry("shape", [8.0, 12]), PatchFormatError, "not whole numbers"),
    "true as a size": Case(entry("shape", [True, 96]), PatchFormatError, "not whole numbers"),
    "text as a size": Case(entry("shape", ["8", 12]), PatchFormatError, "not whole numbers"),
    "many dimensions": Case(entry("shape", [1] * 100 + [96]), PatchFormatError, "not whole numbers"),
    "shape that is an object": Case(entry("shape", {"0": 8, "1": 12}), PatchFormatError, "not whole numbers"),
    "scalar": Case(entry("shape", []), PatchFormatError, "needs"),
    "offsets backwards": Case(entry("data_offsets", [10, 0]), PatchFormatError, "needs"),
    "negative offsets": Case(entry("data_offsets", [-192, 0]), PatchFormatError, "not whole numbers"),
    "three offsets": Case(entry("data_offsets", [0, 192, 192]), PatchFormatError, "not whole numbers"),
    "offsets in fractions": Case(entry("data_offsets", [0.0, 192.0]), PatchFormatError, "not whole numbers"),
    "offsets behind the end": Case(entry("data_offsets", [2**40, 2**40 + 192]), PatchFormatError, "leaves a gap"),
    # the body
    "overlap": Case(
        header(lambda entries: entries[B].update(data_offsets=entries[A]["data_offsets"], shape=[12, 2])),
        PatchFormatError,
        "overlaps",
    ),
    "overlap by four bytes": Case(
        header(lambda entries: entries[B].update(data_offsets=[at - 4 for at in entries[B]["data_offsets"]])),
        PatchFormatError,
        "overlaps the tensor before it: it begins at",
    ),
    "gap": Case(header(lambda entries: entries.pop(A)), PatchFormatError, "gap"),
    "gap at the beginning": Case(header(shifted), PatchFormatError, "leaves a gap before it: it begins at 4, not 0"),
    "tensor of no module": Case(renamed("delta"), PatchFormatError, "disagree on which tensors"),
    "double precision": Case(put(TENSORS, lambda data: join(*doubled(*split(data)))), PatchFormatError, "dense takes F32"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_refused(name):
    refuse(CASES[name])


def test_padding_changes_the_file_and_not_the_patch():
    """Spaces behind the header are legal; they are no part of the identity, and a signature covers them."""
    entries, body = split(good()[TENSORS])
    padded = join(json.dumps(entries) + " " * 64, body)
    assert padded != good()[TENSORS]
    assert Patch.from_files({**good(), TENSORS: padded}) == make_patch()


def test_the_reference_reader_is_never_asked_about_a_bad_header(monkeypatch):
    def asked(_data):
        raise AssertionError("the header was not checked first")

    monkeypatch.setattr("safetensors.torch.load", asked)
    for case in CASES.values():
        if "dense takes" in case.words or "disagree" in case.words:
            continue
        with pytest.raises(case.error):
            Patch.from_files(case.files())


def test_denormals_are_numbers():
    """The smallest float32 above 0 survives: nothing is flushed, so digests agree everywhere."""
    patch = make_patch(deltas={PATHS[2]: type(make_patch().deltas[PATHS[2]])(torch.full((8, 12), 1e-45))})
    again = Patch.from_files(patch.files())
    assert again == patch and float(again.deltas[PATHS[2]].delta[0, 0]) > 0
