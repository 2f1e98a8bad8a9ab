"""A reader of patches written from docs/FORMAT.md alone: plain Python and NumPy, nothing of kedit_hub.

    read(folder) -> (manifest, {module path: {tensor name: array}})     AssertionError where the document is not kept

It shows that the document is enough to read a patch by; it checks identity, digests and seals, not the bounds and hostile cases.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "I64": np.dtype("<i8"), "BF16": np.dtype("<u2")}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def parse(data: bytes) -> Any:
    """A JSON file in its one written form."""
    value = json.loads(data)
    assert data == (json.dumps(value, sort_keys=True, ensure_ascii=False, indent=2) + "\n").encode()
    return value


def read(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    manifest = parse((folder / "config.json").read_bytes())
    claimed = manifest.pop("id")
    assert manifest["format_version"] in (1, 2)
    assert sha256(b"kedit patch 1\n" + canonical(manifest)) == claimed
    tensors = read_tensors((folder / "patch.safetensors").read_bytes(), manifest["modules"])
    if (folder / "evals.json").exists():
        evals = parse((folder / "evals.json").read_bytes())
        assert evals.pop("sha256") == sha256(canonical(evals)) and evals["patch_id"] == claimed
    if (folder / "signature.json").exists():
        check_signature(folder, claimed)
    return manifest, tensors


def read_tensors(data: bytes, modules: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    assert header.pop("__metadata__") == {"format": "pt"}
    assert set(header) == {f"{path}/{name}" for path, entry in modules.items() for name in entry["tensors"]}
    found = {}
    for path, entry in modules.items():
        own = {}
        for name, stated in entry["tensors"].items():
            stored = header[f"{path}/{name}"]
            assert (stored["dtype"], stored["shape"]) == (stated["dtype"], stated["shape"])
            begin, end = stored["data_offsets"]
            shape = ",".join(map(str, stated["shape"]))
            assert stated["sha256"] == sha256(f"{path}/{name}|{stated['dtype']}|{shape}|".encode() + body[begin:end])
            own[name] = np.frombuffer(body[begin:end], DTYPES[stated["dtype"]]).reshape(stated["shape"])
        found[path] = decode(own) if entry.get("precision") == "f16" else own
    return found


def decode(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Column-scaled float16: X = h s, s a power of two."""
    plain = {name: array for name, array in stored.items() if not name.endswith("_scale")}
    for name, scale in stored.items():
        if name.endswith("_scale"):
            whole = name.removesuffix("_scale")
            assert bool((np.frexp(scale)[0] == 0.5).all())
            plain[whole] = stored[whole].astype(np.float32) * scale[:, None]
    return plain


def check_signature(folder: Path, patch_id: str) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    document = parse((folder / "signature.json").read_bytes())
    statement = document["statement"]
    assert document["kedit_signature"] == 1 and statement["patch_id"] == patch_id
    assert set(statement["files"]) == {entry.name for entry in folder.iterdir()} - {"signature.json"}
    assert all(sha256((folder / name).read_bytes()) == digest for name, digest in statement["files"].items())
    assert document["signatures"]
    for entry in document["signatures"]:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(entry["key"]))
        key.verify(bytes.fromhex(entry["signature"]), b"kedit signature 1\n" + canonical(statement))
