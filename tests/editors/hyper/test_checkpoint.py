"""What is kept of a training: durable, read again or refused by its name, and there until the editor is saved."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import kedit_hub
from kedit_hub.editors.hyper import state, trained
from kedit_hub.editors.hyper.trained import FileCheckpoint, TrainedEditor
from kedit_hub.errors import EditError, KeditError, LimitError, PatchFormatError
from kedit_hub.limits import Limits
from kedit_hub.patch.safefile import read_tensors, write_tensors
from tests.editors.hyper.small import EDITS, SMALL
from tests.tiny import tiny_model

SETTINGS = {"layers": [2], "steps": 2, "validate_every": 1, "validated": 2, "warmup": 4, "validation": 0.3}


def make(tmp_path: Path, method: str = "mend", **how: Any) -> TrainedEditor:
    model, tokenizer = tiny_model("llama")
    settings = {**SETTINGS, **SMALL[method]}
    how = {"settings": settings, "checkpoint": tmp_path / "kept", "out": tmp_path / "made", "progress": False, **how}
    return kedit_hub.train_editor(model, EDITS, method, tokenizer=tokenizer, **how)


def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str = "mend") -> Path:
    """The checkpoint of a training whose editor did not fit the disk."""
    with monkeypatch.context() as patched:
        patched.setattr(TrainedEditor, "save", full)
        with pytest.raises(OSError, match="No space"):
            make(tmp_path, method)
    [file] = (tmp_path / "kept").iterdir()
    return file


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_finished_training_is_kept_until_its_editor_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = kept(tmp_path, monkeypatch)
    steps = read_tensors(file.read_bytes(), "it")["state/step"]
    assert int(steps) == 2
    monkeypatch.setattr("kedit_hub.editors.hyper.train.one_step", lambda *_: pytest.fail("it was trained again"))
    made = make(tmp_path)
    assert TrainedEditor.load(tmp_path / "made") == made and not file.exists()


def test_without_a_folder_to_save_to_the_checkpoint_ends_with_the_training(tmp_path: Path) -> None:
    make(tmp_path, out=None)
    assert not list((tmp_path / "kept").iterdir()) and not (tmp_path / "made").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "thesis.txt").write_text("mine")
    with pytest.raises(PatchFormatError, match=r"thesis\.txt"):
        make(tmp_path)
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("damage", ["cut short", "empty", "no state", "another network", "a moment less"])
def test_a_damaged_checkpoint_is_named_and_left(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = kept(tmp_path, monkeypatch)
    data = file.read_bytes()
    tensors = read_tensors(data, "it")
    if damage in ("cut short", "empty"):
        file.write_bytes(data[:-9] if damage == "cut short" else b"")
    elif damage == "no state":
        file.write_bytes(write_tensors({name: t for name, t in tensors.items() if not name.startswith("state/")}))
    elif damage == "another network":
        file.write_bytes(write_tensors({name: t[:1] if name.startswith("best.") else t for name, t in tensors.items()}))
    else:
        file.write_bytes(write_tensors({name: t for name, t in tensors.items() if name != "adam.n0/exp_avg"}))
    damaged = file.read_bytes()
    for _ in range(2):
        with pytest.raises(KeditError, match=rf"checkpoint '{file}' is damaged.*Delete the file") as refusal:
            make(tmp_path)
        assert "ownload" not in str(refusal.value) and file.read_bytes() == damaged
    file.unlink()
    make(tmp_path)


def test_what_is_written_is_durable_and_leaves_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    sync = os.fsync

    def noted(handle: int) -> None:
        synced.append(handle)
        sync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    checkpoint = FileCheckpoint(tmp_path, seed=0)
    checkpoint.write({"state/step": torch.tensor([1])})
    assert len(synced) == 2 and [file.name for file in tmp_path.iterdir()] == [checkpoint.file.name]
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.write({"state/step": torch.tensor([2])})
    assert [file.name for file in tmp_path.iterdir()] == [checkpoint.file.name]
    read = checkpoint.read()
    assert read is not None and int(read["state/step"]) == 1


@pytest.mark.parametrize("method", ["mend", "dafnet", "ke"])
def test_what_may_be_trained_may_be_read_again(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under bounds that the network just meets its checkpoint is read; under those it does not meet nothing is trained."""
    file = kept(tmp_path, monkeypatch, method)
    network = make(tmp_path, method).network().state_dict()
    size, count = sum(tensor.nbytes for tensor in network.values()), len(network)
    bounds = Limits(max_tensor_bytes=size, max_tensors=count)
    monkeypatch.setattr(state, "DEFAULT", bounds)
    wider = Limits(**{name: trained.COPIES * getattr(bounds, name) for name in ("max_tensor_bytes", "max_tensors")})
    monkeypatch.setattr(trained, "CHECKPOINT", wider)
    assert kept(tmp_path, monkeypatch, method) == file
    make(tmp_path, method)
    monkeypatch.setattr(state, "DEFAULT", Limits(max_tensor_bytes=size - 1))
    with pytest.raises(LimitError, match=f"{size:,} bytes; at most"):
        make(tmp_path, method)


def test_what_is_no_edit_and_no_seed_is_refused(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama")
    for edits in (["x"], "x", [None]):
        with pytest.raises(EditError, match="is no edit to train on: write Edit"):
            kedit_hub.train_editor(model, edits, tokenizer=tokenizer, progress=False)
        with pytest.raises(EditError, match="is no edit to train on"):
            kedit_hub.find_instructions(model, edits, "zsre", tokenizer=tokenizer, progress=False)
    for seed in (1 << 64, -1):
        with pytest.raises(KeditError, match=f"seed={seed} is no seed"):
            make(tmp_path, seed=seed)
