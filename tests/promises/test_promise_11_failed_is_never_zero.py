"""Promise 11: a failed verification is never exit 0, never a loaded patch and never a changed model.

A dozen representative attacks, each at every entrance: Python, the command line, the page.
"""

import contextlib
import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import kedit_hub
from kedit_hub.errors import KeditError
from kedit_hub.hub.repo import pull
from kedit_hub.patch import Patch
from kedit_hub.patch.signature import Signed, check_folder, sign
from kedit_hub.patch.trust import Rule, TrustPolicy
from space.state import Held, sample_patches
from tests.attacks.tools import setting
from tests.cli.conftest import kedit
from tests.evaluate.test_claims import PATCH, SHEET
from tests.patch.build import EVALS, make_patch
from tests.space.tiny import PARIS
from tests.space.tiny import make_patch as tiny_patch
from tests.tiny import tiny_model

KEY = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)


def flip(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])


def rewrite(folder: Path, attack) -> None:
    files = attack({path.name: path.read_bytes() for path in folder.iterdir()})
    for name, data in files.items():
        (folder / name).write_bytes(data)


def pickle_for_tensors(folder: Path) -> None:
    (folder / "patch.safetensors").write_bytes(b"\x80\x04N.")


def pointer(folder: Path) -> None:
    (folder / "patch.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def link(folder: Path) -> None:
    (folder / "config.json").rename(folder.parent / "config.json")
    (folder / "config.json").symlink_to(folder.parent / "config.json")


UNSIGNED: dict[str, Callable[[Path], None]] = {
    "a flipped bit in the config": lambda folder: flip(folder, "config.json"),
    "a flipped bit in the tensors": lambda folder: flip(folder, "patch.safetensors"),
    "a flipped bit in the scores": lambda folder: flip(folder, "evals.json"),
    "a cut file": lambda folder: (folder / "patch.safetensors").write_bytes(b"\x08\0\0\0"),
    "a missing file": lambda folder: (folder / "patch.safetensors").unlink(),
    "a pickle": pickle_for_tensors,
    "a Git LFS pointer": pointer,
    "a link": link,
    "an unknown field": lambda folder: rewrite(folder, setting("auto_map", value={"a": "b"})),
    "a newer format": lambda folder: rewrite(folder, setting("format_version", value=3)),
    "a path as base": lambda folder: rewrite(folder, setting("base", "id", value="/etc/passwd")),
    "a kind that names a class": lambda folder: rewrite(
        folder, lambda files: setting("modules", next(iter(make_patch().deltas)), "kind", value="os.system")(files)
    ),
}
SIGNED: dict[str, Callable[[Path], None]] = {
    "a changed card": lambda folder: (folder / "README.md").write_text("# other\n"),
    "an extra file": lambda folder: (folder / ".gitattributes").write_text(""),
    "a missing card": lambda folder: (folder / "README.md").unlink(),
    "a damaged signature": lambda folder: flip(folder, "signature.json"),
    "an empty signature": lambda folder: (folder / "signature.json").write_text("{}"),
    "scores that were not signed": lambda folder: rewrite(
        folder, lambda files: {"evals.json": make_patch().replace_evals({"drift": 1}).files()["evals.json"]}
    ),
}


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KEDIT_TRUST", raising=False)


@pytest.fixture(params=[*UNSIGNED, *SIGNED])
def folder(request, tmp_path) -> Path:
    """A folder that must not be taken, by any entrance."""
    patch = make_patch().replace_evals(EVALS)
    signed = request.param in SIGNED
    made = (sign(patch, KEY) if signed else patch).save(tmp_path / "p")
    (SIGNED if signed else UNSIGNED)[request.param](made)
    return made


PYTHON: dict[str, Callable[[Path], object]] = {
    "Patch.load": Patch.load,
    "Patch.from_files": lambda folder: Patch.from_files(
        {path.name: path.read_bytes() for path in folder.iterdir() if not path.is_symlink()}
    ),
    "pull": pull,
    "apply": lambda folder: kedit_hub.apply(folder, *tiny_model("llama")[:1], tokenizer=object()),
    "export": lambda folder: kedit_hub.export(
        folder, folder.parent / "out", model=tiny_model("llama")[0], tokenizer=object()
    ),
}
COMMANDS: dict[str, Callable[[Path], list[object]]] = {
    "verify": lambda folder: ["verify", folder, "--no-base"],
    "verify --json": lambda folder: ["verify", folder, "--no-base", "--json"],
    "show": lambda folder: ["show", folder],
    "show --json": lambda folder: ["show", folder, "--json"],
    "ask": lambda folder: ["ask", "x", "--patch", folder],
    "eval": lambda folder: ["eval", folder],
    "stack": lambda folder: ["stack", "status", folder, "--no-base"],
    "export": lambda folder: ["export", folder, "--out", folder.parent / "out"],
    "diff": lambda folder: ["diff", folder, folder],
    "push": lambda folder: ["push", folder, "ada/tower", "--endpoint", "http://127.0.0.1:9"],
    "edit --on": lambda folder: [
        "edit", "--prompt", "The capital of France is", "--subject", "France", "--target", "Rome", "--on", folder, "--out",
        folder.parent / "out",
    ],
}  # fmt: skip


def test_python_never_loads_it(folder):
    for name, entrance in PYTHON.items():
        with pytest.raises(KeditError):
            entrance(folder)
            pytest.fail(f"{name} took it")
    with contextlib.suppress(KeditError):
        assert not isinstance(check_folder(folder), Signed)


def test_no_command_exits_zero(folder):
    for name, arguments in COMMANDS.items():
        done = kedit(*arguments(folder))
        assert done.code == 1 and done.out == "", (name, done)
        assert any(line.startswith("Error: ") for line in done.err.splitlines()), (name, done)
        assert not (folder.parent / "out").exists(), name


def test_the_page_does_not_offer_it(folder):
    """A sample that cannot be read is left out; everything else of a visitor comes through `pull`."""
    assert sample_patches(folder.parent) == []


# --- what fails later than reading: base, policy, scores ------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path):
    """(folder of a patch, folder of its base, folder of the same base with one changed number)"""
    model, tokenizer = tiny_model("llama")
    patch = tiny_patch([PARIS], base="tiny/base")
    (path,) = patch.deltas
    for name in ("base", "poisoned"):
        if name == "poisoned":
            model = copy.deepcopy(model)
            with torch.no_grad():
                model.get_submodule(path).weight[0, 0] += 1
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return patch.save(tmp_path / "q"), tmp_path / "base", tmp_path / "poisoned"


def test_the_wrong_base_is_exit_1_everywhere(tiny):
    folder, base, poisoned = tiny
    assert kedit("verify", folder, "--base", base).code == 0
    for arguments in (
        ["verify", folder, "--base", poisoned],
        ["verify", folder, "--base", poisoned, "--json"],
        ["ask", "x", "--patch", folder, "--base", poisoned],
        ["eval", folder, "--base", poisoned],
        ["stack", "status", folder, "--base", poisoned],
        ["export", folder, "--base", poisoned, "--out", folder.parent / "out"],
    ):
        done = kedit(*arguments)
        assert done.code == 1 and done.out == "" and "Error: " in done.err, arguments
    with pytest.raises(KeditError, match="holds other weights"):
        kedit_hub.apply(folder, poisoned)


def test_a_policy_that_refuses_is_exit_1_everywhere(tiny, monkeypatch):
    folder, base, _ = tiny
    policy = TrustPolicy(rules=[Rule(base="*", authors=["our-lab"])]).save(folder.parent / "policy")
    for where in ("argument", "environment", "environment that names nothing"):
        trust = ["--trust", policy] if where == "argument" else []
        if where != "argument":
            monkeypatch.setenv("KEDIT_TRUST", str(policy) if where == "environment" else "")
        for arguments in (
            ["verify", folder, "--base", base],
            ["ask", "x", "--patch", folder, "--base", base],
            ["eval", folder, "--base", base],
            ["stack", "status", folder, "--base", base],
            ["export", folder, "--base", base, "--out", folder.parent / "out"],
            ["trust", "check", folder],
        ):
            done = kedit(*arguments, *trust)
            assert done.code == 1 and "Error: " in done.err, (where, arguments, done)
            assert done.out == "" or arguments[0] == "trust", (where, arguments)
        with pytest.raises(KeditError):
            kedit_hub.apply(folder, base, trust=policy if where == "argument" else None)


def test_scores_that_do_not_follow_are_exit_1(tmp_path):
    evals = copy.deepcopy(SHEET)
    evals["protocols"]["generate"]["reliability"] = 1.0
    evals["protocols"]["generate"]["score"] = 1.0
    folder = PATCH.replace_evals(evals).save(tmp_path / "p")
    for arguments in (["verify", folder, "--no-base"], ["verify", folder, "--no-base", "--json"]):
        done = kedit(*arguments)
        assert done.code == 1 and "Error: The scores do not follow" in done.err


def test_a_refusal_leaves_the_model_as_it_was(tiny):
    folder, base, _ = tiny
    patched = kedit_hub.apply(folder, base)
    before = patched.ask(PARIS.prompt, 4)
    broken = shutil.copytree(folder, folder.parent / "broken")
    flip(broken, "patch.safetensors")
    with pytest.raises(KeditError):
        patched.add(broken)
    assert len(patched.stack) == 1 and patched.ask(PARIS.prompt, 4) == before


def test_the_entrances_take_what_is_good(tmp_path):
    """The tables above fail for the attack alone: the same entrances take the good patch."""
    folder = sign(make_patch().replace_evals(EVALS), KEY).save(tmp_path / "p")
    for name in ("Patch.load", "Patch.from_files", "pull"):
        assert PYTHON[name](folder) == make_patch()
    for name in ("verify", "verify --json", "show", "show --json", "stack", "diff"):
        assert kedit(*COMMANDS[name](folder)).code == 0, name
    assert [held.patch for held in sample_patches(tmp_path)] == [make_patch()]
    assert isinstance(sample_patches(tmp_path)[0], Held)
