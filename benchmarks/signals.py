"""What an instruction does to the signals an editor reads: facts of Atlas in three forms and sentiments, in t-SNE.

    pip install scikit-learn; python benchmarks/signals.py

Forty facts, each asked as a statement (task counterfact), as a statement behind another sentence (wikirecent) and as a question (zsre), and
sentiments about forty topics (convsent), with and without the instruction of its task, one description of training. A signal is what the
shipped InstructEdit normalises of an edit: mean rows [u; delta] of every map, side by side. The plots are t-SNE (van der Maaten and Hinton
2008, perplexity 30, from two principal components, seed 0): who is near whom, no distances. Separation is told in the whole space, leaving
one fact or topic out: the share of edits whose task is that of the nearest mean of the others.
"""

import torch
from common import RESULTS, Report, quiet
from sklearn.manifold import TSNE

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
from kedit_hub.records.read import read_records

FACTS = 40
TASKS = ("counterfact", "wikirecent", "zsre", "convsent")


def lessons():
    """For each fact one lesson of each of the first three tasks, in the order of TASKS; then as many sentiments."""
    relations = world.load().relations
    found = []
    for edit in [edit for edit in demo.edits("test") if edit.relation in relations][:FACTS]:
        relation = relations[edit.relation]
        statement, question = relation.statements[0].format(edit.subject), relation.questions[0].format(edit.subject)
        for task, prompt in zip(TASKS, (statement, f"{FOREIGN_PREFIXES[0]} {statement}", question)):
            found.append(Lesson(Edit(prompt, edit.target, edit.subject), task))
    told = [Lesson.of(record) for record in read_records(demo.task_records("test"))]
    return found + [lesson for lesson in told if lesson.task == "convsent"][:FACTS]


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
    names = list(dict.fromkeys(lesson.about for lesson in told))
    facts = torch.tensor([names.index(lesson.about) for lesson in told])
    report = Report("signals", "Edit signals by task, with and without instruction (Atlas, shipped InstructEdit)")
    rows = []
    for name, instructed in (("without instruction", False), ("with instruction", True)):
        settings = editor.settings.model_copy(update={"instructed": instructed})
        vectors = signals_of(Teacher(model, tokenizer, editor.network(), settings), told)
        centred = vectors - vectors.mean(0)
        at = torch.from_numpy(TSNE(perplexity=30, init="pca", random_state=0).fit_transform(vectors.numpy()))
        between = sum(
            float((centred[tasks == task].mean(0)).square().sum()) * int((tasks == task).sum())
            for task in range(len(TASKS))
        )
        rows.append([name, nearest_mean(vectors, tasks, facts), between / float(centred.square().sum())])
        series = [
            plots.Series(task, number, tuple(plots.Point(x, y) for x, y in at[tasks == number].tolist()))
            for number, task in enumerate(TASKS)
        ]
        svg = plots.scatter(f"Edit signals {name}", series, ("t-SNE 1", "t-SNE 2"))
        (RESULTS / f"signals_{name.split()[0]}.svg").write_text(standing_alone(svg))
    report.say(__doc__.split("\n\n")[2].replace("\n", " ").strip())
    report.table(["signals", "nearest mean is right", "variance between tasks"], rows)
    report.say("By chance the nearest mean is right in 0.250. Variance: the share of it that lies between tasks.")
    report.save()


if __name__ == "__main__":
    main()
