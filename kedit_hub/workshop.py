"""Patches for a benchmark, each made once. Law: a patch is found again only by the digest of all it was made from, and what making it cost
is kept beside it.

    shop = Workshop(Bases("kedit-hub/atlas-llama"), "rome", folder="results/patches", settings={})
    shop.made([edit], seed=0)          # Made(edits, patch, cost): made now, or read back

    <folder>/<digest>/patch            the patch, absent where the editor failed on every edit
    <folder>/<digest>/made.json        seconds, bytes, and the editor's words where it failed
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from kedit_hub import api, provenance, strictjson
from kedit_hub.base.profile import BaseProfile
from kedit_hub.editors.editor import EDITORS
from kedit_hub.edits import Edit
from kedit_hub.errors import EditFailedError, KeditError
from kedit_hub.evaluate.bench import Cost, Made
from kedit_hub.evaluate.cells import records_digest
from kedit_hub.evaluate.suites import peak_memory
from kedit_hub.limits import DEFAULT
from kedit_hub.materials import Bases
from kedit_hub.patch.patch import Patch
from kedit_hub.patch.signature import CONFIG, TENSORS
from kedit_hub.stack.choose import by_form, has_rows
from kedit_hub.stack.patched import PatchedModel
from kedit_hub.stack.settings import StackSettings
from kedit_hub.stack.stack import PatchStack

MADE = "made.json"


class Workshop:
    """One method on one base. settings: of the method, JSON values. profile: None = the one that `kedit_hub.edit` would take."""

    def __init__(
        self,
        bases: Bases,
        method: str,
        *,
        folder: str | os.PathLike[str],
        settings: Mapping[str, Any],
        profile: BaseProfile | None = None,
    ):
        self.bases = bases
        self.method = method
        self.folder = Path(folder)
        self.asked = _flat(settings)
        self._profile = profile
        known = EDITORS[method].settings.model_fields
        # in a batch an edit that does not take must not take the others with it; it is asked, and counts as wrong
        self.settings = {**({"failed": "drop"} if "failed" in known else {}), **settings}

    @cached_property
    def profile(self) -> BaseProfile:
        """What is edited under: the given profile where the method can take it."""
        site = EDITORS[self.method].site
        if self._profile is not None and site in (None, self._profile.site):
            return self._profile
        find = api.profile_of if site is None else api.classic_profile
        return find(self.bases.model, self.bases.tokenizer)

    def has(self, edits: Sequence[Edit], seed: int) -> bool:
        """Whether this patch was made already."""
        return self._place(edits, seed).is_dir()

    def make(self, edits: Sequence[Edit], seed: int) -> None:
        """Make one patch and keep it. What the editor refuses is said by `made`, where the patch is needed."""
        with suppress(KeditError):
            self._make(self._place(edits, seed), edits, seed)

    def made(self, edits: Sequence[Edit], seed: int) -> Made:
        """One patch of these edits. KeditError for what the editor refuses; edits that do not take are no error."""
        where = self._place(edits, seed)
        if not where.is_dir():
            self._make(where, edits, seed)
        name = where / MADE
        told = strictjson.loads(
            name.read_bytes(), what=f"'{name}'", max_bytes=DEFAULT.max_config_bytes, error=KeditError
        )
        patch = Patch.load(where / "patch") if told.pop("failed") is None else None
        return Made(tuple(edits), patch, Cost(**told))

    def write(self, model: Any, edits: Sequence[Edit], seed: int) -> tuple[Any, Made]:
        """The edits made on `model`, which may hold others already, and written into the weights of a copy of it."""
        patch = None
        with counted(model) as cost, suppress(EditFailedError):
            patch = self._edit(model, edits, seed)
            mode = (
                "joint" if has_rows(PatchStack([patch])) else "sum"
            )  # what is a change of weights already is written as it is
            model = self.attached([patch], model, self.bases.tokenizer, mode).fuse()
        return model, Made(tuple(edits), patch, Cost(**cost))

    def attached(self, patches: Sequence[Patch], model: Any, tokenizer: Any, mode: str) -> PatchedModel:
        """Patches of this workshop on a model. No trust policy is asked: they were made here.

        "auto" goes by form: a choice by the patches' probes would be made on what is scored afterwards.
        """
        stack, asked = PatchStack(patches), StackSettings.of(mode=mode)
        settings = StackSettings(mode=by_form(stack, asked).mode)
        return PatchedModel(model, tokenizer, stack, profiles=api._profiles(tokenizer, self.profile), settings=settings)

    def _edit(self, model: Any, edits: Sequence[Edit], seed: int) -> Patch:
        return api.edit(
            model, list(edits), self.method, tokenizer=self.bases.tokenizer, settings=self.settings, profile=self.profile,
            seed=seed, progress=False,
        )  # fmt: skip

    def _place(self, edits: Sequence[Edit], seed: int) -> Path:
        commit, dirty = provenance.source()
        made_from = {
            "method": self.method,
            "settings": self.settings,
            "edits": records_digest(edits),
            "base": self.bases.digest,
            "profile": self.profile.id,
            "seed": seed,
            "source": [commit, dirty],
            "versions": provenance.versions(),
        }
        return self.folder / sha256(strictjson.canonical(made_from)).hexdigest()

    def _make(self, where: Path, edits: Sequence[Edit], seed: int) -> None:
        patch, failed = None, None
        with counted(self.bases.model) as cost:
            try:
                patch = self._edit(self.bases.model, edits, seed)
            except EditFailedError as error:
                failed = str(error)
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".new-") as temporary:
            new = Path(temporary) / "new"
            new.mkdir()
            size, trained = 0, 0.0
            if patch is not None:
                saved = patch.save(new / "patch")
                size = sum((saved / name).stat().st_size for name in (CONFIG, TENSORS))
                trained = float((patch.evals or {}).get("making", {}).get("train_s", 0.0))
            told = {**cost, "train_s": trained, "artifact_bytes": size, "failed": failed}
            (new / MADE).write_bytes(strictjson.pretty(told))
            try:
                os.rename(new, where)
            except OSError:
                if not where.is_dir():  # else another process was as fast
                    raise


@contextmanager
def counted(model: Any) -> Iterator[dict[str, Any]]:
    """Filled in at the end: cpu_s, wall_s, peak_rss_bytes, peak_device_bytes of what was done inside."""
    _forget_peaks(model)
    cost: dict[str, Any] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield cost
    cost |= {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall, **peak_memory(model)}


def _forget_peaks(model: Any) -> None:
    """High-water marks begin here; that of the process only where the system can forget (Linux), else it is of its whole life."""
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    if sys.platform.startswith("linux"):
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"value": {"steps": 60}} -> {"value.steps": 60}. KeditError for what is neither a number, a text, true, false nor null."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        elif value is None or isinstance(value, bool | int | float | str):
            found[f"{prefix}{name}"] = value
        else:
            raise KeditError(
                f"the setting {prefix}{name}={str(value)[:80]} is no plain value: pass numbers and texts, nested in dicts"
            )
    return found
