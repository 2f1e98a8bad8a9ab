"""Editors that are trained (KE, MEND, MALMEN, RLEdit, DAFNet, InstructEdit) on Atlas, beside editors that are not.

    python benchmarks/hyper.py [--names "mend;ke"] [--seeds 3] [--editors FOLDER]      # goes on where it stopped
    python benchmarks/hyper_report.py                                                  # tables and plots

Every cell is appended to results/hyper.jsonl as it is finished; trained editors are kept in --editors, a training that was stopped goes on.
The seed draws the parameters, the episodes, which subjects are for validation, and the order of the test edits.

An editor is trained on facts whose subjects no test edit has; the best step is chosen on a tenth of these subjects (a
fifth where episodes have a hundred edits, so that a sequence of such a length can be asked). Asked are edits of the
test split, under teacher forcing, always after all n edits of a sequence. Each trained method had the same budget: three learning rates,
chosen by the score of its own training on validation subjects, at a seed that is not reported; ablations take the rate of what they ablate.
"""

import argparse
import json
import random
import time
from dataclasses import replace
from pathlib import Path

from common import RESULTS, mean, quiet
from editors import ROWS

import kedit_hub
from kedit_hub import PatchStack, TrainedEditor, demo
from kedit_hub.api import load_model
from kedit_hub.demo import world
from kedit_hub.demo.triples import phrasings, triples
from kedit_hub.editors.editor import EDITORS as METHODS
from kedit_hub.editors.hyper.instructedit import instruct, pool
from kedit_hub.editors.hyper.lessons import Lesson
from kedit_hub.evaluate.metrics import harmonic_mean
from kedit_hub.records.dafset import GROUPS, Table
from kedit_hub.records.read import read_edits, read_records
from kedit_hub.workshop import counted

BASE = "kedit-hub/atlas-llama"
RATES = (1e-3, 3e-3, 1e-2)
TUNING = 100  # the seed of these trainings
DAFNET = {
    "steps": 110, "validate_every": 22, "length": 100, "curriculum": 3, "asked": 24, "validation": 0.2, "step": 1e-2,
    "step_lr": 1e-3, "inner": 24, "head": 12, "score": 8,
}  # fmt: skip
# editors that learn from DAFSet -> the group that is left out of it
DAFSETS = {"dafnet, DAFSet": None, **{f"dafnet, DAFSet without {group}": group for group in GROUPS}}
EDITORS = {  # name -> (method, settings of its training), about a minute of one core
    "dafnet": ("dafnet", DAFNET),
    "dafnet, counted": ("dafnet", {**DAFNET, "counted": True}),
    "mend": ("mend", {"steps": 160, "validate_every": 40}),
    "malmen": (
        "malmen",
        {"steps": 55, "validate_every": 11, "length": 100, "rank": 48, "curriculum": 3, "asked": 24, "validation": 0.2},
    ),
    "rledit": (
        "rledit",
        {"steps": 24, "validate_every": 8, "turns": 6, "length": 4, "rank": 48, "parallel": 1, "back": 4},
    ),
    "ke": ("ke", {"steps": 85, "validate_every": 17, "parallel": 16}),
    "dafnet, without intra": ("dafnet", {**DAFNET, "intra": False}),
    "dafnet, without inter": ("dafnet", {**DAFNET, "inter": False}),
    "dafnet, without curriculum": ("dafnet", {**DAFNET, "curriculum": 0}),
    "dafnet, detached decay": ("dafnet", {**DAFNET, "detached": True}),
    **{name: ("dafnet", DAFNET) for name in DAFSETS},
}
# row of the table -> (editor, edits read at once from the model as edited so far; None: all of the unedited model, or its own)
TRAINED = {
    "ke": ("ke", 1),
    "mend": ("mend", 1),
    "mend, unedited model's signals": ("mend", None),
    "malmen": ("malmen", 10),
    "malmen, all at once": ("malmen", None),
    "rledit": ("rledit", None),
    **{name: (name, None) for name in EDITORS if name.startswith("dafnet")},
}
FAMILIES = ("counterfact", "wikirecent", "convsent")  # of training; questions (zsre) are the family that is held out
BRIEF = {"steps": 64, "validate_every": 16}
TASKS = {  # editors for several tasks -> (families they learn, settings)
    "multi-task MEND": (FAMILIES, {**BRIEF, "instructed": False, "scaled": False}),
    "multi-task MEND, norms scaled": (FAMILIES, {**BRIEF, "instructed": False, "scaled": True}),
    "InstructEdit": (FAMILIES, {**BRIEF, "instructed": True, "scaled": True}),
    "InstructEdit, norms not scaled": (FAMILIES, {**BRIEF, "instructed": True, "scaled": False}),
    "InstructEdit, asked as published": (
        FAMILIES,
        {**BRIEF, "instructed": True, "scaled": True, "ask_instructed": True},
    ),
    **{f"MEND of {family}": ((family,), {**BRIEF, "instructed": False, "scaled": False}) for family in FAMILIES},
}
TUNED = {  # whose learning rate is looked for -> those that take it
    "dafnet": [name for name in EDITORS if name.startswith("dafnet")],
    **{name: [name] for name in ("mend", "malmen", "rledit", "ke")},
    "multi-task MEND": [name for name in TASKS if "MEND" in name],
    "InstructEdit": [name for name in TASKS if "InstructEdit" in name],
}
# row -> name in benchmarks/editors.py, whose settings were chosen on dev edits; in patches of ten, each made on those before
UNTRAINED = {"rome": "rome-published", "memit": "memit written", "alphaedit": "alphaedit", "ft-l": "ft-l"}
DRAWS = {1: 8, 10: 2, 100: 1, 300: 1}  # edits of a sequence -> sequences of one seed
ASKED = 20  # single edits of every task
FLUENT = 4  # of them that are continued
DAFSET_SHARE = 0.3  # of the triples, in a group of DAFSet
FIRST = 10  # retention: reliability of the first so many
LOCALITY = ("neighbour", "same_subject", "unrelated")
MEASURES = ("reliability", "generalization", "locality", *LOCALITY, "retention", "H3", "s/edit")
TASK_MEASURES = ("reliability", "generalization", "locality", "neighbour", "portability", "fluency before", "fluency")


class Bench:
    def __init__(self, out, editors):
        self.out, self.editors = out, editors
        self.model, self.tokenizer = load_model(BASE)
        self.how = {"protocols": ("tf-token",), "drift_texts": [], "told_by_base": {}}
        self.families = [Lesson.of(record) for record in read_records(demo.task_records("train"))]
        self.cells = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []

    def cell(self, measure, **key):
        """What is known under this key, measured now if nothing is."""
        for cell in self.cells:
            if key.items() <= cell.items():
                return cell
        cell = {**key, **measure()}
        self.cells.append(cell)
        with self.out.open("a") as file:
            file.write(json.dumps(cell) + "\n")
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in cell.items()}, flush=True)
        return cell

    def rate(self, name, method, settings, lessons):
        """The learning rate of an editor: the one of RATES whose training scored best on validation subjects."""
        source = next(source for source, users in TUNED.items() if name in users)
        tried = {}
        for lr in RATES:
            if source == name:
                self.trained(name, method, {**settings, "lr": lr}, TUNING, lessons, what="tuning", lr=lr)
            own = [
                cell for cell in self.cells if (cell["what"], cell["name"], cell.get("lr")) == ("tuning", source, lr)
            ]
            if not own:
                raise SystemExit(f"{name!r} takes the learning rate of {source!r}: train that first")
            tried[lr] = harmonic_mean(
                [own[0]["validation"][name] for name in ("reliability", "generalization", "locality")]
            )
        return max(RATES, key=lambda lr: tried[lr])

    def trained(self, name, method, settings, seed, lessons, what="training", **key):
        """The editor of this name and seed, trained now if there is none; its training is a cell."""
        words = "-".join(map(str, (name, what, seed, *key.values())))
        folder = self.editors / words.replace(", ", "-").replace(" ", "-").lower()

        def measure():
            with counted(self.model) as cost:
                made = kedit_hub.train_editor(
                    self.model, lessons, method, tokenizer=self.tokenizer, settings=settings, seed=seed,
                    checkpoint=self.editors / ".training", half=True, progress=False,
                )  # fmt: skip
            made.save(folder)
            record = made.manifest.training
            return {
                "editor": made.id, "cpu": cost["cpu_s"], "MiB": (cost["peak_rss_bytes"] or 0) / 2**20, "settings": settings,
                "best_step": record.best_step, "steps": record.steps, "bytes": sum(file.stat().st_size for file in folder.iterdir()),
                "validation": record.scores,
            }  # fmt: skip

        self.cell(measure, what=what, name=name, seed=seed, **key)
        return TrainedEditor.load(folder)

    def sequences(self, row, editor, edits, n, draws):
        sheets = [self.sequence(row, editor, edits[i * n : (i + 1) * n]) for i in range(draws)]
        return {name: mean([sheet[name] for sheet in sheets]) for name in MEASURES}

    def sequence(self, row, editor, edits, settings=None):
        cpu = time.process_time()
        patches = self.patches(row, editor, edits, settings)
        seconds = (time.process_time() - cpu) / len(edits)
        patched = kedit_hub.apply(PatchStack(patches), self.model, tokenizer=self.tokenizer, mode="sum")
        told = kedit_hub.evaluate(patched, edits, **self.how).protocols["tf-token"]
        first = None
        if len(edits) > FIRST:
            early = kedit_hub.evaluate(patched, edits[:FIRST], **self.how)
            first = early.protocols["tf-token"]["reliability"]
        patched.detach()
        kinds = {kind: told["locality"].get(kind) for kind in LOCALITY}
        three = [told["reliability"], told["generalization"], mean(kinds.values())]
        return dict(zip(MEASURES, (*three, *kinds.values(), first, harmonic_mean(three), seconds)))

    def patches(self, row, editor, edits, settings):
        if editor is not None:
            turn = TRAINED.get(row, ("", None))[1]
            settings = settings or ({} if turn is None else {"turn": turn})
            return [
                kedit_hub.edit(
                    self.model, edits, editor=editor, tokenizer=self.tokenizer, settings=settings, progress=False
                )
            ]
        method, settings, mode = ROWS[UNTRAINED[row]]
        settings = {**({"failed": "drop"} if "failed" in METHODS[method].settings.model_fields else {}), **settings}
        patches = []
        for i in range(0, len(edits), 10):
            on = (
                kedit_hub.apply(PatchStack(patches), self.model, tokenizer=self.tokenizer, mode=mode)
                if patches
                else None
            )
            try:
                patches.append(
                    kedit_hub.edit(
                        self.model, edits[i : i + 10], method, tokenizer=self.tokenizer, settings=settings, on=on,
                        progress=False,
                    )
                )  # fmt: skip
            except kedit_hub.KeditError as error:  # no edit of these ten took
                print(row, str(error)[:160], flush=True)
            if on is not None:
                on.detach()
        return patches

    def test(self, row, seed, editor=None):
        edits = list(demo.edits("test"))
        random.Random(seed).shuffle(edits)
        for n, draws in DRAWS.items():
            self.cell(
                lambda n=n, draws=draws: self.sequences(row, editor, edits, n, draws),
                what="test",
                name=row,
                seed=seed,
                n=n,
            )

    def tasks(self, name, seed, editor):
        """Single edits of every family, of one under the description kept from training, and of the family kept from it."""
        records = read_records(demo.task_records("test"))
        random.Random(seed).shuffle(records)
        asked = {
            task: [record for record in records if Lesson.of(record).task == task][:ASKED]
            for task in (*FAMILIES, "zsre")
        }
        for task, own in asked.items():
            self.cell(
                lambda own=own, task=task: self.singles(name, editor, own, {"task": task}), what="task", name=name,
                seed=seed, task=task,
            )  # fmt: skip
        kept = {"task": "counterfact", "description": pool("counterfact")[-1]}
        self.cell(
            lambda: self.singles(name, editor, asked["counterfact"], kept), what="task", name=name, seed=seed,
            task="counterfact, description held out",
        )  # fmt: skip

    def singles(self, name, editor, records, settings):
        """Means over edits made alone. Of a sentiment: reliability is ConvSent's edit success, locality what is said of another topic."""
        sheets, published = [], TASKS[name][1].get("ask_instructed")
        for number, record in enumerate(records):
            patches = self.patches(name, editor, [record.edit], settings)
            asked = under(settings, record) if published else record
            patched = kedit_hub.apply(PatchStack(patches), self.model, tokenizer=self.tokenizer, mode="sum")
            replies = [(*asked.extras.replies, *asked.extras.elsewhere)] if asked.extras.replies else None
            scores = kedit_hub.evaluate(patched, [asked.edit], fluency=number < FLUENT, replies=replies, **self.how)
            patched.detach()
            told = scores.protocols["tf-token"]
            three = [
                told["reliability"],
                told["generalization"],
                mean([told["locality"].get(kind) for kind in LOCALITY]),
            ]
            if replies:
                three = [scores.sentiment["score"], None, scores.sentiment["elsewhere"]]
            fluent = [scores.fluency["sampled"][when] if scores.fluency else None for when in ("before", "after")]
            sheets.append((*three, told["locality"].get("neighbour"), mean(told["portability"].values()), *fluent))
        found = dict(zip(TASK_MEASURES, (mean(column) for column in zip(*sheets))))
        return {**found, "H": harmonic_mean([found[name] for name in TASK_MEASURES[:3] if found[name] is not None])}


def under(settings, record):
    """The record with all that is asked about its edit under the instruction, and what has to stay without (Zhang et al. 2024)."""
    told = settings.get("description") or pool(settings["task"])[0]

    def put(prompt):
        return instruct(settings["task"], told, record.edit, prompt)

    edit = replace(
        record.edit,
        prompt=put(record.edit.prompt),
        rephrases=tuple(map(put, record.edit.rephrases)),
        portability=tuple(replace(probe, prompt=put(probe.prompt)) for probe in record.edit.portability),
    )
    replies = tuple(replace(reply, question=put(reply.question)) for reply in record.extras.replies)
    return replace(record, edit=edit, extras=replace(record.extras, replies=replies))


def of_dafset(without=None):
    """Lessons in DAFSet's groups, of the triples whose subjects no test edit has; one group left out."""
    atlas, subjects = world.load(), {edit.subject for edit in demo.training_edits(1)}
    table = Table([triple for triple in triples(atlas) if triple.subject in subjects], phrasings(atlas))
    groups = table.groups(DAFSET_SHARE)
    records = [record for group, own in groups.items() if group != without for record in table.records(group, own)]
    return [Lesson.of(edit) for edit in read_edits(records)]


def run(bench, names, seeds):
    def wanted(name):
        return not names or name in names

    everything = [Lesson.of(edit) for edit in demo.training_edits()]
    for seed in range(seeds):
        for name, (method, settings) in EDITORS.items():
            if wanted(name):
                lessons = of_dafset(DAFSETS[name]) if name in DAFSETS else everything
                settings = {**settings, "lr": bench.rate(name, method, settings, lessons)}
                editor = bench.trained(name, method, settings, seed, lessons)
                for row, (own, _) in TRAINED.items():
                    if own == name:
                        bench.test(row, seed, editor)
        for row in UNTRAINED:
            if wanted(row):
                bench.test(row, seed)
        for name, (learnt, settings) in TASKS.items():
            if wanted(name):
                lessons = [lesson for lesson in bench.families if lesson.task in learnt]
                settings = {**settings, "lr": bench.rate(name, "instructedit", settings, lessons)}
                bench.tasks(name, seed, bench.trained(name, "instructedit", settings, seed, lessons))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--names", default="", help="editors or rows, separated by semicolons")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--editors", type=Path, default=Path("build/editors"))
    parser.add_argument("--out", type=Path, default=RESULTS / "hyper.jsonl")
    asked = parser.parse_args()
    quiet()
    asked.editors.mkdir(parents=True, exist_ok=True)
    run(Bench(asked.out, asked.editors), set(filter(None, asked.names.split(";"))), asked.seeds)


if __name__ == "__main__":
    main()
