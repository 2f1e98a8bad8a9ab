"""File names that could mean something to a file system are refused, by the hub itself: clients need not be polite."""

import base64
import json

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kedit_hub.hub.localhub.names import check_path
from kedit_hub.hub.localhub.refusal import Refusal

HOSTILE = [
    "../up.txt", "a/../../up.txt", "/etc/passwd", "a//b", "a/./b", "a/", ".", "", "a\\b", "..\\up.txt", "C:/x", "c:x",
    "//host/share", "nul\0byte", "line\nbreak", "a/.git/config", ".GIT/config", ".git", "git~1/x", "a/.git./x", "x. ",
    "stream.txt:hidden", "CON", "aux.json", "a/com1", "bidi\u202e.txt", "e\u0301.txt", "x" * 600, "\ud800", "a?b", "*",
]  # fmt: skip


def commit(hub, token, operations, path="/api/models/ada/patch/commit/main"):
    lines = [{"key": "header", "value": {"summary": "s"}}, *operations]
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    return httpx2.post(hub.endpoint + path, content=body, headers={"Authorization": f"Bearer {token}"})


def file(path, data=b"x"):
    return {"key": "file", "value": {"path": path, "content": base64.b64encode(data).decode(), "encoding": "base64"}}


@pytest.mark.parametrize("path", HOSTILE, ids=ascii)
def test_hostile_names_are_refused(hub, ada, path):
    ada.create_repo("ada/patch")
    before = ada.model_info("ada/patch").sha
    answer = commit(hub, ada.token, [file("good.txt"), file(path)])
    assert answer.status_code == 400, answer.text
    assert ada.model_info("ada/patch").sha == before
    assert sorted(p.name for p in hub.root.iterdir() if not p.name.startswith("hub.sqlite3")) == [
        "blobs",
        "staging",
        "tokens.json",
    ]
    assert list((hub.root / "staging").iterdir()) == []


@pytest.mark.parametrize(
    "paths", [("a", "a/b"), ("a/b/c", "a/b"), ("README.md", "readme.md"), ("A", "a/b")], ids="+".join
)
def test_names_that_exclude_each_other(hub, ada, paths):
    ada.create_repo("ada/patch")
    assert commit(hub, ada.token, [file(path) for path in paths]).status_code == 400
    assert commit(hub, ada.token, [file(paths[0])]).status_code == 200
    assert commit(hub, ada.token, [file(paths[1])]).status_code == 400


@pytest.mark.parametrize("name", ["..", "a..b", "a--b", ".a", "a.git", "a b", "a/b", "", "x" * 97, "é"], ids=ascii)
def test_hostile_repo_names_are_refused(hub, ada, name):
    headers = {"Authorization": f"Bearer {ada.token}"}
    answer = httpx2.post(f"{hub.endpoint}/api/repos/create", json={"name": name}, headers=headers)
    assert answer.status_code == 400
    assert list(ada.list_models()) == []


def test_traversal_in_addresses_reads_nothing(hub, ada):
    ada.create_repo("ada/patch")
    for path in ("..%2F..%2Ftokens.json", "%2Fetc%2Fpasswd", "..%5Ctokens.json", "%00", "%ff"):
        answer = httpx2.get(f"{hub.endpoint}/ada/patch/resolve/main/{path}")
        assert answer.status_code in (400, 404) and b"sha256" not in answer.content and b"root:" not in answer.content


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(), max_size=40))
def test_an_accepted_path_is_harmless(path):
    try:
        check_path(path, 512)
    except Refusal:
        return
    pieces = path.split("/")
    assert path.encode() and not path.startswith("/") and "\\" not in path and ":" not in path
    assert all(piece.strip(". ") and piece.casefold() != ".git" and piece.isprintable() for piece in pieces)
