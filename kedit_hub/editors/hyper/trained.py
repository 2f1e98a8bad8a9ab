"""A trained editor as it is saved and shared, like a patch. Law: loading runs nothing and loads only what its manifest describes.

    editor.save(folder);  TrainedEditor.load(folder).id == editor.id

    config.json           method, settings, the base and the fingerprints of the maps it edits, how it was trained, every tensor's digest
    editor.safetensors    parameters and normaliser statistics
    scores.json           what was measured, whose it is
    README.md             for people

`id` is the sha256 over the canonical config.json, and through the digests over all tensors. Nothing is allocated before it is clear that
names, shapes and types are exactly those of the network that the settings describe.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from torch import Tensor, nn

from kedit_hub import __version__, provenance, strictjson
from kedit_hub.base.families import FAMILIES, not_editable, quantization_of
from kedit_hub.editors.hyper.lessons import Lesson
from kedit_hub.editors.hyper.scores import tables
from kedit_hub.editors.hyper.settings import METHODS as HYPER
from kedit_hub.editors.hyper.settings import Method
from kedit_hub.editors.hyper.state import MEASURES, UNMEASURED, named, unnamed
from kedit_hub.editors.hyper.train import Trained
from kedit_hub.editors.memory.seracnet import Serac, SeracTraining
from kedit_hub.edits import Edit, fold
from kedit_hub.errors import (
    KeditError,
    LimitError,
    PatchFormatError,
    UnknownFormatError,
    UnsupportedModelError,
    WrongBaseError,
)
from kedit_hub.evaluate.cells import records_digest
from kedit_hub.limits import DEFAULT, Limits
from kedit_hub.patch import fingerprint
from kedit_hub.patch.card import escape
from kedit_hub.patch.fingerprint import Hex64, Size
from kedit_hub.patch.folder import check_replaceable, write_file, write_folder
from kedit_hub.patch.manifest import BaseRef, ModulePath, Name, Provenance
from kedit_hub.patch.safefile import (
    DTYPE_NAMES,
    largest,
    read_file,
    read_tensors,
    refuse_impostor,
    tensor_digest,
    write_tensors,
)
from kedit_hub.patch.signature import TENSORS as PATCH_TENSORS
from kedit_hub.records.extras import Record as EditRecord

METHODS: Mapping[str, Method] = MappingProxyType(  # all whose training makes an artifact
    {
        **HYPER,
        "serac": Method(
            "a scope and a counterfactual model beside the base (Mitchell et al. 2022)", SeracTraining, Serac
        ),
    }
)
CONFIG, TENSORS, SCORES, CARD = FILES = ("config.json", "editor.safetensors", "scores.json", "README.md")
Asked = TypeVar("Asked", bound=Edit | EditRecord)
Mark = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
TensorName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_./]{1,320}$")]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Map(_Part):
    """One linear map that is edited. shape: (out, in). The order of maps is that of the network's parameters."""

    path: ModulePath
    shape: tuple[Size, Size]


class Stored(_Part):
    """dtype as safetensors names it; sha256 over name|dtype|shape|bytes."""

    dtype: Literal["F64", "F32", "F16"]
    shape: tuple[Size, ...]
    sha256: Hex64


class Record(_Part):
    """How it was trained. edits: digest of all of them. scores: of the best step on validation edits, under teacher forcing; what the edits
    have no questions for is not among them. marks: of the subject and the prompt of every edit of training and validation; editors of an
    earlier version have none."""

    seed: int
    steps: int = Field(ge=1)
    best_step: int = Field(ge=1)
    training: int = Field(ge=1)
    validation: int = Field(ge=1)
    edits: Hex64
    scores: dict[Name, float]
    marks: tuple[Mark, ...] | None = None


class Manifest(_Part):
    format_version: Literal[1]
    kind: Literal["trained-editor"]
    method: Name
    settings: dict[str, Any]
    base: BaseRef
    maps: tuple[Map, ...] = Field(min_length=1)
    tensors: dict[TensorName, Stored]
    training: Record
    provenance: Provenance

    @cached_property
    def id(self) -> str:
        return hashlib.sha256(b"kedit trained editor 1\n" + strictjson.canonical(self.to_dict())).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """JSON values of every field that is set."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_bytes(self) -> bytes:
        """config.json."""
        return strictjson.pretty({**self.to_dict(), "id": self.id})

    @classmethod
    def parse(cls, data: bytes, limits: Limits = DEFAULT) -> "Manifest":
        """Read config.json. UnknownFormatError, LimitError or PatchFormatError name the fault."""
        refuse_impostor(data, CONFIG)
        value = strictjson.loads(data, what=CONFIG, max_bytes=limits.max_config_bytes, limits=limits)
        if not isinstance(value, dict) or value.get("kind") != "trained-editor":
            raise PatchFormatError(
                f"{CONFIG} is not that of a trained editor. Give the folder that `kedit editor train` wrote."
            )
        claimed, version = value.pop("id", None), value.get("format_version")
        if type(version) is not int or version != 1:
            raise UnknownFormatError(
                f"{CONFIG} has format_version {str(version)[:40]!r}; this kedit_hub reads 1. If it is newer, update kedit_hub."
            )
        try:
            manifest = cls.model_validate_json(strictjson.canonical(value), strict=True)
        except (ValidationError, ValueError) as cause:
            raise PatchFormatError(f"{CONFIG} is not a valid manifest of a trained editor: {_fault(cause)}.") from None
        if claimed != manifest.id or data != manifest.to_bytes():
            raise PatchFormatError(
                f"{CONFIG} says its id is {str(claimed)[:64]!r}, its contents give {manifest.id!r} in the form kedit_hub writes: it was "
                "damaged or changed by hand. Download it again."
            )
        if len(manifest.maps) > limits.max_modules or len({one.path for one in manifest.maps}) < len(manifest.maps):
            raise LimitError(
                f"{CONFIG} names {len(manifest.maps):,} maps; at most {limits.max_modules:,} are taken, each once."
            )
        for one in manifest.maps:
            manifest._check_map(one, limits)
        return manifest

    def _check_map(self, one: Map, limits: Limits) -> None:
        """A map of a possible size, where facts are edited; whose its weights are is for the fingerprint to say."""
        if max(one.shape) > limits.max_dim:
            raise LimitError(f"{one.path!r} has the shape {one.shape}; a side of at most {limits.max_dim:,} is taken.")
        if len(one.path) > limits.max_path_chars:
            raise LimitError(f"{one.path[:80]!r}... is a path of more than {limits.max_path_chars} characters.")
        family = FAMILIES.get(self.base.model_type)
        if family is not None and not family.may_change(one.path):  # another family: `verify` has the model
            raise PatchFormatError(
                f"{CONFIG} names the map {one.path!r}, and it does not lie in {' or '.join(family.parts)} of a block of {family.layers}: "
                "editors may only change linear maps of the attention and the MLP inside a block."
            )

    @cached_property
    def chosen(self) -> Any:
        """The settings, of the method's class. PatchFormatError for an unknown method or settings that are not its own."""
        if self.method not in METHODS:
            raise PatchFormatError(
                f"{CONFIG} is of the method {self.method!r}; this kedit_hub knows {', '.join(METHODS)}. Update kedit_hub."
            )
        return read_settings(self.method, self.settings)


def _marks(edit: Edit) -> set[str]:
    """16 hex digits of its subject and of its prompt, folded: to recognise them by, not to read."""
    return {hashlib.sha256(fold(text).encode()).hexdigest()[:16] for text in (edit.subject, edit.prompt) if text}


def read_settings(method: str, settings: Mapping[str, Any]) -> Any:
    """Settings of a method from JSON values; PatchFormatError names the first that it does not take."""
    kind = METHODS[method].settings
    try:
        return kind.model_validate_json(strictjson.canonical(dict(settings)), strict=True)
    except (ValidationError, ValueError, TypeError) as cause:
        raise PatchFormatError(
            f"{method} is not trained with these settings: {_fault(cause)}; it takes {', '.join(kind.model_fields)}"
        ) from None


@dataclass(frozen=True, eq=False)
class TrainedEditor:
    """Immutable; equal by `id`. tensors: as stored. scores: a JSON object of what was measured, or None."""

    manifest: Manifest
    tensors: Mapping[str, Tensor]
    scores: dict[str, Any] | None = None

    @property
    def id(self) -> str:
        """64 hex digits: the identity of the editor."""
        return self.manifest.id

    @property
    def method(self) -> str:
        return self.manifest.method

    @property
    def settings(self) -> Any:
        """Of the class that METHODS names."""
        return self.manifest.chosen

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TrainedEditor) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"TrainedEditor({self.id[:12]}, {self.method}, {len(self.manifest.maps)} maps, {self.manifest.base.id})"

    @classmethod
    def create(
        cls,
        trained: Trained,
        *,
        method: str,
        model: nn.Module,
        base: tuple[str, str | None],
        lessons: Sequence[Lesson],
        seed: int,
        datasets: Sequence[Mapping[str, Any]] = (),
        half: bool = False,
    ) -> "TrainedEditor":
        """What `train` returned, as an artifact. half: parameters in float16; statistics stay in float64."""
        state = {
            name: value.half() if half and value.dtype == torch.float32 else value
            for name, value in named("net", trained.network.state_dict()).items()
        }
        paths = trained.network.paths
        commit, dirty = provenance.source()
        best = trained.best
        made = {
            "tool": "kedit_hub",
            "version": __version__,
            "seed": seed,
            "commit": commit,
            "dirty": dirty,
            "versions": provenance.versions(),
            "environment": provenance.environment(model, quantization_of(model.get_submodule(paths[0]))),
            "datasets": list(datasets),
        }
        value = {
            "format_version": 1,
            "kind": "trained-editor",
            "method": method,
            "settings": trained.settings.model_dump(mode="json"),
            "base": BaseRef(
                id=base[0],
                revision=base[1],
                model_type=str(model.config.model_type),  # type: ignore[union-attr]
                fingerprint={path: fingerprint.fingerprint(model.get_submodule(path)) for path in paths},
            ).model_dump(mode="json"),
            "maps": [{"path": path, "shape": list(trained.network.shapes[path])} for path in paths],
            "tensors": {name: _described(name, tensor) for name, tensor in state.items()},
            "training": {
                "seed": seed,
                "steps": trained.steps,
                "best_step": int(best["step"]),
                "training": trained.training,
                "validation": trained.validation,
                "edits": records_digest([lesson.edit for lesson in lessons]),
                "scores": {name: best[name] for name in (*MEASURES, "loss") if best[name] != UNMEASURED},
                "marks": sorted({one for lesson in lessons for one in _marks(lesson.edit)}),
            },
            "provenance": {name: item for name, item in made.items() if item not in (None, {}, [], ())},
        }
        manifest = Manifest.model_validate_json(strictjson.canonical(value), strict=True)
        return cls(manifest, state)._checked(DEFAULT)

    def network(self) -> Any:
        """The network, its parameters in float32."""
        with torch.random.fork_rng(devices=[]):  # buffers that are not stored are made; what is drawn is overwritten
            network = METHODS[self.method].build(self.settings, {one.path: one.shape for one in self.manifest.maps})
        state = unnamed("net", self.tensors)
        network.load_state_dict(
            {name: value if value.dtype == torch.float64 else value.float() for name, value in state.items()},
            assign=True,
        )
        return network.requires_grad_(False).eval()

    def unseen(self, edits: Sequence[Asked]) -> list[Asked]:
        """The edits, or records, whose subject and prompt are of none that the editor was trained on; all of them where it does not say."""
        known = set(self.manifest.training.marks or ())
        return [one for one in edits if known.isdisjoint(_marks(one.edit if isinstance(one, EditRecord) else one))]

    def replace_scores(self, scores: Mapping[str, Any] | None) -> "TrainedEditor":
        """The same editor (same id) with other scores: a JSON object with finite numbers."""
        return replace(self, scores=None if scores is None else dict(scores))

    def verify(self, model: nn.Module) -> dict[str, fingerprint.Level]:
        """How well every edited map of this model is recognised; WrongBaseError where it is another base's."""
        base = self.manifest.base
        found = str(model.config.model_type)  # type: ignore[union-attr]
        if found != base.model_type:
            raise WrongBaseError(
                f"the editor {self.id[:12]} was trained on {base.id} (a {base.model_type}), this model is a {found}: train one on it "
                "with `kedit editor train`"
            )
        levels: dict[str, fingerprint.Level] = {}
        for path, expected in base.fingerprint.items():
            try:
                module = model.get_submodule(path)
            except AttributeError:
                raise WrongBaseError(
                    f"the editor {self.id[:12]} edits {path} of {base.id}, which this model does not have: train one on it"
                ) from None
            reason = not_editable(model, path)
            if reason is not None:
                raise UnsupportedModelError(
                    f"the editor {self.id[:12]} edits {path}, and {reason}: editors may only change linear maps of the attention and the "
                    "MLP inside a block, with weights of their own. Do not use this editor."
                )
            levels[path] = fingerprint.check(
                expected, module, path=path, model=f"this model (the editor was trained on {base.id!r})"
            )
        return levels

    # --- files ------------------------------------------------------------------------------------------------------

    def files(self) -> dict[str, bytes]:
        """The files of the editor by name."""
        found = {CONFIG: self.manifest.to_bytes(), TENSORS: write_tensors(self.tensors), CARD: self._card().encode()}
        if self.scores is not None:
            found[SCORES] = strictjson.pretty({**self.scores, "editor_id": self.id})
        return found

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the folder whole or not at all; an editor already there is replaced, any other folder is left alone."""
        target = Path(folder)
        check_saveable(target)
        write_folder(target, self.files())
        return target

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, limits: Limits = DEFAULT) -> "TrainedEditor":
        """Read a folder that `save` wrote; PatchFormatError (or a subclass) names the file and the fault."""
        path = Path(folder)
        if not path.is_dir():
            raise PatchFormatError(f"{str(path)!r} is not a folder. Give the folder of a trained editor.")
        if missing := [name for name in (CONFIG, TENSORS) if not os.path.lexists(path / name)]:
            said = "is the folder of a patch" if os.path.lexists(path / PATCH_TENSORS) else f"has no {missing[0]}"
            raise PatchFormatError(
                f"{str(path)!r} {said}. Give the folder of a trained editor: `kedit editor train` writes one."
            )
        bounds = {
            CONFIG: limits.max_config_bytes,
            TENSORS: limits.max_tensor_bytes,
            **({SCORES: limits.max_evals_bytes} if os.path.lexists(path / SCORES) else {}),
        }
        return cls.from_files({name: read_file(path / name, bound) for name, bound in bounds.items()}, limits=limits)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], *, limits: Limits = DEFAULT) -> "TrainedEditor":
        """`load` for bytes that are already in memory, by file name."""
        for name in (CONFIG, TENSORS):
            if name not in files:
                raise PatchFormatError(f"{name} is missing. A trained editor has {CONFIG} and {TENSORS}.")
        manifest = Manifest.parse(files[CONFIG], limits)
        editor = cls(manifest, read_tensors(files[TENSORS], TENSORS, limits))._checked(limits)
        if SCORES not in files:
            return editor
        scores = strictjson.loads(files[SCORES], what=SCORES, max_bytes=limits.max_evals_bytes, limits=limits)
        if not isinstance(scores, dict) or scores.pop("editor_id", None) != manifest.id:
            raise PatchFormatError(f"{SCORES} is not of the editor {manifest.id[:12]}. Measure it again.")
        return editor.replace_scores(scores)

    def _checked(self, limits: Limits) -> "TrainedEditor":
        """Tensors are those of the manifest, and of the network that its settings describe."""
        m = self.manifest
        chosen = m.chosen
        if set(m.base.fingerprint) != {one.path for one in m.maps}:
            raise PatchFormatError(f"{CONFIG} must fingerprint exactly the maps that are edited.")
        for one in m.maps:
            if m.base.fingerprint[one.path].shape != one.shape:
                raise PatchFormatError(
                    f"{one.path!r} is edited with shape {one.shape}; its fingerprint has another, {m.base.fingerprint[one.path].shape}."
                )
        least = _foreseen(m.method, chosen, m.maps)
        if least > len(m.tensors):
            raise PatchFormatError(
                f"the tensors of this editor are not those of a {m.method} network: {len(m.tensors):,} are told, one of its "
                f"{len(m.maps):,} maps has {least:,}."
            )
        wanted = _laid_out(m.method, chosen, m.maps)
        expected = {"/".join(f"net.{name}".rsplit(".", 1)): tensor for name, tensor in wanted.items()}
        if not set(expected) == set(m.tensors) == set(self.tensors):
            odd = sorted(set(expected) ^ set(m.tensors) | set(expected) ^ set(self.tensors))
            raise PatchFormatError(f"the tensors of this editor are not those of a {m.method} network: {odd[:3]}.")
        for name, tensor in self.tensors.items():
            like, exact = expected[name], expected[name].dtype == torch.float64
            dtypes = (torch.float64,) if exact else (torch.float32, torch.float16)
            if tensor.shape != like.shape or tensor.dtype not in dtypes:
                raise PatchFormatError(
                    f"tensor {name!r} has shape {tuple(tensor.shape)} and type {tensor.dtype}; a {m.method} network of these settings has "
                    f"{tuple(like.shape)} and {dtypes[0]}."
                )
            top = largest(tensor)
            if not top < (float("inf") if exact else limits.max_abs_value):
                raise LimitError(
                    f"tensor {name!r} holds {top:.3g}; finite values up to {limits.max_abs_value:g} are taken."
                )
            if _described(name, tensor) != m.tensors[name].model_dump(mode="json"):
                raise PatchFormatError(f"tensor {name!r} is not what {CONFIG} describes: damaged or changed.")
            if name.endswith(("/count", "/squares")) and bool((tensor < 0).any()):
                raise PatchFormatError(f"tensor {name!r} is below 0: these are no statistics.")
        return self

    def _card(self) -> str:
        m, record = self.manifest, self.manifest.training
        lines = [
            "---",
            f"base_model: {m.base.id}",
            "library_name: kedit_hub",
            f'tags: ["kedit", "knowledge-editing", "trained-editor", "kedit-method:{m.method}"]',
            "---",
            "",
            f"# {escape(m.method)}: a trained editor for {escape(m.base.id)}",
            "",
            f"{METHODS[m.method].summary}. It makes patches for this base alone:",
            "",
            "    patch = kedit_hub.edit(model, edits, editor=<this folder>)",
            "",
            f"Trained for {record.steps:,} steps (best: {record.best_step:,}) on {record.training:,} edits; {record.validation:,} edits "
            f"of other subjects were kept for validation. Seed {record.seed}.",
            "",
            "| on validation edits, teacher forcing | |",
            "|---|---|",
            *(f"| {escape(name)} | {value:.3f} |" for name, value in record.scores.items()),
            *tables(self.scores),
            "",
            f"It edits {', '.join(escape(one.path) for one in m.maps)}.",
        ]
        return "\n".join(lines) + "\n"


def _laid_out(method: str, settings: Any, maps: Sequence[Map]) -> dict[str, Tensor]:
    """The tensors of a new network, without memory. PatchFormatError where the method has none of these settings and maps."""
    try:
        with torch.device("meta"):
            return dict(METHODS[method].build(settings, {one.path: one.shape for one in maps}).state_dict())
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as cause:
        raise PatchFormatError(
            f"there is no {method} network of these settings and {len(maps)} maps: {_fault(cause)}."
        ) from None


def _foreseen(method: str, settings: Any, maps: Sequence[Map]) -> int:
    """How many tensors a network of these maps has, told from networks of two: to lay out a hostile one takes minutes.

    It has tensors of its own, of every shape and of every map.
    """

    def count(*some: Map) -> int:
        return len(_laid_out(method, settings, some))

    groups: dict[tuple[int, int], list[Map]] = {}
    for one in maps:
        groups.setdefault(one.shape, []).append(one)
    first, *others = groups.values()
    alike = next((group for group in groups.values() if len(group) > 1), None)
    alone = count(first[0])
    per_shape = count(first[0], others[0][0]) - alone if others else 0
    per_map = count(*alike[:2]) - alone if alike else 0
    return alone + (len(groups) - 1) * per_shape + (len(maps) - len(groups)) * per_map


def _described(name: str, tensor: Tensor) -> dict[str, Any]:
    return {
        "dtype": DTYPE_NAMES[tensor.dtype],
        "shape": list(tensor.shape),
        "sha256": tensor_digest(name, tensor),
    }


def _fault(cause: Exception) -> str:
    if not isinstance(cause, ValidationError):
        return str(cause)[:300]
    first = cause.errors(include_url=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}, got {str(first['input'])[:80]!r}"


COPIES = 6  # of a network in a checkpoint, at most: itself, the best one, Adam's two moments and step of each parameter; the log
CHECKPOINT = replace(  # what is read of one; `check_readable` has let its network through
    DEFAULT, max_tensor_bytes=COPIES * DEFAULT.max_tensor_bytes, max_tensors=COPIES * DEFAULT.max_tensors
)


class FileCheckpoint:
    """The state of a training in one file, named after all that the training depends on, so that no other one finds it."""

    def __init__(self, folder: str | os.PathLike[str], **made_from: Any):
        digest = hashlib.sha256(strictjson.canonical(made_from)).hexdigest()
        self.file = Path(folder) / f"training-{digest[:32]}.safetensors"

    def read(self) -> Mapping[str, Tensor] | None:
        """KeditError for a damaged file, which is left as it is."""
        if not self.file.exists():
            return None
        data = read_file(self.file, CHECKPOINT.max_tensor_bytes)
        try:
            return read_tensors(data, "it", CHECKPOINT)
        except PatchFormatError as cause:
            raise self.damaged(str(cause).removesuffix(" Download it again.")) from None

    def damaged(self, why: str) -> KeditError:
        """What to raise where the file does not hold the state of this training."""
        return KeditError(
            f"the checkpoint '{self.file}' is damaged, and this training cannot go on from it: {why.rstrip('.')}. Delete the file, and the "
            "same call begins anew"
        )

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Whole and durable, or not at all: OSError leaves what was there."""
        write_file(self.file, write_tensors(tensors))

    def done(self) -> None:
        """The training has ended; its state is no longer needed."""
        with suppress(FileNotFoundError):
            self.file.unlink()


def check_saveable(folder: str | os.PathLike[str]) -> None:
    """What `TrainedEditor.save` would refuse, before there is an editor: PatchFormatError for a folder of something else."""
    check_replaceable(Path(folder), "the folder of a trained editor", FILES, TENSORS, PatchFormatError)
