"""`bench`: editors, suites and bases in, measured runs out. Law: a cell that is measured is on disk before the next one begins, and is
not measured again.

    runs = kedit_hub.bench(["rome", "memit"], ["single", "stack"], "kedit-hub/atlas-llama", "test", n=(1, 10), out="results")

`results/runs.jsonl` grows by one line for each cell; `results/patches` keeps the patches, which the cells share. After an interruption
the same call goes on where it stopped. On several processes: see kedit_hub.evaluate.crew.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from kedit_hub import api, demo, provenance
from kedit_hub.base.profile import BaseProfile
from kedit_hub.editors.editor import EDITORS, Advance, progress_bar
from kedit_hub.edits import Edit
from kedit_hub.errors import CrewError, KeditError
from kedit_hub.evaluate.bench import Asking, alone, efficiency, retention, rewritten, together
from kedit_hub.evaluate.cache import Question
from kedit_hub.evaluate.cells import WEIGHTS, Cell, answers_by_relation, check_names, plan, pool, records_digest
from kedit_hub.evaluate.crew import Crew, crew
from kedit_hub.evaluate.drift import PLAIN_TEXTS
from kedit_hub.evaluate.protocols import DEFAULT_PROTOCOLS, PROTOCOLS
from kedit_hub.evaluate.run import Records, Run, RunsFile, Source, key_of
from kedit_hub.materials import PRECISIONS, Bases, read
from kedit_hub.patch.patch import Patch
from kedit_hub.stack.choose import by_form, has_rows
from kedit_hub.stack.settings import StackSettings
from kedit_hub.stack.stack import PatchStack
from kedit_hub.workshop import Workshop

RUNS, PATCHES = "runs.jsonl", "patches"
FEWER_BITS = ("bf16", "int8", "nf4")  # what the suite "quantization" goes through where nothing is said
DRIFT_TEXTS = 100  # sentences of Atlas that the drift of the demo models is measured on: they know no others


def bench(
    methods: Sequence[str],
    suites: Sequence[str],
    base: Any,
    edits: Sequence[Edit] | str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    n: Sequence[int] = (1, 10, 100),
    batch_size: int = 1,
    seeds: Sequence[int] = (0,),
    order_seeds: Sequence[int] = (0,),
    quantizations: Sequence[str | None] = (None,),
    modes: Sequence[str] = ("auto",),
    protocols: Sequence[str] = DEFAULT_PROTOCOLS,
    tokenizer: Any = None,
    settings: Mapping[str, Any] | None = None,
    profile: BaseProfile | None = None,
    drift_texts: Sequence[str] | None = None,
    fluency: bool = False,
    split: str | None = None,
    limit: int | None = None,
    device_map: Any = None,
    resume: bool = True,
    per_edit: bool = True,
    progress: bool = True,
) -> list[Run]:
    """Measure every cell of methods x suites x quantizations x modes x seeds x order seeds x n, see kedit_hub.evaluate.cells. Returns
    their runs, those too that `out` held already; on several processes the first one has them, the others return [].

    base: a model id or folder, or a transformers model. edits: a list, "dev" or "test" of Atlas, or what `read_dataset` takes (split: of
    it). limit: choose from the first edits only. n: edits of a cell; batch_size: edits per patch of the suite "sequential".
    seeds: of what editors draw at random; order_seeds: of the order that edits come in.
    quantizations: None (as it is loaded by default), "bf16", "int8", "nf4", "fp4": the bases that patches are measured on. They are made
    on the default one. modes: "auto", "gated", "joint", "sum"; "weights" for the suite "sequential" on the default base.
    settings: of every method, JSON values. drift_texts: None = sentences of Atlas for the demo models, else plain built-in texts.
    resume: False = measure again what is measured already. per_edit: keep the outcome of every question in the file.
    KeditError before anything is measured for what cannot be, and at the end where some of the cells were refused.
    """
    check_names("method", methods, EDITORS)
    check_names("protocol", protocols, PROTOCOLS)
    check_names("quantization", [name or "none" for name in quantizations], ["none", *PRECISIONS])
    given, records = read(edits, split=split)
    chosen = pool(given, limit)
    if len(chosen) < len(given[:limit]):
        left = len(given[:limit]) - len(chosen)
        warnings.warn(f"{left} edits ask what an earlier one asks, and are left out", stacklevel=2)
    cells = plan(suites, chosen, n=n, batch_size=batch_size, seeds=seeds, order_seeds=order_seeds, modes=modes)
    with crew() as team:
        if team.size > 1 and device_map is None and torch.cuda.is_available():
            device_map = {"": int(os.environ["LOCAL_RANK"])}
        bases = Bases(base, tokenizer, device_map)
        if drift_texts is None:
            drift_texts = demo.texts("drift")[:DRIFT_TEXTS] if bases.name in api.EMBEDDED else PLAIN_TEXTS
        asking = Asking(
            protocols=tuple(dict.fromkeys(protocols)),
            distractors=answers_by_relation(chosen) if "choice" in protocols else None,
            drift_texts=tuple(drift_texts),
            fluency=fluency,
            crew=team,
        )
        shops = [
            Workshop(bases, method, folder=Path(out) / PATCHES, settings=settings or {}, profile=profile)
            for method in dict.fromkeys(methods)
        ]
        here = dict.fromkeys(quantizations)
        fewer = dict.fromkeys([None, *(quantizations if any(quantizations) else FEWER_BITS)])
        jobs = [
            _Job(shop, precision, cell)
            for precision in {None: None, **here, **fewer}
            for shop in shops
            for cell in cells
            if precision in (fewer if cell.suite == "quantization" else here)
            and not (precision and cell.mode == WEIGHTS)
        ]
        if not jobs:
            raise KeditError(
                f'mode "{WEIGHTS}" is of a base in full precision: ask for no quantization, or for another mode'
            )
        return _Bench(bases, asking, records, tuple(n), per_edit, progress).run(
            jobs, RunsFile(Path(out) / RUNS), resume
        )


@dataclass(frozen=True)
class _Job:
    """A cell of one method on one base."""

    shop: Workshop
    precision: str | None
    cell: Cell

    def __str__(self) -> str:
        cell, where = self.cell, "" if self.precision is None else f" on {self.precision}"
        return f"{cell.suite} n={cell.n} of {self.shop.method}, {cell.mode}{where}"


@dataclass(frozen=True)
class _Bench:
    """What all jobs of one call share."""

    bases: Bases
    asking: Asking
    records: Records
    sizes: tuple[int, ...]
    per_edit: bool
    progress: bool
    told_by_base: dict[str | None, dict[Question, Any]] = field(default_factory=dict)  # by precision

    @property
    def team(self) -> Crew:
        return self.asking.crew

    def run(self, jobs: Sequence[_Job], file: RunsFile, resume: bool) -> list[Run]:
        done = self._done(file) if resume else set()
        keys: dict[_Job, str] = {}
        refused: list[str] = []
        for shop, precision in dict.fromkeys((job.shop, job.precision) for job in jobs):
            own = [job for job in jobs if (job.shop, job.precision) == (shop, precision)]
            try:
                self.team.map([shop], lambda shop: shop.profile.id)  # one process measures it,
                self.team.each(lambda: shop.profile.id)  # the others find it  # noqa: B023
                keys |= {job: key for job in own if (key := self._found(job, done)) is not None}
                own = [job for job in own if job not in keys]
                self._make(shop, own)
            except CrewError:
                raise
            except KeditError as error:
                refused += [f"{job}: {error}" for job in own]
                continue
            with self._bar(f"{shop.method}{f' on {precision}' if precision else ''}: cells", len(own)) as advance:
                for job in own:
                    try:
                        keys[job] = self._measure(job, done, file)
                    except CrewError:
                        raise
                    except KeditError as error:
                        refused.append(f"{job}: {error}")
                    advance(1)
        if refused:
            more = f"; and {len(refused) - 5} more" if len(refused) > 5 else ""
            raise KeditError(
                f"{len(refused)} of {len(jobs)} cells were refused: {'; '.join(refused[:5])}{more}. The others are in '{file.path}'."
            )
        if not self.team.leads:
            return []
        found = {run.key: run for run in file}
        return [found[keys[job]] for job in jobs]

    # -- what there is already ----------------------------------------------------------------------------------------

    def _done(self, file: RunsFile) -> set[str]:
        """The keys of all runs in the file, as the first process finds it."""
        if not self.team.leads:
            return set(self.team.gather(None)[0])
        if torn := file.torn():
            warnings.warn(f"'{file.path}' ends in half a line ({torn:,} bytes), which is passed over", stacklevel=5)
        commit, found, elsewhere = provenance.source()[0], set(), 0
        for run in file:
            found.add(run.key)
            elsewhere += run.provenance.commit != commit
        if elsewhere:
            warnings.warn(
                f"{elsewhere} runs in '{file.path}' were measured by another version of kedit_hub and are kept: name another folder to "
                "measure them again",
                stacklevel=5,
            )
        return set(self.team.gather(found)[0])

    def _found(self, job: _Job, done: set[str]) -> str | None:
        """The key under which a job is done. What "auto" comes to is known when there are patches; most often it is "gated"."""
        mode = job.cell.mode
        same = {"auto": ("gated", "-"), WEIGHTS: (WEIGHTS,)}.get(mode, (mode, "-"))
        return next((key for mode in same if (key := self._key(job, mode)) in done), None)

    def _asked(self, job: _Job, mode: str) -> dict[str, Any]:
        """The fields of a run that say what is measured."""
        cell = job.cell
        return {
            "suite": cell.suite,
            "method": job.shop.method,
            "mode": mode,
            "base": self.bases.described(job.precision),
            "dataset": self.records.model_copy(update={"edits_sha256": records_digest(cell.edits)}),
            "n": cell.n,
            "batch_size": cell.batch_size,
            "seed": cell.seed,
            "order_seed": cell.order_seed,
            "settings": {**job.shop.asked, "profile": job.shop.profile.id},
        }

    def _key(self, job: _Job, mode: str) -> str:
        return key_of(self._asked(job, mode), **self.asking.how())

    # -- what is to be done -------------------------------------------------------------------------------------------

    def _make(self, shop: Workshop, jobs: Sequence[_Job]) -> None:
        """The patches that these jobs lack, the largest first, each made by one of the processes."""
        wanted = dict.fromkeys(
            (batch, job.cell.seed) for job in jobs if job.cell.mode != WEIGHTS for batch in job.cell.batches
        )
        missing = sorted((one for one in wanted if not shop.has(*one)), key=lambda one: -len(one[0]))
        missing = self.team.gather(missing)[0]
        with self._bar(f"{shop.method}: patches", len(missing)) as advance:

            def make(one: tuple[tuple[Edit, ...], int]) -> None:
                shop.make(*one)
                advance(self.team.size)

            self.team.map(missing, make)

    def _measure(self, job: _Job, done: set[str], file: RunsFile) -> str:
        """The key of the run, which is in the file then."""
        cell, shop = job.cell, job.shop
        model, tokenizer = self.team.each(lambda: self.bases.load(job.precision)), self.bases.tokenizer

        def attach(patches: Sequence[Patch]) -> Any:
            return shop.attached(patches, model, tokenizer, cell.mode)

        asking = replace(self.asking, told_by_base=self.told_by_base.setdefault(job.precision, {}))
        if cell.mode == WEIGHTS:
            mode = WEIGHTS
            scores, made = rewritten(
                model, tokenizer, cell.batches, lambda on, edits: shop.write(on, edits, cell.seed), asking
            )
        else:
            made = self.team.each(lambda: [shop.made(batch, cell.seed) for batch in cell.batches])
            mode = _installed([one.patch for one in made if one.patch is not None], cell.mode)
            if (key := self._key(job, mode)) in done:
                return key
            if cell.suite == "single":
                scores = alone(made, attach, asking)
            else:
                scores = together(made, cell.edits, attach, asking)
        sheet = scores.to_dict()
        outcomes = sheet.pop("per_edit")
        used = next((one.patch.manifest.settings for one in made if one.patch is not None), {})
        commit, dirty = provenance.source()
        run = Run(
            **self._asked(job, mode),
            scores={**sheet, "making": {"failed": sum(one.failed for one in made), "settings": used}},
            per_edit=outcomes if self.per_edit else [],
            retention=retention(scores, self.sizes) if cell.suite == "sequential" else {},
            efficiency=efficiency([one.cost for one in made], cell.n),
            provenance=Source(commit=commit, dirty=dirty, versions=provenance.versions()),
        )
        if self.team.leads:
            file.append(run)
        done.add(run.key)
        return run.key

    def _bar(self, title: str, total: int) -> AbstractContextManager[Advance]:
        return (
            progress_bar(title, total) if self.progress and self.team.leads and total else nullcontext(lambda _: None)
        )


def _installed(patches: Sequence[Patch], mode: str) -> str:
    """What a mode comes to for these patches: "-" where none of them has rows that could be installed in more than one way."""
    stack = PatchStack(patches)
    return by_form(stack, StackSettings.of(mode=mode)).mode if has_rows(stack) else "-"
