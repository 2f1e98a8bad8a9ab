"""What an instruction does to the signals an editor reads: facts of Atlas in three forms, on two main directions.

    python benchmarks/signals.py

Forty facts, each asked as a statement (task counterfact), as a statement behind another sentence (wikirecent) and as a question (zsre),
with and without the instruction of its task, one description of training. A signal is what the shipped InstructEdit normalises of an
edit: mean rows [u; delta] of every map, side by side. Plots are principal components (exact, by singular values), not t-SNE. Separation
is told in the whole space, leaving one fact out: the share of edits whose task is that of the nearest mean of the other facts.
"""

import torch
from common import RESULTS, Report, quiet

import kedit_hub
from kedit_hub import demo
from kedit_hub.api import load_model
from kedit_hub.demo import world
from kedit_hub.demo.corpus import FOREIGN_PREFIXES
from kedit_hub.editors.hyper.lessons import Lesson
from kedit_hub.editors.hyper.train import Teacher
from kedit_hub.edits import Edit
from kedit_hub.evaluate.report import plots
from kedit_hub.evaluate.report.alone import standing_alone

FACTS = 40
TASKS = ("counterfact", "wikirecent", "zsre")


def lessons():
    """For each fact one lesson of each task, in the order of TASKS."""
    relations = world.load().relations
    found = []
    for edit in [edit for edit in demo.edits("test") if edit.relation in relations][:FACTS]:
        relation = relations[edit.relation]
        statement, question = relation.statements[0].format(edit.subject), relation.questions[0].format(edit.subject)
        for task, prompt in zip(TASKS, (statement, f"{FOREIGN_PREFIXES[0]} {statement}", question)):
            found.append(Lesson(Edit(prompt, edit.target, edit.subject), task))
    return found


@torch.no_grad()
def signals_of(teacher, told):
    """(edits, d)"""
    signals = teacher.signals(told)
    parts = []
    for path in teacher.network.paths:
        rows = signals[path]
        z = teacher.network.normalised(path, rows)
        sums = z.new_zeros(rows.edits, z.shape[1]).index_add(0, rows.edit, z)
        parts.append(sums / rows.lengths[:, None])
    return torch.cat(parts, 1)


def nearest_mean(vectors, tasks, facts):
    """Share of vectors that lie nearest to the mean of their own task, taken over other facts."""
    right = 0
    for i in range(len(vectors)):
        others = facts != facts[i]
        means = torch.stack([vectors[others & (tasks == task)].mean(0) for task in range(len(TASKS))])
        right += int((means - vectors[i]).norm(dim=1).argmin()) == int(tasks[i])
    return right / len(vectors)


def main():
    quiet()
    model, tokenizer = load_model("kedit-hub/atlas-llama")
    editor = kedit_hub.TrainedEditor.load(demo.editor_path("instructedit"))
    told = lessons()
    tasks = torch.tensor([TASKS.index(lesson.task) for lesson in told])
    facts = torch.arange(len(told)) // len(TASKS)
    report = Report("signals", "Edit signals by task, with and without instruction (Atlas, shipped InstructEdit)")
    rows = []
    for name, instructed in (("without instruction", False), ("with instruction", True)):
        settings = editor.settings.model_copy(update={"instructed": instructed})
        vectors = signals_of(Teacher(model, tokenizer, editor.network(), settings), told)
        centred = vectors - vectors.mean(0)
        _, sizes, directions = torch.linalg.svd(centred, full_matrices=False)
        at = centred @ directions[:2].T
        between = sum(
            float((centred[tasks == task].mean(0)).square().sum()) * int((tasks == task).sum())
            for task in range(len(TASKS))
        )
        shares = (sizes[:2].square() / sizes.square().sum()).tolist()
        rows.append([name, nearest_mean(vectors, tasks, facts), between / float(centred.square().sum()), *shares])
        series = [
            plots.Series(task, number, tuple(plots.Point(x, y) for x, y in at[tasks == number].tolist()))
            for number, task in enumerate(TASKS)
        ]
        svg = plots.scatter(f"Edit signals {name}", series, ("first component", "second component"))
        (RESULTS / f"signals_{name.split()[0]}.svg").write_text(standing_alone(svg))
    report.say(__doc__.split("\n\n")[2].replace("\n", " ").strip())
    report.table(["signals", "nearest mean is right", "variance between tasks", "first component", "second"], rows)
    report.say(
        "By chance the nearest mean is right in 0.333. Shares of variance: between tasks, and on the two components that are drawn."
    )
    report.save()


if __name__ == "__main__":
    main()
