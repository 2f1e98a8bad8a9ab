"""Promise 7: the same input gives the same bytes, in another folder, locale, hash seed, number of threads and order of
tensors. Four processes here; 100 in benchmarks/soak.py.
"""

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from tests.promises import artifact

ROOT = Path(__file__).resolve().parents[2]
WORLDS = {
    "another folder and locale": {"LC_ALL": "C", "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1", "ORDER": "0"},
    "another hash seed": {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "1", "ORDER": "1"},
    "two threads": {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "2", "ORDER": "2"},
    "another time zone and home": {"TZ": "Asia/Tokyo", "LANG": "tr_TR.UTF-8", "HOME": "/nonexistent", "ORDER": "3"},
}


@pytest.fixture(scope="module")
def expected():
    return artifact.digests(order=0)


def test_it_is_no_trivial_artifact(expected):
    assert set(expected) == {"README.md", "config.json", "evals.json", "patch.safetensors", "signature.json"}
    assert expected["config.json"] != sha256(b"").hexdigest()


@pytest.mark.parametrize("world", WORLDS)
def test_in_another_world(expected, tmp_path, world):
    env = {**os.environ, "PYTHONPATH": str(ROOT), **WORLDS[world]}
    command = [sys.executable, "-m", "tests.promises.artifact"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == expected


@pytest.mark.parametrize("order", [1, 2, 3])
def test_in_another_order(expected, order):
    assert artifact.digests(order=order) == expected
