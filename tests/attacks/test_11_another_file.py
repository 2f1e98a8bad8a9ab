"""11 · A Git LFS pointer, an error page or a login page in place of the file: said in words, not as a parse error."""

import gzip

import pytest

from kedit_hub.errors import LimitError, PatchFormatError, UnknownFormatError
from tests.attacks.tools import CONFIG, EVALS_FILE, TENSORS, Case, put, refuse

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n"
PAGES = {
    "page": b"<!DOCTYPE html><html><body>Not Found</body></html>",
    "page in capitals": b"<!doctype HTML>",
    "page without a doctype": b"<html lang=en>",
    "page behind lines": b"\n\n  <HTML>",
    "page that begins with its head": b"<head><title>Log in</title></head>",
    "XML error": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
}
NAMES = {CONFIG: "config", TENSORS: "tensors", EVALS_FILE: "scores"}

CASES = {
    **{f"empty {NAMES[n]}": Case(put(n, b""), PatchFormatError, f"{n} is empty") for n in NAMES},
    **{f"pointer as {NAMES[n]}": Case(put(n, POINTER), PatchFormatError, f"{n} is a Git LFS pointer") for n in NAMES},
    **{
        f"{page} as {NAMES[name]}": Case(put(name, data), PatchFormatError, f"{name} is a web page")
        for page, data in PAGES.items()
        for name in NAMES
    },
    "error in JSON as config": Case(
        put(CONFIG, b'{"error":"Repository not found"}'), UnknownFormatError, "this is not a patch"
    ),
    "error in JSON as tensors": Case(put(TENSORS, b'{"error":"Not found"}'), LimitError, "claims a header of"),
    "error in JSON as scores": Case(put(EVALS_FILE, b'{"error":"Not found"}'), PatchFormatError, "is of patch 'None'"),
    "a sentence": Case(put(TENSORS, b"Too many requests"), LimitError, "claims a header of"),
    "a sentence as config": Case(put(CONFIG, b"Too many requests"), PatchFormatError, "config.json is not JSON"),
    "compressed config": Case(put(CONFIG, lambda data: gzip.compress(data, mtime=0)), PatchFormatError, "not UTF-8"),
    "compressed tensors": Case(put(TENSORS, lambda data: gzip.compress(data, mtime=0)), PatchFormatError, "cut short"),
    "tensors as config": Case(lambda files: {**files, CONFIG: files[TENSORS]}, PatchFormatError, "not UTF-8"),
    "config as tensors": Case(lambda files: {**files, TENSORS: files[CONFIG]}, LimitError, "claims a header of"),
    "config as scores": Case(
        lambda files: {**files, EVALS_FILE: files[CONFIG]}, PatchFormatError, "is of patch 'None'"
    ),
    "card as config": Case(lambda files: {**files, CONFIG: files["README.md"]}, PatchFormatError, "not JSON"),
    "a GGUF file": Case(put(TENSORS, b"GGUF\x03\0\0\0" + bytes(64)), LimitError, "claims a header of"),
    "an HDF5 file": Case(put(TENSORS, b"\x89HDF\r\n\x1a\n" + bytes(64)), LimitError, "claims a header of"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name):
    refuse(CASES[name])
