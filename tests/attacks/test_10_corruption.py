"""10 · Corruption of the same size, and truncation (huggingface_hub #3643, #4779: sizes are checked, contents are not).

Every byte is hashed on every load: from a folder, from the network, and from the cache when there is no network.
"""

import os
import random

import pytest

from kedit_hub.errors import HubError, KeditError, PatchFormatError
from kedit_hub.hub.localhub import LocalHub
from kedit_hub.hub.repo import pull, push
from kedit_hub.patch import Patch
from tests.attacks.tools import CONFIG, EVALS_FILE, TENSORS, Case, good, put, refuse
from tests.patch.build import EVALS, make_patch

FILES = (CONFIG, TENSORS, EVALS_FILE)


def zeroed(begin: float, end: float):
    """A part of a file, as shares of its length, reads as zeros: what a lost block or a sparse download leaves."""

    def change(data: bytes) -> bytes:
        low, high = int(begin * len(data)), int(end * len(data))
        return data[:low] + bytes(high - low) + data[high:]

    return change


def without(name: str):
    return lambda files: {other: data for other, data in files.items() if other != name}


CASES = {
    "no config": Case(without(CONFIG), PatchFormatError, "config.json is missing"),
    "no tensors": Case(without(TENSORS), PatchFormatError, "patch.safetensors is missing"),
    "seven bytes": Case(put(TENSORS, b"\x08" + b"\0" * 6), PatchFormatError, "cut short"),
    "cut in the length": Case(put(TENSORS, lambda data: data[:5]), PatchFormatError, "cut short"),
    "cut in the header": Case(put(TENSORS, lambda data: data[:100]), PatchFormatError, "cut short"),
    "cut behind the header": Case(
        put(TENSORS, lambda data: data[: 8 + int.from_bytes(data[:8], "little")]), PatchFormatError, "cut short"
    ),
    "cut in the tensors": Case(put(TENSORS, lambda data: data[:-1]), PatchFormatError, "cut short"),
    "cut config": Case(put(CONFIG, lambda data: data[:-10]), PatchFormatError, "not JSON"),
    "cut config by a line end": Case(put(CONFIG, lambda data: data[:-1]), PatchFormatError, "another form"),
    "cut scores": Case(put(EVALS_FILE, lambda data: data[:-3]), PatchFormatError, "not JSON"),
    "zeros in place of all tensors": Case(put(TENSORS, zeroed(0, 1)), PatchFormatError, "does not begin with"),
    "zeros in place of the last tensors": Case(put(TENSORS, zeroed(0.9, 1)), PatchFormatError, "is not what"),
    "zeros in place of the config": Case(put(CONFIG, zeroed(0, 1)), PatchFormatError, "not JSON"),
    "zeros in the config": Case(put(CONFIG, zeroed(0.5, 0.6)), PatchFormatError, "not JSON"),
    "zeros in place of the scores": Case(put(EVALS_FILE, zeroed(0, 1)), PatchFormatError, "not JSON"),
    "line ends converted": Case(
        put(CONFIG, lambda data: data.replace(b"\n", b"\r\n")), PatchFormatError, "another form"
    ),
    "line ends converted in the scores": Case(
        put(EVALS_FILE, lambda data: data.replace(b"\n", b"\r\n")), PatchFormatError, "changed by hand"
    ),
    "end reversed": Case(
        put(TENSORS, lambda data: data[:-100] + data[-100:][::-1]), PatchFormatError, "is not what the manifest"
    ),
    "tensors twice": Case(put(TENSORS, lambda data: data + data), PatchFormatError, "behind its last tensor"),
    "config twice": Case(put(CONFIG, lambda data: data + data), PatchFormatError, "not JSON"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name):
    refuse(CASES[name])


@pytest.mark.parametrize("name", FILES)
def test_cut_anywhere(name):
    files = good()
    for length in random.Random(0).sample(range(len(files[name])), 200):
        with pytest.raises(PatchFormatError):
            Patch.from_files({**files, name: files[name][:length]})


@pytest.fixture
def offline(tmp_path):
    """(arguments of pull, its reference) of a patch in the cache of a hub that is gone; and the cache."""
    with LocalHub(tmp_path / "hub") as hub:
        token = hub.create_user("ada")
        push(make_patch().replace_evals(EVALS), "ada/tower", version="1.0.0", endpoint=hub.endpoint, token=token)
        there = {"endpoint": hub.endpoint, "token": False, "cache_dir": tmp_path / "cache"}
        pull("ada/tower@v1.0.0", **there)
    assert pull("ada/tower@v1.0.0", **there) == make_patch()
    return there


def cached(there: dict, name: str):
    (link,) = there["cache_dir"].rglob(name)
    return link.resolve()


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_the_cache_is_noticed_without_a_hub(offline, name):
    blob = cached(offline, name)
    data = blob.read_bytes()
    for position in random.Random(1).sample(range(len(data)), 20):
        blob.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(HubError, match=f"cached copy of {name} .*is damaged"):
            pull("ada/tower@v1.0.0", **offline)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("left", [0, 1, 100], ids="{} bytes left".format)
def test_a_truncated_cache_is_noticed_without_a_hub(offline, name, left):
    os.truncate(cached(offline, name), left)
    with pytest.raises(HubError, match=f"cached copy of {name} .*is damaged"):
        pull("ada/tower@v1.0.0", **offline)


@pytest.mark.parametrize("name", FILES)
def test_a_cache_of_zeros_is_noticed_without_a_hub(offline, name):
    blob = cached(offline, name)
    blob.write_bytes(bytes(blob.stat().st_size))
    with pytest.raises(HubError, match=f"cached copy of {name} .*is damaged"):
        pull("ada/tower@v1.0.0", **offline)


@pytest.mark.parametrize("name", FILES)
def test_another_file_of_the_cache_under_the_name(offline, name):
    other = cached(offline, FILES[FILES.index(name) - 1])
    (link,) = offline["cache_dir"].rglob(name)
    link.unlink()
    link.symlink_to(other)
    with pytest.raises(KeditError):
        pull("ada/tower@v1.0.0", **offline)
