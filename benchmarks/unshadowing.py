"""Taking a contradiction back: edit A, then B which contradicts it, then B removed. Does the model say A again?

    python benchmarks/unshadowing.py [--edits 50]

50 dev edits of Atlas are A; B is the same question with another wrong answer, made by somebody else who never saw A. Every contradicted
question is asked by teacher forcing (right: all tokens of the answer) before, under and after B, in the install modes and in sequential
editing, where B is measured on the weights that A left, and "removing" it subtracts what it added (which puts A back) or, as without a
copy of what was added, edits A's question back to the base's own answer (which does not). One triple at a time, then all of them as one
stack. What was said before A, and bits of the weights or logits that differ from never having had B, are counted too.
"""

import argparse
import copy
from dataclasses import replace

import torch
from common import Report, quiet

import kedit_hub
from kedit_hub.api import load_model
from kedit_hub.base.families import dense_weight
from kedit_hub.editors.editor import make_patch
from kedit_hub.evaluate.protocols import teacher_forced
from kedit_hub.stack.solve import balanced_lambda, prepare, solve

MODES = ("gated", "joint", "sum")


def says(model, tokenizer, edits, answers) -> list[bool]:
    """Which of the questions are answered so, to the last token."""
    told = teacher_forced(model, tokenizer, [(edit.prompt, answer) for edit, answer in zip(edits, answers)])
    return [one.accuracy == 1.0 for one in told]


def others(edits) -> list[str]:
    """For each edit another wrong answer: the target of the next edit of its relation that says neither its old nor its new answer."""
    found = []
    for at, edit in enumerate(edits):
        after = [*edits[at + 1 :], *edits[:at]]
        fits = [
            o.target for o in after if o.relation == edit.relation and o.target not in (edit.target, edit.ground_truth)
        ]
        found.append(fits[0] if fits else None)
    return found


def written(model, tokenizer, edit, profile):
    """The edit written into the weights in place, as sequential editing does: what was added (m, d), or None where its value failed."""
    try:
        patch = make_patch(model, tokenizer, [edit], profile, base=("sequential", None), progress=False)
    except kedit_hub.KeditError:
        return None
    delta = patch.deltas[profile.module]
    normal = prepare(delta.keys.T, delta.residuals.T, profile.second_moment)
    solution = solve(normal, balanced_lambda(normal, profile.settings.alone_fit))
    added = (solution.y @ solution.u.T).float()
    with torch.no_grad():
        dense_weight(model.get_submodule(profile.module)).add_(added)
    return added


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--edits", type=int, default=50)
    arguments = parser.parse_args()
    quiet()
    report = Report("unshadowing", "A, then B against it, then B removed, on Atlas")
    model, tokenizer = load_model("kedit-hub/atlas-llama")
    profile = kedit_hub.demo.profile("llama")
    dev = kedit_hub.demo.edits("dev")
    pairs = [(a, replace(a, target=b)) for a, b in zip(dev, others(dev)) if b is not None][: arguments.edits]

    def make(edit):
        try:
            return kedit_hub.edit(model, [edit], tokenizer=tokenizer, profile=profile, progress=False)
        except kedit_hub.KeditError:
            return None

    made = [(a, b, pa, pb) for a, b in pairs if (pa := make(a)) is not None and (pb := make(b)) is not None]
    report.say(f"\n{len(made)} of {len(pairs)} pairs made; the others' values fail. Settings of the shipped profile.")
    if not made:
        raise SystemExit("no pair could be made")
    batch = tokenizer([a.prompt for a, *_ in made], return_tensors="pt", padding=True, padding_side="right")
    batch.pop("token_type_ids", None)
    rows = []
    for mode in MODES:
        rows.append([mode, "one by one", *_one_by_one(model, tokenizer, profile, made, mode, batch)])
        rows.append([mode, "one stack", *_as_one(model, tokenizer, profile, made, mode, batch)])
    rows += _sequential(model, tokenizer, profile, made)
    n = len(made)
    report.table(
        [
            "way",
            "how",
            "A said",
            "B said under B",
            "A said under B",
            "A back",
            "B still said",
            "largest gap to never having had B",
        ],
        [[way, how, *(f"{value}/{n}" for value in counts), gap] for way, how, *counts, gap in rows],
    )
    report.say(
        "The gap is of logits; of sequential editing, of the weights of the edited module, relative to their largest entry."
    )
    report.save()


def _counts(model, tokenizer, edits, wanted):
    return sum(says(model, tokenizer, edits, wanted))


@torch.no_grad()
def _one_by_one(model, tokenizer, profile, made, mode, batch):
    counts, gap = [0] * 5, 0.0
    for at, (a, b, pa, pb) in enumerate(made):
        one = {name: value[at : at + 1] for name, value in batch.items()}
        pm = kedit_hub.apply([pa], model, tokenizer=tokenizer, mode=mode, profile=profile, conflicts="latest")
        before = pm.model(**one).logits
        counts[0] += _counts(pm.model, tokenizer, [a], [a.target])
        pm.add(pb)
        counts[1] += _counts(pm.model, tokenizer, [b], [b.target])
        counts[2] += _counts(pm.model, tokenizer, [a], [a.target])
        pm.remove(pb.id)
        counts[3] += _counts(pm.model, tokenizer, [a], [a.target])
        counts[4] += _counts(pm.model, tokenizer, [b], [b.target])
        gap = max(gap, (pm.model(**one).logits - before).abs().max().item())
    return *counts, f"{gap:.1e}"


@torch.no_grad()
def _as_one(model, tokenizer, profile, made, mode, batch):
    """All A as one stack, then every B on top, then every B taken out again."""
    a, b = [row[0] for row in made], [row[1] for row in made]
    how = {"tokenizer": tokenizer, "mode": mode, "profile": profile, "conflicts": "latest"}
    alone = kedit_hub.apply([row[2] for row in made], model, **how)
    said, before = _counts(alone.model, tokenizer, a, [e.target for e in a]), alone.model(**batch).logits
    pm = kedit_hub.apply([*(row[2] for row in made), *(row[3] for row in made)], model, **how)
    under = [_counts(pm.model, tokenizer, es, [e.target for e in es]) for es in (b, a)]
    for row in made:
        pm.remove(row[3].id)
    after = [_counts(pm.model, tokenizer, es, [e.target for e in es]) for es in (a, b)]
    return said, *under, *after, f"{(pm.model(**batch).logits - before).abs().max().item():.1e}"


def _sequential(model, tokenizer, profile, made):
    """Written into the weights one after another, one pair at a time; the weights are put back between pairs."""
    subtracted, reedited = [0] * 5, [0] * 5
    gaps = [0.0, 0.0]
    edited = copy.deepcopy(model)
    weight = dense_weight(edited.get_submodule(profile.module))
    plain = weight.clone()
    for a, b, _, _ in made:
        written(edited, tokenizer, a, profile)
        only_a = weight.clone()
        said = _counts(edited, tokenizer, [a], [a.target])
        added = written(edited, tokenizer, b, profile)
        under = [_counts(edited, tokenizer, [e], [e.target]) for e in (b, a)]
        with_b = weight.clone()
        for counts, number in ((subtracted, 0), (reedited, 1)):
            with torch.no_grad():
                weight.copy_(with_b)
                if number == 0 and added is not None:
                    weight.sub_(added)
            if number == 1:  # nobody kept what was added: the only undoing is an edit to the base's own answer
                written(edited, tokenizer, replace(a, target=a.ground_truth, ground_truth=b.target), profile)
            now = [_counts(edited, tokenizer, [e], [e.target]) for e in (a, b)]
            for place, value in enumerate((said, *under, *now)):
                counts[place] += value
            gaps[number] = max(gaps[number], ((weight - only_a).abs().max() / plain.abs().max()).item())
        with torch.no_grad():
            weight.copy_(plain)
    return [
        ["sequential", "B's change kept and subtracted", *subtracted, f"{gaps[0]:.1e}"],
        ["sequential", "edited back to the base's answer", *reedited, f"{gaps[1]:.1e}"],
    ]


if __name__ == "__main__":
    main()
