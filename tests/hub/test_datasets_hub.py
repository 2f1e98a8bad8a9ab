"""Data sets of a hub: one file at one commit, from the cache the second time, and never a script."""

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants

from kedit_hub.errors import EditError, HubError, LimitError
from kedit_hub.hub import datasets
from kedit_hub.hub.catalogue import DATASETS, Source
from kedit_hub.hub.datasets import read_dataset
from kedit_hub.hub.localhub import LocalHub
from kedit_hub.limits import DEFAULT

RECORDS = Path(__file__).parents[1] / "fixtures" / "records"
GOOD = (RECORDS / "knowedit-zsre.json").read_bytes()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def put(hub):
    """put({path: bytes}) -> commit, in the data set repo ada/facts."""
    ada = HfApi(endpoint=hub.endpoint, token=hub.create_user("ada"))
    ada.create_repo("ada/facts", repo_type="dataset")

    def put(files):
        operations = [CommitOperationAdd(path, data) for path, data in files.items()]
        return ada.create_commit("ada/facts", operations, commit_message="records", repo_type="dataset").oid

    return put


def read(hub, name="ada/facts", **how):
    return read_dataset(name, token=False, endpoint=hub.endpoint, **how)


def test_the_only_file_of_a_repo_at_a_commit(hub, put):
    commit = put({"facts.py": b"raise SystemExit", "data/facts.json": GOOD})
    loaded = read(hub)
    assert (loaded.id, loaded.revision, loaded.file) == ("ada/facts", commit, "data/facts.json")
    assert len(loaded.edits) == 2
    assert loaded.source() == {"id": "ada/facts", "revision": commit, "sha256": loaded.sha256}


def test_a_commit_stays_what_it_was(hub, put):
    old = put({"facts.json": GOOD})
    put({"facts.json": b"[]"})
    assert len(read(hub, revision=old).edits) == 2 and read(hub).edits == []


def test_which_file(hub, put):
    put({"train.json": b"[]", "data/test-00000.json": GOOD})
    assert len(read(hub, split="test").edits) == 2
    assert read(hub, split="train.json").edits == []
    with pytest.raises(EditError, match=r"2 files of records to choose from: 'data/test-00000.json', 'train.json'"):
        read(hub)
    with pytest.raises(EditError, match="no file for the split 'dev'"):
        read(hub, split="dev")
    with pytest.raises(EditError, match=r"has no file 'dev.json' at [0-9a-f]{40}"):
        read(hub, split="dev.json")


def test_a_name_of_the_catalogue(hub, put, monkeypatch):
    put({"a/test-17.json": GOOD, "a/train-17.json": b"[]"})
    known = Source("", "easyedit", "", "", "ada/facts", {"test": "a/test-*.json", "train": "a/train-17.json"})
    monkeypatch.setattr(datasets, "DATASETS", {**DATASETS, "facts": known})
    first = read(hub, "facts")
    assert (first.split, first.file, len(first.edits)) == ("test", "a/test-17.json", 2)
    assert read(hub, "facts", split="train").edits == []
    with pytest.raises(EditError, match=r"no split 'dev'\. It has test, train"):
        read(hub, "facts", split="dev")


def test_without_a_hub_what_was_read_is_read_again(tmp_path, hub, put):
    put({"facts.json": GOOD})
    first = read(hub, split="facts.json")
    hub.__exit__(None, None, None)
    again = read(hub, split="facts.json")
    assert again.edits == first.edits and again.revision == first.revision
    with pytest.raises(HubError, match="cannot be reached"):
        read(hub, split="other.json")


def test_a_damaged_copy_in_the_cache(tmp_path, hub, put):
    put({"facts.json": GOOD})
    read(hub)
    [copy] = [path for path in (tmp_path / "cache").rglob("blobs/*") if path.is_file()]
    copy.chmod(0o644)
    copy.write_bytes(GOOD.replace(b"Noctidae", b"Noctidaf"))
    with pytest.raises(HubError, match="damaged"):
        read(hub)


def test_too_large_a_file_is_not_fetched(tmp_path, hub, put, monkeypatch):
    put({"facts.json": GOOD})
    monkeypatch.setattr(datasets, "DEFAULT", replace(DEFAULT, max_records_bytes=100))
    with pytest.raises(LimitError, match="at most 100 are read"):
        read(hub)
    assert not [path for path in (tmp_path / "cache").rglob("blobs/*") if path.is_file()]


def test_no_such_repo(hub):
    with pytest.raises(HubError, match="no repo 'ada/nothing'"):
        read(hub, "ada/nothing")
