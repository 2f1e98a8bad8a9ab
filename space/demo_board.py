"""A small leaderboard for the development hub of the demo: runs measured on Atlas on this machine, and one of them measured again under a
second account and key. Law: every number on it was measured here, by `bench`; nothing is written down beforehand.

    KEDIT_HUB_ENDPOINT=... HF_TOKEN=... DEMO_VERIFIER_TOKEN=... python -m space.demo_board FOLDER      # app.py starts it beside the page
"""

import os
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from huggingface_hub import HfApi

from kedit_hub.benchmarking import bench
from kedit_hub.evaluate.run import Run
from kedit_hub.hub.leaderboard import mark_verified, read, submit
from kedit_hub.patch.keys import load_key, new_key

BOARD = "me/board"
VERIFIER = "verifier"
BASE = "kedit-hub/atlas-llama"
METHODS = ("rome", "memit")
EDITS = 5  # of the test set


def seed(folder: Path, endpoint: str, token: str, verifier_token: str) -> bool:
    """Measure, submit and verify, unless that was done before; whether it was not. After an interruption it goes on where it stopped.

    folder: for runs, patches and keys. About a minute of one core.
    """
    folder.mkdir(parents=True, exist_ok=True)
    HfApi(endpoint=endpoint, token=token).create_repo(BOARD, repo_type="dataset", exist_ok=True)
    if read(BOARD, token=token, endpoint=endpoint).witnesses:
        return False
    runs = _measured(METHODS, folder / "runs")
    submit(runs, BOARD, key=_key(folder / "me.pem"), token=token, endpoint=endpoint)
    again = _measured(METHODS[:1], folder / "again")
    key = _key(folder / f"{VERIFIER}.pem")
    done = mark_verified(BOARD, again, key=key, create_pr=True, token=verifier_token, endpoint=endpoint)
    if done.pr_url is not None:
        number = int(done.pr_url.rpartition("/")[2])
        HfApi(endpoint=endpoint, token=token).merge_pull_request(BOARD, number, repo_type="dataset")
    return True


def _measured(methods: tuple[str, ...], out: Path) -> list[Run]:
    return bench(methods, ["batch"], BASE, "test", n=(EDITS,), out=out, progress=False)


def _key(file: Path) -> Ed25519PrivateKey:
    return load_key(file) if file.exists() else new_key(file)


if __name__ == "__main__":
    os.nice(10)  # the page goes before
    seed(Path(sys.argv[1]), os.environ["KEDIT_HUB_ENDPOINT"], os.environ["HF_TOKEN"], os.environ["DEMO_VERIFIER_TOKEN"])
