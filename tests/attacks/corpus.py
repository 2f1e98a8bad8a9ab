"""Hostile patch files: {name: (attack, error, words in its message)}. An attack maps good files to hostile ones."""

import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import torch

from kedit_hub import strictjson
from kedit_hub.errors import KeditError, LimitError, PatchFormatError, UnknownFormatError
from tests.patch.build import EVALS, PATHS, make_patch

Files = dict[str, bytes]
CONFIG, TENSORS, EVALS_FILE = "config.json", "patch.safetensors", "evals.json"


def good() -> Files:
    return make_patch().replace_evals(EVALS).files()


# --- ways to be hostile -------------------------------------------------------------------------------------------


def put(name: str, data: bytes | Callable[[bytes], bytes]) -> Callable[[Files], Files]:
    return lambda files: files | {name: data(files[name]) if callable(data) else data}


def text(name: str, old: str, new: str) -> Callable[[Files], Files]:
    """Replace the first occurrence of `old`, which must be there."""

    def attack(data: bytes) -> bytes:
        assert old.encode() in data, old
        return data.replace(old.encode(), new.encode("utf-8", "surrogatepass"), 1)

    return put(name, attack)


def resealed(change: Callable[[dict[str, Any]], None]) -> Callable[[Files], Files]:
    """Change the parsed config and give it the id that its new contents have."""

    def attack(data: bytes) -> bytes:
        config = json.loads(data)
        del config["id"]
        change(config)
        seal = hashlib.sha256(b"kedit patch 1\n" + strictjson.canonical(config)).hexdigest()
        return strictjson.pretty({**config, "id": seal})

    return put(CONFIG, attack)


def setting(*keys: Any, value: Any) -> Callable[[Files], Files]:
    """Resealed: config[keys[0]][keys[1]]... = value."""

    def change(config: dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = value

    return resealed(change)


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: dict[str, Any] | str, body: bytes) -> bytes:
    encoded = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(encoded).to_bytes(8, "little") + encoded + body


def header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Files], Files]:
    """Change the parsed safetensors header in place."""

    def attack(data: bytes) -> bytes:
        entries, body = split(data)
        change(entries)
        return join(entries, body)

    return put(TENSORS, attack)


def header_text(change: Callable[[str], str]) -> Callable[[Files], Files]:
    def attack(data: bytes) -> bytes:
        entries, body = split(data)
        return join(change(json.dumps(entries)), body)

    return put(TENSORS, attack)


def renamed(name: str) -> Callable[[Files], Files]:
    return header(lambda entries: entries.update({name: entries.pop(DENSE)}))


def entry(name: str, value: Any) -> Callable[[Files], Files]:
    return header(lambda entries: entries[DENSE].update({name: value}))


def values(fill: float) -> Callable[[Files], Files]:
    """Overwrite the first float32 of one tensor."""

    def attack(data: bytes) -> bytes:
        entries, body = split(data)
        at = entries[f"{PATHS[1]}/keys"]["data_offsets"][0]
        return join(entries, body[:at] + torch.tensor([fill]).numpy().tobytes() + body[at + 4 :])

    return put(TENSORS, attack)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps([1]))
    return buffer.getvalue()


DENSE = f"{PATHS[2]}/delta"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n"
PAGE = b"<!DOCTYPE html><html><body>Not Found</body></html>"

ATTACKS: dict[str, tuple[Callable[[Files], Files], type[KeditError], str]] = {
    # files that are something else
    "empty tensors": (put(TENSORS, b""), PatchFormatError, "patch.safetensors is empty"),
    "empty config": (put(CONFIG, b""), PatchFormatError, "config.json is empty"),
    "empty evals": (put(EVALS_FILE, b""), PatchFormatError, "evals.json is empty"),
    "lfs pointer": (put(TENSORS, POINTER), PatchFormatError, "Git LFS pointer"),
    "lfs pointer as config": (put(CONFIG, POINTER), PatchFormatError, "Git LFS pointer"),
    "html page": (put(TENSORS, PAGE), PatchFormatError, "web page"),
    "html page as config": (put(CONFIG, b"\n\n" + PAGE), PatchFormatError, "web page"),
    "pickle": (put(TENSORS, pickle.dumps([1])), PatchFormatError, "pickle or zip"),
    "torch zip": (put(TENSORS, zipped()), PatchFormatError, "pickle or zip"),
    "no tensors": (lambda files: {CONFIG: files[CONFIG]}, PatchFormatError, "patch.safetensors is missing"),
    "no config": (lambda files: {TENSORS: files[TENSORS]}, PatchFormatError, "config.json is missing"),
    # layout of the safetensors file
    "seven bytes": (put(TENSORS, b"\x08" + b"\0" * 6), PatchFormatError, "cut short"),
    "cut in header": (put(TENSORS, lambda data: data[:100]), PatchFormatError, "cut short"),
    "cut in body": (put(TENSORS, lambda data: data[:-1]), PatchFormatError, "cut short"),
    "trailing bytes": (put(TENSORS, lambda data: data + b"x"), PatchFormatError, "1 bytes behind"),
    "huge header": (put(TENSORS, lambda data: b"\xff" * 8 + data[8:]), LimitError, "header of"),
    "not json": (put(TENSORS, join("[]", b"")), PatchFormatError, "does not begin with"),
    "no tensor at all": (
        put(TENSORS, join('{"__metadata__":{"format":"pt"}}', b"")),
        PatchFormatError,
        "holds no tensor",
    ),
    "duplicate name": (
        header_text(lambda head: head[:-1] + f', "{DENSE}": {{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}'),
        PatchFormatError,
        "twice",
    ),
    "duplicate metadata key": (
        header_text(lambda head: head.replace('{"format": "pt"}', '{"format": "xx", "format": "pt"}')),
        PatchFormatError,
        "'format' twice",
    ),
    "duplicate metadata": (
        header_text(lambda head: head[:-1] + ', "__metadata__": {"format": "pt"}}'),
        PatchFormatError,
        "twice",
    ),
    "more metadata": (
        header(lambda entries: entries["__metadata__"].update(base="evil")),
        PatchFormatError,
        "exactly the metadata",
    ),
    "no metadata": (header(lambda entries: entries.pop("__metadata__")), PatchFormatError, "exactly the metadata"),
    "unknown header field": (entry("note", "x"), PatchFormatError, "exactly dtype, shape and data_offsets"),
    "unknown dtype": (entry("dtype", "F8_E4M3"), PatchFormatError, "dtype 'F8_E4M3'"),
    "dtype of another size": (entry("dtype", "F32"), PatchFormatError, "needs 384 bytes"),
    "empty tensor": (entry("shape", [0, 99999999999]), PatchFormatError, "an empty tensor"),
    "shape overflow": (entry("shape", [2**62, 4]), PatchFormatError, "needs"),
    "negative shape": (entry("shape", [-8, -12]), PatchFormatError, "not whole numbers"),
    "true as a size": (entry("shape", [True, 96]), PatchFormatError, "not whole numbers"),
    "many dimensions": (entry("shape", [1] * 100 + [96]), PatchFormatError, "not whole numbers"),
    "offsets backwards": (entry("data_offsets", [10, 0]), PatchFormatError, "needs"),
    "overlap": (
        header(
            lambda entries: entries[f"{PATHS[0]}/b"].update(
                data_offsets=entries[f"{PATHS[0]}/a"]["data_offsets"], shape=[12, 2]
            )
        ),
        PatchFormatError,
        "overlaps",
    ),
    "gap": (header(lambda entries: entries.pop(f"{PATHS[0]}/a")), PatchFormatError, "gap"),
    "traversal in a tensor name": (renamed("../../etc/passwd"), PatchFormatError, "plain ASCII"),
    "absolute tensor name": (renamed("/etc/passwd"), PatchFormatError, "plain ASCII"),
    "drive in a tensor name": (renamed("C:\\x"), PatchFormatError, "plain ASCII"),
    "NUL in a tensor name": (renamed("model\0/delta"), PatchFormatError, "plain ASCII"),
    "letters of another script": (renamed("mod\u0435l/delta"), PatchFormatError, "plain ASCII"),
    "dunder in a tensor name": (renamed("model.__class__/delta"), PatchFormatError, "plain ASCII"),
    "line end in a tensor name": (renamed(DENSE + "\n"), PatchFormatError, "plain ASCII"),
    "another tensor name": (renamed("model.x/delta"), PatchFormatError, "disagree on which tensors"),
    "NaN": (values(float("nan")), PatchFormatError, "NaN or infinity"),
    "infinity": (values(float("-inf")), PatchFormatError, "NaN or infinity"),
    "another value": (values(3.0), PatchFormatError, "is not what the manifest"),
    "too large a value": (values(2e6), LimitError, "values up to"),
    # JSON
    "duplicate key": (text(CONFIG, '"method":', '"method": "rome",\n  "method":'), PatchFormatError, "'method' twice"),
    "NaN literal": (text(CONFIG, '"lr": 0.1', '"lr": NaN'), PatchFormatError, "literal NaN"),
    "infinite number": (text(CONFIG, '"lr": 0.1', '"lr": 1e999'), PatchFormatError, "not finite"),
    "huge integer": (text(CONFIG, '"steps": 20', '"steps": ' + "9" * 5000), LimitError, "5000 digits"),
    "deep": (put(CONFIG, b"[" * 100_000 + b"]" * 100_000), LimitError, "nested deeper"),
    "deep but parsable": (put(CONFIG, b"[" * 40 + b"]" * 40), LimitError, "nested deeper"),
    "byte order mark": (put(CONFIG, lambda data: b"\xef\xbb\xbf" + data), PatchFormatError, "byte order mark"),
    "utf-16": (put(CONFIG, lambda data: data.decode().encode("utf-16")), PatchFormatError, "not UTF-8"),
    "half a surrogate": (text(CONFIG, '"lr": 0.1', '"lr": "\\ud800"'), PatchFormatError, "surrogate"),
    "cut config": (put(CONFIG, lambda data: data[:-10]), PatchFormatError, "not JSON"),
    "a list": (put(CONFIG, b"[]"), PatchFormatError, "holds a list"),
    "an adapter of another tool": (put(CONFIG, b'{"peft_type": "LORA"}'), UnknownFormatError, "this is not a patch"),
    "other spaces": (put(CONFIG, lambda data: data.replace(b"\n", b"\r\n")), PatchFormatError, "another form"),
    "other escapes": (text(CONFIG, "\u00e9", "\\u00e9"), PatchFormatError, "another form"),
    "not resealed": (text(CONFIG, '"Rome"', '"Oslo"'), PatchFormatError, "damaged or changed by hand"),
    "no id": (put(CONFIG, b'{"format_version": 1}'), PatchFormatError, "not a valid manifest"),
    # manifest
    "newer format": (setting("format_version", value=3), UnknownFormatError, "update kedit_hub"),
    "format of a later patch": (setting("format_version", value=2), PatchFormatError, "those of format 1"),
    "downgraded format": (
        setting("provenance", "dirty", value=False),
        PatchFormatError,
        "has format_version 1, its contents are those of format 2",
    ),
    "format version in words": (setting("format_version", value="1"), UnknownFormatError, "format_version '1'"),
    "format version true": (setting("format_version", value=True), UnknownFormatError, "format_version 'True'"),
    "unknown kind": (setting("modules", PATHS[0], "kind", value="pickle"), UnknownFormatError, "'pickle'"),
    "kind names a class": (setting("modules", PATHS[0], "kind", value="os.system"), UnknownFormatError, "'os.system'"),
    "kind of other tensors": (setting("modules", PATHS[0], "kind", value="dense"), PatchFormatError, "it needs"),
    "unknown field": (setting("auto_map", value={"a": "b.c"}), PatchFormatError, "auto_map: Extra inputs"),
    "unknown field deep down": (
        setting("base", "trust_remote_code", value=True),
        PatchFormatError,
        "trust_remote_code",
    ),
    "unknown field in an edit": (setting("edits", 0, "template", value="{{x}}"), PatchFormatError, "'template'"),
    "empty target": (setting("edits", 0, "target_new", value=""), PatchFormatError, "target is empty"),
    "edit in another form": (setting("edits", 0, "paraphrases", value=[]), PatchFormatError, "changed by hand"),
    "local path as base": (setting("base", "id", value="/etc/passwd"), PatchFormatError, "not a path"),
    "traversal as base": (setting("base", "id", value="../../model"), PatchFormatError, "not a path"),
    "line end in base": (setting("base", "id", value="org/base\n"), PatchFormatError, "not a path"),
    "branch as revision": (setting("base", "revision", value="main"), PatchFormatError, "40 hex digits"),
    "traversal in gate module": (
        setting("modules", PATHS[1], "gate_module", value="a/../b"),
        PatchFormatError,
        "module path",
    ),
    "dunder in gate module": (
        setting("modules", PATHS[1], "gate_module", value="model.__init__"),
        PatchFormatError,
        "module path",
    ),
    "site unknown": (setting("modules", PATHS[1], "site", value="everywhere"), PatchFormatError, "site"),
    "site missing": (resealed(lambda config: config["modules"][PATHS[1]].pop("site")), PatchFormatError, "must state"),
    "site on a dense delta": (setting("modules", PATHS[2], "site", value="answer"), PatchFormatError, "it needs"),
    "wrong layer": (setting("modules", PATHS[2], "layer", value=0), PatchFormatError, "said to be in layer 0"),
    "wrong shape": (
        setting("modules", PATHS[2], "shape", value=[12, 8]),
        PatchFormatError,
        "its fingerprint has another",
    ),
    "negative shape in config": (
        setting("modules", PATHS[2], "shape", value=[-8, 12]),
        PatchFormatError,
        "greater than",
    ),
    "no fingerprint": (
        resealed(lambda config: config["base"]["fingerprint"].pop(PATHS[0])),
        PatchFormatError,
        "base.fingerprint lacks",
    ),
    "digest of another tensor": (
        setting("modules", PATHS[2], "tensors", "delta", "sha256", value="0" * 64),
        PatchFormatError,
        f"tensor {PATHS[2]}/delta is not what the manifest",
    ),
    "dtype of another tensor": (
        setting("modules", PATHS[2], "tensors", "delta", "dtype", value="F16"),
        PatchFormatError,
        "is not what the manifest",
    ),
    "tensor too many": (
        setting("modules", PATHS[2], "tensors", "more", value={"dtype": "F32", "shape": [1], "sha256": "0" * 64}),
        PatchFormatError,
        "disagree on which tensors",
    ),
    "row of an edit that is not there": (
        resealed(lambda config: config["edits"].pop()),
        PatchFormatError,
        "it must lie in 0..0",
    ),
    "settings with code": (setting("settings", "f", value={"__reduce__": "x"}), PatchFormatError, "settings.f"),
    "time of day": (setting("provenance", "time", value="2024-01-01"), PatchFormatError, "provenance.time"),
    "requires by name": (setting("requires", value=["user/patch"]), PatchFormatError, "requires.0"),
    "requires unsorted": (setting("requires", value=["b" * 64, "a" * 64]), PatchFormatError, "sorted"),
    # scores
    "scores of another patch": (text(EVALS_FILE, '"patch_id": "', '"patch_id": "0'), PatchFormatError, "is of patch"),
    "better scores": (text(EVALS_FILE, "0.75", "1.0"), PatchFormatError, "changed by hand"),
    "scores twice": (text(EVALS_FILE, '"drift"', '"drift": 1, "drift"'), PatchFormatError, "'drift' twice"),
    "scores as a list": (put(EVALS_FILE, b"[]"), PatchFormatError, "is of patch"),
}
