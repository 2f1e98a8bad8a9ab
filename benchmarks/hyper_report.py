"""Tables and plots of what benchmarks/hyper.py measured.

python benchmarks/hyper_report.py
"""

import json
import statistics

import hyper
from common import RESULTS, Report, mean, spread
from hyper import (
    ASKED,
    DRAWS,
    EDITORS,
    FAMILIES,
    FIRST,
    LOCALITY,
    MEASURES,
    RATES,
    TASK_MEASURES,
    TASKS,
    TRAINED,
    UNTRAINED,
)

from kedit_hub import TrainedEditor, demo
from kedit_hub.evaluate.metrics import harmonic_mean
from kedit_hub.evaluate.report import plots
from kedit_hub.evaluate.report.alone import standing_alone

DRAWN = (
    "ke",
    "mend",
    "mend, unedited model's signals",
    "malmen",
    "malmen, all at once",
    "rledit",
    "dafnet",
    "dafnet, counted",
    "memit",
)
HELD_OUT = ("counterfact, description held out", "zsre")
GAINS = {  # what is compared -> (with, without)
    "instruction": ("InstructEdit", "multi-task MEND, norms scaled"),
    "instruction, norms not scaled": ("InstructEdit, norms not scaled", "multi-task MEND"),
    "norms scaled": ("multi-task MEND, norms scaled", "multi-task MEND"),
    "both": ("InstructEdit", "multi-task MEND"),
}
NOTES = """## What the tables say

Three seeds where the tables do not say otherwise; H3 of reliability, generalization and locality after the whole sequence.

- MEND collapses in sequence: H3 .82, .83, .13 (two seeds of three below .05) and .01 at 1, 10, 100 and 300 edits, with signals of the
  edited model and of the unedited one alike. KE, trained on single edits too, is gone at 10.
- DAFNet does not collapse: locality 1.00 at 100 and at 300. It under-edits instead (reliability .38 and .29), and one edit alone is far
  too strong (locality .21): the weights of n edits sum to at most one, so what is right for a hundred is wrong for one. At 100 its H3
  of .45 stands above KE (.00), MEND (.13) and, within the spread, RLEdit (.42) and MALMEN in turns of ten (.43); MALMEN that reads all
  at once is far above it (.79), and so are MEMIT, AlphaEdit and FT-L, which nobody trains (.75, .77, .69).
- A hundred steps are few for DAFNet: the editor that comes with Atlas had three times as many and reaches .54 at 100.
- `counted` (ours: the change is taken n^gamma times) makes one edit right (H3 .94), holds to a hundred (.54) and breaks down beyond
  what it was trained for (300: .02).
- What DAFNet's parts bring is smaller than what the length of its episodes does. Without the attention within an edit, without that
  between edits, or with the decay cut off from training, H3 at 100 is .44, .46 and .46 against .45 of the whole: nothing that three
  seeds can show. Without the curriculum, all steps at full length, it is .68 at the same number of steps, 2.5 times the time; one edit
  is still stronger then (locality below .1), and 300 are no better off (.40).
- DAFSet's groups bring nothing that three seeds can show either: trained on records of all four, H3 at 100 is .44; without the recent,
  the popular, the long-tailed or the robust ones .43, .47, .43 and .46; on all training facts, as above, .45. Prefixes of the robust
  ones make the training longer (113 CPU s without them, 184 to 231 with).
- Methods that nobody trains, in patches of ten: H3 at 10, 100 and 300 is .92, .75 and .52 of MEMIT, .88, .77 and .59 of AlphaEdit, .62, .69
  and .61 of FT-L, .88, .50 and .09 of ROME. At 300 MALMEN, of all edits at once, is as good as the best of them (.61).
- Instructions: +.031 of H on average over families (sd .022 over seeds), and +.036 (sd .037) where norms are not scaled; most of it on
  the family they replace facts of (+.08, +.07). On the family that training has not seen +.01 both times, on the description it has not
  seen +.03 and +.05, within the spread: no gain that this budget can show. Scaling norms brings nothing (-.011, sd .006).
- MEND taught sentiments alone edits facts it has never been taught best of all (reliability .99, H .93 on every family of facts) and
  disturbs neighbours most (.59): unlikelihood of the other side makes stronger edits. Taught statements alone it edits least.

H3, H: harmonic means; ± is the standard deviation over seeds. s/edit: CPU seconds of making, with the reading of the outcome. First 10:
reliability of the first ten edits after all. Of sentiments, reliability is ConvSent's edit success and locality what is said of another
topic. Fluency: bits, of four prompts continued; Atlas ends a sentence after its answer, so there is little to repeat, and the base has
as little. "Asked as published": questions about an edit are put under its instruction, in training and here; neighbours are not. ROME,
MEMIT, AlphaEdit and FT-L take the settings that benchmarks/editors.py has. CPU seconds were measured beside other work, and the
trainings with DAFSet beside more of it than the others."""


class Cells:
    def __init__(self, lines):
        self.all = [json.loads(line) for line in lines]

    def of(self, **key):
        return [cell for cell in self.all if key.items() <= cell.items()]

    def values(self, measure, **key):
        return [cell[measure] for cell in self.of(**key) if cell[measure] is not None]


def report(cells):
    told = Report("hyper", "Trained editors on Atlas: sequences of test edits, scored after the last one")
    told.say(hyper.__doc__.split("\n\n")[3].replace("\n", " ").strip())
    told.say()
    rates(told, cells)
    trainings(told, cells)
    for n in DRAWS:
        told.say(f"## n = {n}, " + ("one sequence a seed" if DRAWS[n] == 1 else f"{DRAWS[n]} sequences a seed"))
        rows = []
        for name in (*TRAINED, *UNTRAINED):
            own = cells.of(what="test", name=name, n=n)
            if own:
                rows.append([name, len(own), *(spread([cell[measure] for cell in own]) for measure in MEASURES)])
        told.table(["editor", "seeds", *(m if m != "retention" else f"first {FIRST}" for m in MEASURES)], rows)
    tasks(told, cells)
    shipped(told)
    told.say(NOTES)
    told.save()


def rates(told, cells):
    told.say("## Learning rates: harmonic mean on validation subjects, one training each")
    rows = []
    for name in hyper.TUNED:
        own = {cell["lr"]: cell["validation"] for cell in cells.of(what="tuning", name=name)}
        scores = [own and harmonic_mean([own[lr][m] for m in MEASURES[:3]]) for lr in RATES]
        if own:
            rows.append([name, *scores, f"{RATES[scores.index(max(scores))]:g}"])
    told.table(["editor", *(f"{lr:g}" for lr in RATES), "taken"], rows)


def trainings(told, cells):
    told.say("## Trainings")
    rows = []
    for name in (*EDITORS, *TASKS):
        own = cells.of(what="training", name=name)
        if own:
            settings = ", ".join(f"{key} {value}" for key, value in own[0]["settings"].items())
            best = ", ".join(str(cell["best_step"]) for cell in own)
            size = f"{own[0]['bytes']:,}"
            cost = [spread([cell[name] for cell in own], 0) for name in ("cpu", "MiB")]
            rows.append([name, len(own), *cost, best, size, settings])
    told.table(["editor", "seeds", "CPU s", "MiB at most", "best step", "bytes", "settings"], rows)


def tasks(told, cells):
    told.say(f"## Several tasks, {ASKED} single edits of each a seed")
    kept = tuple(dict.fromkeys(cell["task"] for cell in cells.of(what="task")))
    rows = []
    for task in kept:
        for name in TASKS:
            own = cells.of(what="task", name=name, task=task)
            if own:
                rows.append([task, name, len(own), *(spread([cell[m] for cell in own]) for m in (*TASK_MEASURES, "H"))])
    told.table(["task", "editor", "seeds", *TASK_MEASURES, "H"], rows)
    told.say(
        "What the instruction and the scaling of norms bring: difference of H, of the same seed and the same edits."
    )
    rows = []
    for what, (with_, without) in GAINS.items():
        gains = {}
        for task in kept:
            pairs = [
                {cell["seed"]: cell["H"] for cell in cells.of(what="task", name=name, task=task)}
                for name in (with_, without)
            ]
            gains[task] = [pairs[0][seed] - pairs[1][seed] for seed in sorted(pairs[0].keys() & pairs[1].keys())]
        if any(gains.values()):
            everything = [mean(of_seed) for of_seed in zip(*gains.values())]
            rows.append([what, *(spread(own, 3) for own in gains.values()), spread(everything, 3)])
    told.table(["gain of", *kept, "mean"], rows)


def shipped(told):
    """What the editors that come with Atlas say of themselves: longer trainings, one seed."""
    told.say("## The editors that come with Atlas: longer trainings, one seed, as their scores.json has it")
    rows = []
    for folder in sorted(folder for folder in demo.EDITORS.iterdir() if (folder / "editor.safetensors").exists()):
        editor = TrainedEditor.load(folder)
        scores, record = editor.scores or {}, editor.manifest.training
        spent = scores.get("training", {}).get("cpu_seconds")
        for row in (*scores.get("test", []), *scores.get("families", [])):
            localities = [row.get(f"locality.{kind}") for kind in LOCALITY]
            three = [row["reliability"], row["generalization"], row.get("locality", mean(localities))]
            known = harmonic_mean([value for value in three if value is not None])
            how = row.get("family") or ("all at once" if row["turn"] is None else f"{row['turn']} at a time")
            rows.append(
                [folder.name, spent, record.best_step, how, row["edits"], row["sequences"], *three, *localities, known]
            )
    told.table(["editor", "CPU s", "best step", "made", "n", "sequences", *MEASURES[:6], "H3"], rows)


# --- plots ------------------------------------------------------------------------------------------------------------


def draw(cells):
    """H3 over n, one line for each editor; DAFNet and what is left out of it; H of several tasks, one plot for each."""
    lines = []
    for name in DRAWN:
        points = [point(n, values) for n in DRAWS if (values := cells.values("H3", what="test", name=name, n=n))]
        if points:
            lines.append(plots.Series(name, len(lines), tuple(points)))
    save(
        "sequences",
        plots.lines(
            "Harmonic mean of reliability, generalization and locality after the whole sequence", lines, each="editor"
        ),
    )
    of_dafnet = {
        name: cells.values("H3", what="test", name=name, n=100) for name in TRAINED if name.startswith("dafnet")
    }
    dots("ablations", "H3 after 100 edits: DAFNet, and what is left out of it", of_dafnet)
    for task in (*FAMILIES, *HELD_OUT):
        own = {name: cells.values("H", what="task", name=name, task=task) for name in TASKS}
        dots(
            "tasks_" + task.split(",")[0] + ("_held_out" if task in HELD_OUT else ""), f"H on single edits: {task}", own
        )


def dots(file, title, found):
    rows = [
        plots.Series(name, number, (point(1, values),)) for number, (name, values) in enumerate(found.items()) if values
    ]
    if rows:
        save(file, plots.dots(title, rows))


def save(file, svg):
    (RESULTS / f"hyper_{file}.svg").write_text(standing_alone(svg))


def point(x, values):
    """Mean, and one standard deviation of the seeds to both sides."""
    middle, sd = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
    return plots.Point(x, middle, max(middle - sd, 0.0), min(middle + sd, 1.0))


if __name__ == "__main__":
    found = Cells((RESULTS / "hyper.jsonl").read_text().splitlines())
    report(found)
    draw(found)
