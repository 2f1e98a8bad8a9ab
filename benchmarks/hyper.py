"""Editors that are trained (KE, MEND, MALMEN, RLEdit, DAFNet), beside editors that are not: sequences of 1, 10 and 100 edits of Atlas.

    python benchmarks/hyper.py [--only train,test,ablation] [--names mend,ke] [--seeds 3] [--editors FOLDER]    # goes on where it stopped
    python benchmarks/hyper.py --report                                                                      # tables and plots

Every cell is appended to results/hyper.jsonl as it is finished. A method has two configurations (CONFIGURATIONS, equally many for all).
Both are trained with seed 0; what sequences of its own validation subjects say after their last edit (`dev`) chooses one, which is trained
again with other seeds. `test` asks about edits of the test split, whose subjects no training has seen, in an order drawn by the seed, under
teacher forcing, always after all n edits of a sequence. Trained editors are kept in --editors, a training that was stopped goes on.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

from common import RESULTS, Report, quiet
from editors import ROWS

import kedit_hub
from kedit_hub import PatchStack, TrainedEditor, demo
from kedit_hub.api import load_model
from kedit_hub.editors.editor import EDITORS
from kedit_hub.editors.hyper.lessons import Lesson, split
from kedit_hub.evaluate.metrics import harmonic_mean

BASE = "kedit-hub/atlas-llama"
DAFNET = {
    "step": 1e-2,
    "step_lr": 1e-3,
    "inner": 24,
    "head": 12,
    "score": 8,
    "asked": 24,
    "validated": 40,
    "length": 100,
}
MALMEN = {"steps": 75, "validate_every": 25, "length": 100, "rank": 48, "curriculum": 4, "asked": 24}
CONFIGURATIONS = {  # steps: about a minute of one core each
    "dafnet": [
        {**DAFNET, "steps": 150, "validate_every": 25, "curriculum": 4},
        {**DAFNET, "steps": 150, "validate_every": 25, "curriculum": 4, "counted": True},
    ],
    "mend": [{"steps": 220, "validate_every": 44}, {"steps": 70, "validate_every": 14, "length": 8, "parallel": 4}],
    "malmen": [MALMEN, {**MALMEN, "lr": 3e-3}],
    "rledit": [
        {"steps": 32, "validate_every": 8, "turns": 6, "length": 4, "rank": 48, "parallel": 1, "back": 4, "lr": 3e-3},
        {"steps": 28, "validate_every": 7, "turns": 4, "length": 10, "rank": 48, "parallel": 1, "back": 2, "lr": 3e-3},
    ],
    "ke": [
        {"steps": 110, "validate_every": 22, "parallel": 16},
        {"steps": 110, "validate_every": 22, "parallel": 16, "lr": 1e-3},
    ],
}
# row of the table -> (editor, edits read at once from the model as edited so far; None: all of the unedited model, or its own)
TRAINED = {
    "ke": ("ke", 1),
    "mend": ("mend", 1),
    "mend, unedited model's signals": ("mend", None),
    "malmen": ("malmen", 10),
    "malmen, all at once": ("malmen", None),
    "rledit": ("rledit", None),
    "dafnet": ("dafnet", None),
}
# row -> name in benchmarks/editors.py, whose settings were chosen on dev edits; in patches of ten, each made on those before
UNTRAINED = {"rome": "rome-published", "memit": "memit written", "alphaedit": "alphaedit", "ft-l": "ft-l"}
ABLATIONS = {
    "dafnet, without intra": {"intra": False},
    "dafnet, without inter": {"inter": False},
    "dafnet, without curriculum": {"curriculum": 0},
    "dafnet, detached decay": {"detached": True},
}
DRAWS = {1: 8, 10: 2, 100: 1}  # edits of a sequence -> sequences of one seed
FIRST = 10  # retention: reliability of the first so many
LOCALITY = ("neighbour", "same_subject", "unrelated")
MEASURES = ("reliability", "generalization", "locality", *LOCALITY, "retention", "H3", "s/edit")


class Bench:
    def __init__(self, out, editors):
        self.out, self.editors = out, editors
        self.model, self.tokenizer = load_model(BASE)
        self.lessons = [Lesson.of(edit) for edit in demo.training_edits()]
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

    def trained(self, method, number, seed, more=None, name=None):
        """The editor of a configuration, trained now if there is none; its training is a cell."""
        name = name or f"{method}-{number}"
        folder = self.editors / f"{name}-seed{seed}"
        settings = {**CONFIGURATIONS[method][number], **(more or {})}

        def measure():
            started, cpu = time.perf_counter(), time.process_time()
            made = kedit_hub.train_editor(
                self.model, self.lessons, method, tokenizer=self.tokenizer, settings=settings, seed=seed,
                checkpoint=self.editors / ".training", half=True, progress=False,
            )  # fmt: skip
            made.save(folder)
            record = made.manifest.training
            return {
                "editor": made.id, "cpu": time.process_time() - cpu, "seconds": time.perf_counter() - started, "settings": settings,
                "best_step": record.best_step, "steps": record.steps, "bytes": sum(file.stat().st_size for file in folder.iterdir()),
                "validation": record.scores,
            }  # fmt: skip

        self.cell(measure, what="training", name=name, seed=seed)
        return TrainedEditor.load(folder)

    def chosen(self, method):
        """The number of the configuration that is the better one on validation subjects, of those that were tried."""
        return max(range(len(CONFIGURATIONS[method])), key=lambda number: self.dev(method, number)["H3"])

    def dev(self, method, number):
        editor = self.trained(method, number, 0)
        held = split(self.lessons, editor.settings.validation, 0)[1]
        edits = list({lesson.about: lesson.edit for lesson in held}.values())

        def measure():
            row = next(name for name, (kind, _) in TRAINED.items() if kind == method)
            found = [self.sequences(row, editor, edits, n, min(draws, 4)) for n, draws in ((1, 4), (10, 3), (40, 1))]
            return {"H3": statistics.fmean(one["H3"] for one in found), "H3 at 1, 10, 40": [one["H3"] for one in found]}

        return self.cell(measure, what="dev", name=f"{method}-{number}", seed=0)

    def sequences(self, row, editor, edits, n, draws):
        sheets = [self.sequence(row, editor, edits[i * n : (i + 1) * n]) for i in range(draws)]
        return {name: mean([sheet[name] for sheet in sheets]) for name in MEASURES}

    def sequence(self, row, editor, edits):
        cpu = time.process_time()
        patches = self.patches(row, editor, edits)
        seconds = (time.process_time() - cpu) / len(edits)
        patched = kedit_hub.apply(PatchStack(patches), self.model, tokenizer=self.tokenizer, mode="sum")
        told = kedit_hub.evaluate(patched, edits, protocols=("tf-token",), drift_texts=[]).protocols["tf-token"]
        first = None
        if len(edits) > FIRST:
            early = kedit_hub.evaluate(patched, edits[:FIRST], protocols=("tf-token",), drift_texts=[])
            first = early.protocols["tf-token"]["reliability"]
        patched.detach()
        kinds = {kind: told["locality"].get(kind) for kind in LOCALITY}
        three = [told["reliability"], told["generalization"], mean(kinds.values())]
        return dict(zip(MEASURES, (*three, *kinds.values(), first, harmonic_mean(three), seconds)))

    def patches(self, row, editor, edits):
        if editor is not None:
            turn = TRAINED.get(row, ("", None))[1]
            settings = {} if turn is None else {"turn": turn}
            return [
                kedit_hub.edit(
                    self.model, edits, editor=editor, tokenizer=self.tokenizer, settings=settings, progress=False
                )
            ]
        method, settings, mode = ROWS[UNTRAINED[row]]
        settings = {**({"failed": "drop"} if "failed" in EDITORS[method].settings.model_fields else {}), **settings}
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


def mean(values):
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def run(bench, only, names, seeds):
    def wanted(what, name):
        return (not only or what in only) and (not names or name in names)

    for seed in range(seeds):
        for method in CONFIGURATIONS:
            if wanted("train", method):
                bench.trained(method, bench.chosen(method), seed)
            if wanted("test", method):
                editor = bench.trained(method, bench.chosen(method), seed)
                for row, (kind, _) in TRAINED.items():
                    if kind == method:
                        bench.test(row, seed, editor)
        for row in UNTRAINED:
            if wanted("test", row):
                bench.test(row, seed)
        for name, more in ABLATIONS.items():
            if wanted("ablation", name):
                number = bench.chosen("dafnet")
                bench.test(
                    name, seed, bench.trained("dafnet", number, seed, more, name.replace(", ", "-").replace(" ", "-"))
                )


# --- report -----------------------------------------------------------------------------------------------------------


def spread(values, digits=2):
    """mean ± sd over seeds"""
    known = [value for value in values if value is not None]
    if not known:
        return None
    sd = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.{digits}f}{sd}"


def report(cells):
    told = Report("hyper", "Trained editors on Atlas: sequences of test edits, scored after the last one")
    trainings = [cell for cell in cells if cell["what"] == "training"]
    tests = [cell for cell in cells if cell["what"] == "test"]
    told.say(__doc__.split("\n\n")[2].replace("\n", " "))
    told.say()
    told.say("## Configurations, and the one that was chosen")
    rows = []
    for cell in (cell for cell in cells if cell["what"] == "dev"):
        own = next(one for one in trainings if (one["name"], one["seed"]) == (cell["name"], 0))
        settings = ", ".join(f"{name} {value}" for name, value in own["settings"].items())
        rows.append([cell["name"], settings, *cell["H3 at 1, 10, 40"], cell["H3"]])
    told.table(["configuration", "settings", "H3 at 1", "at 10", "at 40", "mean"], rows)
    told.say("## Trainings")
    rows = []
    for name in dict.fromkeys(cell["name"] for cell in trainings):
        own = [cell for cell in trainings if cell["name"] == name]
        best = ", ".join(str(cell["best_step"]) for cell in own)
        rows.append([name, len(own), spread([c["cpu"] for c in own], 0), best, own[0]["steps"], f"{own[0]['bytes']:,}"])
    told.table(["editor", "seeds", "CPU s", "best step", "steps", "bytes"], rows)
    for n in DRAWS:
        told.say(f"## n = {n}" + (f", {DRAWS[n]} sequences a seed" if DRAWS[n] > 1 else ", one sequence a seed"))
        rows = []
        for name in (*TRAINED, *UNTRAINED, *ABLATIONS):
            own = [cell for cell in tests if (cell["name"], cell["n"]) == (name, n)]
            if own:
                rows.append([name, len(own), *(spread([cell[measure] for cell in own]) for measure in MEASURES)])
        told.table(["editor", "seeds", *(m if m != "retention" else f"first {FIRST}" for m in MEASURES)], rows)
    told.save()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="train, test, ablation")
    parser.add_argument("--names", default="", help="methods or rows, separated by semicolons")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--editors", type=Path, default=Path("build/editors"))
    parser.add_argument("--out", type=Path, default=RESULTS / "hyper.jsonl")
    parser.add_argument("--report", action="store_true")
    asked = parser.parse_args()
    quiet()
    if asked.report:
        report([json.loads(line) for line in asked.out.read_text().splitlines()])
        return
    asked.editors.mkdir(parents=True, exist_ok=True)
    names = set(filter(None, asked.names.split(";")))
    run(Bench(asked.out, asked.editors), set(filter(None, asked.only.split(","))), names, asked.seeds)


if __name__ == "__main__":
    main()
