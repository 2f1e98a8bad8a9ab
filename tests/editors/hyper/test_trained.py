"""The artifact: what is saved is what is loaded, equal bytes for equal editors, and nothing else is let in."""

import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kedit_hub import strictjson
from kedit_hub.editors.hyper.lessons import Lesson
from kedit_hub.editors.hyper.settings import METHODS
from kedit_hub.editors.hyper.train import train
from kedit_hub.editors.hyper.trained import Manifest, Map, TrainedEditor, _foreseen, _laid_out
from kedit_hub.edits import Edit
from kedit_hub.errors import (
    LimitError,
    PatchFormatError,
    UnknownFormatError,
    UnsupportedModelError,
    WrongBaseError,
)
from kedit_hub.limits import Limits
from kedit_hub.patch.patch import Patch
from kedit_hub.patch.safefile import read_tensors, tensor_digest, write_tensors
from tests.editors.hyper.small import EDITS, LESSONS, small
from tests.patch.build import make_patch
from tests.tiny import tiny_model


def make(method: str, family: str = "llama", half: bool = False) -> TrainedEditor:
    model, tokenizer = tiny_model(family)
    trained = train(model, tokenizer, LESSONS, method, small(method, steps=2), seed=0)
    return TrainedEditor.create(
        trained, method=method, model=model, base=("tiny/base", None), lessons=LESSONS, seed=0, half=half
    )


@pytest.fixture(scope="module")
def editor() -> TrainedEditor:
    return make("mend")


@pytest.mark.parametrize("method", METHODS)
def test_round_trip(method: str, tmp_path: Path) -> None:
    made = make(method, half=method == "dafnet").replace_scores({"test": {"reliability": 0.5}})
    folder = made.save(tmp_path / "editor")
    assert {file.name for file in folder.iterdir()} == {"config.json", "editor.safetensors", "scores.json", "README.md"}
    loaded = TrainedEditor.load(folder)
    assert loaded == made and loaded.id == made.id and loaded.scores == made.scores and loaded.settings == made.settings
    state, other = made.network().state_dict(), loaded.network().state_dict()
    assert state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)
    assert not any(p.requires_grad or p.is_meta for p in loaded.network().parameters())
    first = {file.name: file.read_bytes() for file in folder.iterdir()}
    loaded.save(folder)
    assert first == {file.name: file.read_bytes() for file in folder.iterdir()}
    assert f"{made.manifest.training.training} edits" in (folder / "README.md").read_text()


def test_it_is_the_network_that_was_trained() -> None:
    model, tokenizer = tiny_model("llama")
    trained = train(model, tokenizer, LESSONS, "malmen", small("malmen"), seed=1)
    made = TrainedEditor.create(
        trained, method="malmen", model=model, base=("tiny/base", None), lessons=LESSONS, seed=1
    )
    state = made.network().state_dict()
    assert all(torch.equal(value, state[name]) for name, value in trained.network.state_dict().items())
    assert made.network().paths == trained.network.paths and made.network().place == trained.network.place
    assert made.manifest.training.steps == 4 and made.manifest.training.best_step in (2, 4)


def test_it_belongs_to_its_base(editor: TrainedEditor) -> None:
    model, _ = tiny_model("llama")
    assert set(editor.verify(model).values()) == {"exact"}
    with pytest.raises(WrongBaseError, match=r"down_proj|gate_proj|up_proj"):
        editor.verify(tiny_model("llama", seed=1)[0])
    with pytest.raises(WrongBaseError, match=r"trained on tiny/base .a llama., this model is a gpt2"):
        editor.verify(tiny_model("gpt2")[0])


def test_a_folder_of_something_else_is_left_alone(editor: TrainedEditor, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(PatchFormatError, match="is not the folder of a trained editor"):
        editor.save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(PatchFormatError):
        Patch.load(editor.save(tmp_path / "editor"))  # it is no patch
    with pytest.raises(PatchFormatError, match="not a folder"):
        TrainedEditor.load(tmp_path / "nowhere")


def test_a_folder_of_a_patch_and_half_an_editor_are_told_apart(editor: TrainedEditor, tmp_path: Path) -> None:
    with pytest.raises(
        PatchFormatError, match=r"is the folder of a patch\. Give the folder of a trained editor: `kedit"
    ):
        TrainedEditor.load(make_patch().save(tmp_path / "patch"))
    for name in ("config.json", "editor.safetensors"):
        folder = editor.save(tmp_path / name)
        (folder / name).unlink()
        with pytest.raises(PatchFormatError, match=rf"has no {name}\. Give the folder of a trained editor"):
            TrainedEditor.load(folder)


def tensors_changed(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """A folder whose tensors were changed, and whose config describes the changed ones under their true id."""

    def apply(folder: Path) -> None:
        tensors = read_tensors((folder / "editor.safetensors").read_bytes(), "editor.safetensors")
        change(tensors)
        (folder / "editor.safetensors").write_bytes(write_tensors(tensors))
        names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}
        redescribed(folder, lambda value: value.update(tensors={
            name: {"dtype": names[t.dtype], "shape": list(t.shape), "sha256": tensor_digest(name, t)} for name, t in tensors.items()
        }))  # fmt: skip

    return apply


def redescribed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads((folder / "config.json").read_text())
    value.pop("id")
    change(value)
    try:
        manifest = Manifest.model_validate_json(strictjson.canonical(value), strict=True)
    except ValueError:
        (folder / "config.json").write_bytes(strictjson.pretty({**value, "id": "0" * 64}))
    else:
        (folder / "config.json").write_bytes(manifest.to_bytes())


def config_changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: redescribed(folder, change)


def bytes_changed(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


def renamed(value: dict[str, Any], path: str) -> None:
    """The first map under another path, fingerprint and all."""
    old = value["maps"][0]["path"]
    value["maps"][0]["path"] = path
    value["base"]["fingerprint"][path] = value["base"]["fingerprint"].pop(old)


def many_shapes(value: dict[str, Any]) -> None:
    """The deepest DAFNet of as many maps as are taken, no two of one shape."""
    value["method"], value["settings"] = "dafnet", METHODS["dafnet"].settings(depth=16).model_dump(mode="json")
    value["maps"], value["base"]["fingerprint"] = [], {}
    for number in range(1024):
        path, shape = f"model.layers.{number}.mlp.up_proj", [64 + number, 64]
        value["maps"].append({"path": path, "shape": shape})
        value["base"]["fingerprint"][path] = {"shape": shape, "dtype": "float32"}


UP = "net.nets.0.0/up"
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut short": (bytes_changed("editor.safetensors", lambda data: data[:-7]), "cut short"),
    "a pickle": (bytes_changed("editor.safetensors", lambda data: pickle.dumps({"x": 1})), "pickle"),
    "a pickle as config": (bytes_changed("config.json", lambda data: pickle.dumps({"x": 1})), "pickle"),
    "one bit": (
        bytes_changed("editor.safetensors", lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]),
        "describes",
    ),
    "another id": (bytes_changed("config.json", lambda data: data.replace(b'"id": "', b'"id": "0', 1)), "id"),
    "one more space": (bytes_changed("config.json", lambda data: data + b" "), "damaged or changed"),
    "not json": (bytes_changed("config.json", lambda data: b"{]"), "not JSON"),
    "NaN": (tensors_changed(lambda t: t[UP].fill_(float("nan"))), "NaN"),
    "infinity in the statistics": (
        tensors_changed(lambda t: t["net.normalisers.0/squares"].fill_(float("inf"))),
        "infinity",
    ),
    "poison": (tensors_changed(lambda t: t[UP].fill_(1e9)), "1e.09"),
    "no statistics": (tensors_changed(lambda t: t["net.normalisers.0/count"].fill_(-5)), "below 0"),
    "another shape": (tensors_changed(lambda t: t.update({UP: torch.zeros(4, 4)})), "shape"),
    "another type": (tensors_changed(lambda t: t.update({UP: t[UP].double()})), "type"),
    "a tensor more": (tensors_changed(lambda t: t.update({"net.nets.9/up": torch.zeros(1)})), "not those of a mend"),
    "a tensor less": (tensors_changed(lambda t: t.pop(UP)), "not those of a mend"),
    "huge network": (config_changed(lambda v: v["settings"].update(rank=1 << 40)), "rank"),
    "larger network": (config_changed(lambda v: v["settings"].update(rank=1 << 13)), "shape"),
    "huge map": (config_changed(lambda v: v["maps"][0].update(shape=[1 << 45, 1 << 45])), "at most 1,048,576"),
    "a map beyond all numbers": (
        config_changed(lambda v: [one.update(shape=[1 << 62, 1 << 62]) for one in v["maps"]]),
        "at most 1,048,576",
    ),
    "a map of another shape than its fingerprint": (
        config_changed(lambda v: v["maps"][0].update(shape=[64, 64])),
        "its fingerprint has another",
    ),
    "the output head": (
        config_changed(lambda v: renamed(v, "lm_head")),
        "'lm_head', and it does not lie in self_attn or mlp",
    ),
    "a norm": (config_changed(lambda v: renamed(v, "model.layers.2.norm")), "norm.*does not lie in"),
    "maps of a thousand shapes": (
        config_changed(lambda v: many_shapes(v)),
        "not those of a dafnet network: .* its 1,024 maps",
    ),
    "unknown setting": (config_changed(lambda v: v["settings"].update(evil=1)), "evil"),
    "unknown field": (config_changed(lambda v: v.update(evil=1)), "evil"),
    "unknown method": (config_changed(lambda v: v.update(method="evil")), "evil"),
    "another version": (config_changed(lambda v: v.update(format_version=2)), "format_version"),
    "a map that is no path": (config_changed(lambda v: v["maps"][0].update(path="../../x")), "path"),
    "a map without fingerprint": (config_changed(lambda v: v["base"]["fingerprint"].popitem()), "fingerprint"),
    "a map twice": (config_changed(lambda v: v["maps"].append(v["maps"][0])), "each once"),
    "scores of another": (bytes_changed("scores.json", lambda data: b'{"editor_id": "0"}'), "scores.json"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folders_are_refused(name: str, editor: TrainedEditor, tmp_path: Path) -> None:
    folder = editor.replace_scores({"a": 1.0}).save(tmp_path / "editor")
    TrainedEditor.load(folder)
    change, said = HOSTILE[name]
    change(folder)
    start = time.process_time()
    with pytest.raises(PatchFormatError, match=said):
        TrainedEditor.load(folder)
    assert time.process_time() - start < 10


@pytest.mark.parametrize("method", METHODS)
def test_tensors_are_counted_before_the_network_is_laid_out(method: str) -> None:
    """What is foreseen from two maps is what a network of all has, so that no honest editor is refused."""
    shapes = [(8, 8), (8, 9), (8, 8), (9, 8), (8, 9), (8, 9)]
    maps = [Map(path=f"model.layers.{n}.mlp.up_proj", shape=shape) for n, shape in enumerate(shapes)]
    assert _foreseen(method, small(method), maps) == len(_laid_out(method, small(method), maps))


def test_an_editor_of_a_shared_weight_edits_nothing(editor: TrainedEditor) -> None:
    model, _ = tiny_model("llama")
    first, second = (model.get_submodule(editor.network().paths[0]), model.model.layers[1].mlp.gate_proj)
    second.weight = first.weight
    with pytest.raises(UnsupportedModelError, match=r"edits model\.layers.*shares its weight"):
        editor.verify(model)


def test_a_measure_that_was_not_taken_is_not_among_the_scores() -> None:
    model, tokenizer = tiny_model("llama")
    bare = [Lesson.of(Edit(one.prompt, one.target, one.subject)) for one in EDITS]
    trained = train(model, tokenizer, bare, "mend", small("mend", steps=2), seed=0)
    made = TrainedEditor.create(trained, method="mend", model=model, base=("tiny/base", None), lessons=bare, seed=0)
    assert set(made.manifest.training.scores) == {"reliability", "loss"}
    card = made.files()["README.md"].decode()
    assert "reliability" in card and "locality |" not in card and "-1" not in card


def test_links_and_large_files_are_refused(editor: TrainedEditor, tmp_path: Path) -> None:
    folder = editor.save(tmp_path / "editor")
    with pytest.raises(LimitError, match=r"config\.json"):
        TrainedEditor.load(folder, limits=Limits(max_config_bytes=100))
    with pytest.raises(LimitError, match=r"editor\.safetensors"):
        TrainedEditor.load(folder, limits=Limits(max_tensor_bytes=100))
    with pytest.raises(UnknownFormatError):
        config_changed(lambda v: v.update(format_version="1"))(folder)
        TrainedEditor.load(folder)
    other = editor.save(tmp_path / "other")
    (other / "editor.safetensors").rename(tmp_path / "away")
    (other / "editor.safetensors").symlink_to(tmp_path / "away")
    with pytest.raises(PatchFormatError, match="symbolic link"):
        TrainedEditor.load(other)
