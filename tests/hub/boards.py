"""Runs, files and keys for tests of the leaderboard. No model is run: the numbers are given."""

from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kedit_hub.evaluate.run import Run
from kedit_hub.hub.leaderboard.contents import Contents, Listed, admit
from kedit_hub.hub.leaderboard.submission import pack, sign, signature_path
from kedit_hub.hub.localhub.gitids import blob_id

BOARD = "lab/board"
ADA, BOB, EVE = (Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in (1, 2, 3))


def sheet(score: float, width: float = 0.1) -> dict[str, Any]:
    """The averages of one protocol, all of them `score`."""
    low, high = max(0.0, score - width), min(1.0, score + width)
    return {
        "reliability": score, "generalization": score, "locality": {"neighbour": score}, "portability": {}, "score": score,
        "interval": {"reliability": [low, high], "generalization": [low, high], "locality": {"neighbour": [low, high]}},
        "n": {"reliability": {"edits": 10, "scored": 10, "dropped": {}}},
    }  # fmt: skip


def run(score: float = 0.5, method: str = "rome", **changes: Any) -> Run:
    """`changes` replace fields; those of base, dataset and efficiency are merged into them."""
    record: dict[str, Any] = {
        "suite": "batch",
        "method": method,
        "mode": "gated",
        "base": {"id": "org/model", "model_type": "llama", "parameters": 5_000_000, "dtype": "float32"},
        "dataset": {"id": "example/twin-cities", "sha256": "b" * 64},
        "n": 10,
        "batch_size": 10,
        "seed": 0,
        "order_seed": 0,
        "settings": {"layer": 3},
        "scores": {
            "protocols": {"tf-token": sheet(min(1.0, score + 0.1)), "generate": sheet(score)},
            "drift": {"kl": 0.1},
        },
        "efficiency": {"edit_cpu_s": 0.2, "edit_wall_s": 0.1, "train_s": 0.0, "artifact_bytes": 4096},
    }
    for name, value in changes.items():
        merged = name in ("base", "dataset", "efficiency")
        record[name] = {**record[name], **value} if merged else value
    return Run.model_validate(record)


def listed(path: str, data: bytes, place: int = 0, authors: tuple[str, ...] = ("ada",)) -> tuple[Listed, bytes]:
    """A file as the commit number `place` put it there."""
    commit = f"{place:040x}"
    return Listed(path, len(data), blob_id(data), commit, place, "2026-01-01T00:00:00+00:00", authors), data


def submitted(
    *runs: Run, key: Any = None, place: int = 0, authors: tuple[str, ...] = ("ada",), board: str = BOARD
) -> list[tuple[Listed, bytes]]:
    """The file or files of one submission."""
    packed, _ = pack(runs)
    files = [listed(packed.path, packed.data, place, authors)]
    if key is not None:
        files.append(listed(signature_path(packed.digest), sign(packed.digest, key, board), place, authors))
    return files


def raw(data: bytes, place: int = 0) -> tuple[Listed, bytes]:
    """Any bytes, under the name that a submission of these bytes has."""
    return listed(f"submissions/{sha256(data).hexdigest()}.jsonl", data, place)


def contents(*files: tuple[Listed, bytes]) -> Contents:
    return admit(BOARD, "c" * 40, files)
