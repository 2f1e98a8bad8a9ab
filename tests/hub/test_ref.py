"""Names of patches."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedit_hub.errors import HubError
from kedit_hub.hub.ref import FolderRef, HubRef, parse_ref, repo_name

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "repo_id", "revision"),
    [
        ("user/repo", "user/repo", None),
        ("user/repo@v1.2.0", "user/repo", "v1.2.0"),
        (f"user/repo@{SHA}", "user/repo", SHA),
        ("user/repo@refs/pr/3", "user/repo", "refs/pr/3"),
        ("hf://user/repo", "user/repo", None),
        ("hf://user/repo@main", "user/repo", "main"),
        ("hf://user/re.po-1_x@v1.0.0-rc.1", "user/re.po-1_x", "v1.0.0-rc.1"),
        ("user/repo@feat%2Fslash", "user/repo", "feat/slash"),
    ],
)
def test_repos(text, repo_id, revision):
    ref = parse_ref(text)
    assert ref == HubRef(repo_id, revision)
    assert ref.is_pinned is (revision == SHA)
    assert str(ref) == repo_id + (f"@{revision}" if revision else "")


def test_a_folder_that_exists_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user" / "repo").mkdir(parents=True)
    assert parse_ref("user/repo") == FolderRef(Path("user/repo"))
    assert parse_ref(tmp_path) == parse_ref(str(tmp_path)) == FolderRef(tmp_path)
    assert parse_ref("./user") == FolderRef(Path("user"))
    assert parse_ref("hf://user/repo") == HubRef("user/repo")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "repo",
        "hf://repo",
        "user/repo@",
        "user/repo@../../x",
        "user/repo@/etc",
        "user/repo@v1\n",
        "user/repo@-x",
        "user/repo@v1..2",
        "user/repo@%2e%2e%2fx",
        "user/repo@v1%00",
        "user/../repo",
        "us er/repo",
        "user/repo/config.json",
        "user/repo@v1/config.json",
        "hf://datasets/user/repo",
        "hf://",
        "https://huggingface.co/user/repo",
        "./nowhere",
        "/no/such/folder",
        "a\0b",
        "x" * 5000,
        None,
        7,
    ],
    ids=ascii,
)
def test_everything_else_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubError, match="Write"):
        parse_ref(text)


@given(st.text(max_size=60))
def test_no_text_fails_in_another_way(text):
    try:
        ref = parse_ref("hf://" + text)
    except HubError:
        return
    assert isinstance(ref, HubRef) and ".." not in str(ref) and str(ref).isprintable()


def test_where_a_repo_is_wanted_a_revision_is_refused():
    assert repo_name("user/repo") == "user/repo"
    for text in ("user/repo@v1", "hf://user/repo", "repo"):
        with pytest.raises(HubError, match="Write"):
            repo_name(text)
