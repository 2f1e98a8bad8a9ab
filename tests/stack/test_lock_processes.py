"""The same lock gives the same answers in another process, whatever order the patches came in; bits with the same number of threads."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import kedit_hub
from kedit_hub.demo import model_path
from kedit_hub.stack.lock import InPack, Lock, lock
from kedit_hub.stack.packed import pack
from kedit_hub.stack.stack import PatchStack

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("hamlet-is-a-novel", "eiffel-tower-in-rome", "nokia-in-tokyo")
TOLERANCE = 1e-5  # of the largest logit; said in docs/LOCK.md
ASK = """
import sys
import safetensors.torch
import torch
import kedit_hub
for path in sys.argv[1:]:
    torch.set_num_threads(int(path[0]))
    m = kedit_hub.apply(path)
    prompts = sorted(edit.prompt for edit in m.stack.edits)
    with torch.no_grad():
        logits = {prompt: m.model(**m.tokenizer(prompt, return_tensors="pt")).logits[0] for prompt in prompts}
    safetensors.torch.save_file(logits, path + ".safetensors", metadata={"mode": m.report["mode"]})
"""
MODES = ("gated", "joint")


@pytest.fixture(scope="module")
def patches():
    return [kedit_hub.Patch.load(ROOT / "patches" / name) for name in NAMES]


def test_fresh_processes(patches, tmp_path):
    """Two processes, the second asked by one thread and by two."""
    out = {mode: [] for mode in MODES}
    for process, (order, threads) in enumerate(((patches, (1,)), (patches[::-1], (1, 2)))):
        folders = []
        for count, mode in product(threads, MODES):
            folders.append(f"{count} {process} {mode}")
            digests = pack(order, tmp_path / folders[-1])
            m = kedit_hub.apply(PatchStack(order), model_path("llama"), mode=mode)
            saved = lock(m, {patch.id: InPack(packed=True) for patch in order}, packed=digests)
            assert saved.solved is not None and saved.solved.mode == mode
            saved.save(tmp_path / folders[-1] / "kedit.lock")
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(process)}
        subprocess.run([sys.executable, "-c", ASK, *folders], check=True, env=env, capture_output=True, cwd=tmp_path)
        for (_, mode), folder in zip(product(threads, MODES), folders):
            with safe_open(tmp_path / f"{folder}.safetensors", "pt") as file:
                assert file.metadata() == {"mode": mode}
                out[mode].append({prompt: file.get_tensor(prompt) for prompt in file.keys()})  # noqa: SIM118
    for mode, told in out.items():
        assert len(told[0]) == len(patches) and told[0].keys() == told[1].keys() == told[2].keys()
        for prompt, a in told[0].items():
            for other in told[1:]:
                assert (a - other[prompt]).abs().max() <= TOLERANCE * a.abs().max()
            if mode == "gated":
                assert torch.equal(a, told[1][prompt])


def test_a_mode_that_was_chosen_stays_chosen(patches, tmp_path):
    """`auto` is decided once, when the stack is locked."""
    digests = pack(patches, tmp_path)
    sources = {patch.id: InPack(packed=True) for patch in patches}
    m = kedit_hub.apply(patches, mode="auto")
    saved = lock(m, sources, packed=digests)
    assert saved.settings.mode == "auto" and saved.decided.mode == m.report["mode"] == "gated"
    other = {**saved.model_dump(mode="python"), "solved": {**saved.solved.model_dump(), "mode": "joint"}}
    Lock.model_validate(other).save(tmp_path / "kedit.lock")
    assert kedit_hub.apply(tmp_path).report["mode"] == "joint"
    assert kedit_hub.apply(tmp_path, mode="sum").report["mode"] == "sum"  # said by the caller
