"""What made a patch: the tool's own source, the libraries, the machine's kind, the data. Law: equal circumstances, equal words.

Nothing here tells one user or one day from another (no host, user, path, time or thread count), so that equal patches are
equal bytes wherever they are made.

    source()           ->  ("3f9c...40 digits", False)
    environment(model) ->  {"platform": "Linux-x86_64", "device": "cpu", "dtype": "float32"}
"""

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import safetensors
import tokenizers
import torch
import transformers
from torch import nn

from kedit_hub import __version__, strictjson
from kedit_hub.errors import EditError, KeditError

DISTRIBUTION = "kedit-hub"
PACKAGE = Path(__file__).resolve().parent
GIT_SECONDS = 10.0  # a work tree that takes longer than this to look at stays unnamed


@cache
def source() -> tuple[str | None, bool | None]:
    """(commit, dirty) of this tool's own source as it is when first asked, (None, None) where that is unknown.

    commit: 40 hex digits. dirty: whether the package or pyproject.toml differ from that commit.
    """
    return of_work_tree(PACKAGE) or of_installation(PACKAGE) or (None, None)


def of_work_tree(package: Path) -> tuple[str, bool] | None:
    """(commit, dirty) where `package` lies at the top of a git work tree of kedit-hub itself; else None.

    An installed package often lies inside somebody's work tree (a virtual environment in a project), whose commits say
    nothing about this source.
    """
    found = _git(package, "rev-parse", "--show-toplevel", "HEAD")
    top, _, commit = (found or "").strip().rpartition("\n")
    if not re.fullmatch(r"[0-9a-f]{40}", commit) or Path(top).resolve() / package.name != package.resolve():
        return None
    try:
        about = tomllib.loads((Path(top) / "pyproject.toml").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    project = about.get("project")
    if not isinstance(project, dict) or project.get("name") != DISTRIBUTION:
        return None
    status = _git(Path(top), "status", "--porcelain", "--untracked-files=normal", "--", package.name, "pyproject.toml")
    return None if status is None else (commit, bool(status))


def of_installation(package: Path) -> tuple[str, bool] | None:
    """(commit, False) where `package` was installed from a version control URL, which pip writes down; else None."""
    try:
        installed = importlib.metadata.distribution(DISTRIBUTION)
        text = installed.read_text("direct_url.json")
        if not text or Path(str(installed.locate_file(package.name))).resolve() != package.resolve():
            return None
        url = strictjson.loads(text.encode("utf-8"), what="direct_url.json", max_bytes=1 << 16)
    except (importlib.metadata.PackageNotFoundError, OSError, KeditError):
        return None
    vcs = url.get("vcs_info") if isinstance(url, dict) else None
    commit = vcs.get("commit_id") if isinstance(vcs, dict) else None
    return (commit, False) if isinstance(commit, str) and re.fullmatch(r"[0-9a-f]{40}", commit) else None


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says of the work tree around `folder`; None without git, without a work tree, or when it takes too long.

    Nothing of the caller's own git session is inherited (GIT_DIR would point elsewhere), no lock is taken, and no file
    system monitor is started.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=GIT_SECONDS
        )
        return done.stdout.decode("utf-8") if done.returncode == 0 else None
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None


def versions() -> dict[str, str]:
    """What the numbers may depend on: {library: version}."""
    return {
        "kedit_hub": word(__version__),
        "python": word(platform.python_version()),
        "safetensors": word(safetensors.__version__),
        "tokenizers": word(tokenizers.__version__),
        "torch": word(torch.__version__),
        "transformers": word(transformers.__version__),
    }


def environment(model: nn.Module, quantization: str | None = None) -> dict[str, str]:
    """The kind of machine and of numbers that `model` runs in; quantization: of the edited map, where it is quantized.

    device: "cpu" or the accelerator's name, joined by "+" where the model lies on several. dtype: of the weights that are
    kept as floating-point numbers.
    """
    parameters = list(model.parameters())
    devices = sorted({device_name(p.device) for p in parameters if p.device.type != "meta"}) or ["cpu"]
    found = {"platform": word(f"{platform.system()}-{platform.machine()}"), "device": word("+".join(devices))}
    floats = [p.dtype for p in parameters if p.is_floating_point()]
    if floats:
        found["dtype"] = str(floats[0]).removeprefix("torch.")
    return found if quantization is None else {**found, "quantization": quantization}


def device_name(device: torch.device) -> str:
    """ "cpu", "NVIDIA-H200", "mps": the kind of a device, whichever of its kind it is."""
    return word(torch.cuda.get_device_name(device)) if device.type == "cuda" else device.type


def dataset_of(path: str | os.PathLike[str]) -> dict[str, str]:
    """A file of edits as a manifest names it: {"id": its name without the ending, "sha256": of its bytes}."""
    where = Path(path)
    try:
        with where.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as cause:
        raise EditError(f"Cannot read {str(where)!r}: {cause.strerror}; give a .json or .jsonl file.") from None
    name = re.sub(r"[.-]{2,}", "-", re.sub(r"[^A-Za-z0-9_.-]+", "-", where.stem))
    return {"id": name.strip("_.-")[:96].rstrip(".-") or "edits", "sha256": digest}


def word(text: str) -> str:
    """`text` as a name of letters, digits, '.', '_', '+' and '-', at most 64 of them: what a manifest takes."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", str(text)).strip("-._+")[:64] or "unknown"
