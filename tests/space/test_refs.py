"""A visitor's text names a public Hub repo or nothing: no path and no address is ever opened."""

import pytest

from kedit_hub.errors import HubError
from kedit_hub.hub.ref import HubRef
from space.state import hub_ref


@pytest.mark.parametrize(
    "text",
    [
        "../x", "/etc", "/etc/passwd", "./patches/one", "~/x", "~root/x", "a/../b", "a/..", "..", ".", "", " ", "x",
        "http://example.org/x", "https://example.org/a/b", "file:///etc/passwd", "hf://../x", "hf:///etc",
        "HF://a/b/../c", "//host/share", "\\\\host\\share", "C:\\x", "c:/x", "a/b/c", "datasets/a/b", "a/b@",
        "a/b@../c", "a/b@v1/../../x", "a/b@%2e%2e/x", "a/b\x00", "a\n/b", "a /b", "a/b?x=1", "a/b#x", "-a/b", "a@b/c",
        "a/b@" + "v" * 201, "a" * 97 + "/b", "１/b",
    ],
)  # fmt: skip
def test_paths_and_addresses_are_refused_with_a_sentence(text, tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubError, match=r"[Ww]rite|cannot be"):
        hub_ref(text)


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("user/repo", HubRef("user/repo")),
        (" user/repo@v1.2.0\n", HubRef("user/repo", "v1.2.0")),
        ("hf://user/repo@refs/pr/3", HubRef("user/repo", "refs/pr/3")),
        ("user/repo@" + "a" * 40, HubRef("user/repo", "a" * 40)),
    ],
)
def test_names_of_repos_are_read(text, ref):
    assert hub_ref(text) == ref


def test_a_folder_of_the_same_name_is_not_opened(tmp_path, monkeypatch):
    (tmp_path / "user" / "repo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_ref("user/repo") == HubRef("user/repo")
