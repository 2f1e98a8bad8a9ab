"""Train small editors of Atlas (MEND, MALMEN, DAFNet, InstructEdit, ...) and measure sequences of 1, 10 and 100 test edits.

    python benchmarks/hyper.py --train mend [--out kedit_hub/demo/editors] [--seed 0]     # trains one and saves it
    python benchmarks/hyper.py --measure mend                                              # its sequences, into its scores.json
    python benchmarks/hyper.py --report                                                    # the table of all that are saved

Trained on `demo.training_edits()`: facts whose subjects are in no test edit, 4 new answers each; a tenth of the subjects is kept for
validation, on which the best step is chosen. Measured on the TEST split under teacher forcing, always after all n edits of a sequence.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import Report, quiet

import kedit_hub
from kedit_hub import demo
from kedit_hub.api import evaluate_editor, load_model
from kedit_hub.demo.corpus import FOREIGN_PREFIXES
from kedit_hub.editors.hyper.instructedit import pool
from kedit_hub.editors.hyper.lessons import Lesson
from kedit_hub.evaluate.metrics import harmonic_mean

BASE = "kedit-hub/atlas-llama"
RECIPES: dict[str, dict[str, Any]] = {
    "mend": {"steps": 500},
    "malmen": {"steps": 300, "length": 100, "rank": 48},
    "dafnet": {
        "steps": 220,
        "length": 30,
        "curriculum": 6,
        "validate_every": 55,
        "step": 1e-2,
        "step_lr": 1e-3,
        "inner": 24,
        "head": 12,
        "score": 8,
    },
    "instructedit": {"steps": 120, "validate_every": 40},
    "multitask": {
        "steps": 120,
        "validate_every": 40,
        "instructed": False,
        "scaled": False,
    },  # the same without instructions
    "rledit": {"steps": 60, "validate_every": 20, "turns": 6, "rank": 48},
    "ke": {"steps": 300, "parallel": 16},
}
NOTES = """What was tried besides, all on validation edits: MEND at blocks 2-4 in place of 3-5 (60 steps: 0.726 against 0.809); DAFNet with
output steps of 1e-3 and episodes up to 100 (104 steps: no edit took in sequences of 32), then with steps of 1e-2 and episodes up to 30, the
row above. One training seed and one configuration each, nothing tuned further; sequences of 100 are two draws. Other work shared the
cores, so CPU seconds are the budget. Not trained here: KE and RLEdit, whose code is tested on tiny models alone. "multitask" is
InstructEdit without instructions and without scaling, as many steps (64 CPU s against 107, its texts are shorter). Instructions go with
more reliability and generalization and less locality of neighbours; from one seed, and with the scaling mixed in, that is no proof of
what an instruction tells: the base has never read such words, and a longer text alone brings more rows to edit at."""
SIZES = {1: 30, 10: 6, 100: 2}  # edits of a sequence -> sequences
MEMIT = "memit.json"  # beside the editors: rows of the table
TURNS: dict[str, list[int | None]] = {"mend": [1], "malmen": [10]}  # edits read at once, besides all of them


def family(edit: kedit_hub.Edit, number: int) -> Lesson:
    """The instruction families that Atlas has: questions, statements, and statements told after something else."""
    if edit.prompt.startswith("Question:"):
        return Lesson(edit, "zsre")
    if number % 2:
        return Lesson(edit, "counterfact")
    prefix = FOREIGN_PREFIXES[number % len(FOREIGN_PREFIXES)]
    return Lesson(replace(edit, prompt=f"{prefix} {edit.prompt}"), "wikirecent")


def train(method: str, out: Path, seed: int, more: dict[str, Any]) -> None:
    lessons: list[Any] = demo.training_edits()
    kind = {"multitask": "instructedit"}.get(method, method)
    if kind == "instructedit":  # questions are the family that is held out
        lessons = [x for number, edit in enumerate(lessons) if (x := family(edit, number)).task != "zsre"]
    started, cpu = time.perf_counter(), time.process_time()
    made = kedit_hub.train_editor(
        BASE,
        lessons,
        kind,
        settings={**RECIPES[method], **more},
        seed=seed,
        checkpoint=out.parent / ".training",
        half=True,
    )
    spent = {"cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - started}
    made = made.replace_scores({"training": spent})
    folder = made.save(out)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(made, made.manifest.training.model_dump(), spent, f"{size:,} bytes", flush=True)


def measure(folder: Path) -> None:
    """Fill in the scores of one editor; its id stays what it is."""
    editor = kedit_hub.TrainedEditor.load(folder)
    turns: list[int | None] = [None, *TURNS.get(editor.method, [])]
    model, tokenizer = load_model(BASE)
    rows = []
    for turn in turns:
        for n, sequences in SIZES.items():
            settings = {} if turn is None else {"turn": turn}
            (told,) = evaluate_editor(
                editor, demo.edits("test"), model, tokenizer=tokenizer, sizes=[n], sequences=sequences, settings=settings,
                progress=False,
            )  # fmt: skip
            rows.append({"turn": turn, **told})
            print(folder.name, rows[-1], flush=True)
    editor.replace_scores({**(editor.scores or {}), "test": rows}).save(folder)


def families(folder: Path) -> None:
    """Multi-task editors: single edits under an instruction of training, under the one kept from it, and of the family kept from it."""
    editor = kedit_hub.TrainedEditor.load(folder)
    model, tokenizer = load_model(BASE)
    test = demo.edits("test")
    statements = [edit for edit in test if not edit.prompt.startswith("Question:")]
    asked = {
        "counterfact": (statements, {"task": "counterfact"}),
        "counterfact, description held out": (
            statements,
            {"task": "counterfact", "description": pool("counterfact")[-1]},
        ),
        "zsre, family held out": ([edit for edit in test if edit not in statements], {"task": "zsre"}),
    }
    rows = []
    for name, (edits, settings) in asked.items():
        (told,) = evaluate_editor(
            editor, edits, model, tokenizer=tokenizer, sizes=[1], sequences=30, settings=settings, progress=False
        )
        rows.append({"family": name, **told})
        print(folder.name, rows[-1], flush=True)
    editor.replace_scores({**(editor.scores or {}), "families": rows}).save(folder)


def report(out: Path) -> None:
    folders = sorted(folder for folder in out.iterdir() if (folder / "editor.safetensors").exists())
    told = Report("hyper", "Trained editors on Atlas: sequences of test edits, scored after the last one")
    told.say(
        "Edits of the test split under teacher forcing; the change as weights. Trained on edits of other subjects; one training seed each; "
        "the best step was chosen on validation subjects, no setting on test edits."
    )
    rows = []
    for folder in folders:
        editor = kedit_hub.TrainedEditor.load(folder)
        record, scores = editor.manifest.training, editor.scores or {}
        told.say(
            f"- {folder.name}: {editor.id[:12]}, seed {record.seed}, best step {record.best_step} of {record.steps}, "
            f"{scores['training']['cpu_seconds']:.0f} CPU s, {sum(file.stat().st_size for file in folder.iterdir()):,} bytes; "
            f"validation {', '.join(f'{name} {value:.3f}' for name, value in sorted(record.scores.items()))}"
        )
        for row in scores.get("test", []):
            how = "all at once" if row["turn"] is None else f"{row['turn']} at a time"
            rows.append([folder.name, how, row["edits"], row["sequences"], *line(row)])
        for row in scores.get("families", []):
            rows.append([folder.name, row["family"], 1, row["sequences"], *line(row)])
    for row in json.loads((out / MEMIT).read_text()) if (out / MEMIT).exists() else []:
        rows.append(["memit", "no training", row["edits"], row["sequences"], *line(row)])
    columns = ["editor", "edits are made", "n", "sequences", "reliability", "generalization", "neighbour", "same subject", "unrelated",
               "H3", "s/edit"]  # fmt: skip
    told.table(columns, rows)
    told.say("H3: harmonic mean of reliability, generalization and the mean of the three localities.")
    told.say()
    told.say(NOTES)
    told.save()


def line(row: dict[str, Any]) -> list[float]:
    localities = [row[f"locality.{kind}"] for kind in ("neighbour", "same_subject", "unrelated")]
    means = [row["reliability"], row["generalization"], *localities]
    return [*means, harmonic_mean([*means[:2], sum(localities) / 3]), row["seconds"]]


def memit(model: Any, tokenizer: Any, test: Any, n: int, sequences: int) -> dict[str, float]:
    """MEMIT, all edits of a sequence in one patch, applied as weights: what needs no training, for comparison."""
    sums: dict[str, list[float]] = {}
    for number in range(sequences):
        edits = test[number * n : (number + 1) * n]
        started = time.perf_counter()
        try:
            patch = kedit_hub.edit(
                model, edits, "memit", tokenizer=tokenizer, settings={"failed": "drop"}, progress=False
            )
        except kedit_hub.KeditError:
            sums.setdefault("reliability", []).append(0.0)
            sums.setdefault("generalization", []).append(0.0)
            continue
        sums.setdefault("seconds", []).append((time.perf_counter() - started) / n)
        pm = kedit_hub.apply(patch, model, tokenizer=tokenizer, mode="sum")
        sheet = kedit_hub.evaluate(pm, edits, protocols=("tf-token",), drift_texts=[]).protocols["tf-token"]
        pm.detach()
        for name in ("reliability", "generalization"):
            sums.setdefault(name, []).append(sheet[name])
        for kind, value in sheet["locality"].items():
            if value is not None:
                sums.setdefault(f"locality.{kind}", []).append(value)
    return {name: sum(values) / len(values) for name, values in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", choices=sorted(RECIPES))
    parser.add_argument("--measure", choices=sorted([*RECIPES, "memit"]))
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--out", type=Path, default=demo.EDITORS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()
    quiet()
    from kedit_hub.commands.make import read_settings

    if asked.train:
        train(asked.train, asked.out / f"llama-{asked.train}", asked.seed, read_settings(asked.set))
    if asked.measure == "memit":
        model, tokenizer = load_model(BASE)
        rows = [
            {"edits": n, "sequences": m, **memit(model, tokenizer, demo.edits("test"), n, m)} for n, m in SIZES.items()
        ]
        (asked.out / MEMIT).write_text(json.dumps(rows, indent=1) + "\n")
    elif asked.measure:
        folder = asked.out / f"llama-{asked.measure}"
        (families if asked.measure in ("instructedit", "multitask") else measure)(folder)
    if asked.report:
        report(asked.out)


if __name__ == "__main__":
    main()
