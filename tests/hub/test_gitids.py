"""Ids are those that git itself computes."""

import os
import shutil
import subprocess

import pytest

from kedit_hub.hub.localhub.gitids import blob_id, commit_id, tree_ids

FILES = {"README.md": b"# p\n", "a.b": b"1", "a/c.txt": b"2", "a/b/d.bin": bytes(256), "a-z": b"", "émile/x": b"3"}


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_against_git(tmp_path):
    who = {"NAME": "ada", "EMAIL": "ada@localhub", "DATE": "1700000000 +0000"}
    env = os.environ | {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}

    def git(*arguments):
        done = subprocess.run(["git", *arguments], cwd=tmp_path, env=env, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q", "-b", "main", "--object-format=sha1")
    git("commit", "-q", "--allow-empty", "-m", "initial commit")
    first = commit_id(tree_ids({})[""], None, "ada", 1700000000, "initial commit")
    assert first == git("rev-parse", "HEAD")

    for path, data in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    git("add", "-A")
    git("commit", "-q", "-m", "Title\n\nBody")
    trees = tree_ids({path: blob_id(data) for path, data in FILES.items()})
    assert trees[""] == git("rev-parse", "HEAD^{tree}")
    assert trees["a/b"] == git("rev-parse", "HEAD:a/b") and set(trees) == {"", "a", "a/b", "émile"}
    assert commit_id(trees[""], first, "ada", 1700000000, "Title\n\nBody") == git("rev-parse", "HEAD")
