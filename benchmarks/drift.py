"""Does the predicted drift of a stack tell what it does to text? Spearman rank correlation over 96 stacks of Atlas.

    python benchmarks/drift.py [--sizes 3 10 30 100]

Stacks of 3 to 100 dev edits, each made alone, two sets of edits for each size, installed jointly under six drift budgets (shares of what
an unbounded solve of that stack would cost) and as a sum fitted six closely ways: 48 stacks of each mode. Predicted: `drift_predicted`,
the mean squared change of the edited module's output on the texts of the base profile, relative to that output; and, where the profile
has it, the same at site positions. Measured: KL to the base and the log of the ratio of perplexities on other texts of the world, and
neighbours changed (one minus their locality under teacher forcing). Correlations within a mode, within a mode at one size, and across all.
"""

import argparse
import math
from itertools import product

from common import Report, one_by_one, quiet, row
from scipy.stats import spearmanr

import kedit_hub
from kedit_hub.api import load_model

SHARES = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)  # of the drift of an unbounded solve
FITS = (0.2, 0.4, 0.6, 0.8, 0.9, 0.97)
MODES = {"joint": ("drift_budget", SHARES), "sum": ("alone_fit", FITS)}
PREDICTED = ("drift_predicted", "site_drift_predicted")
MEASURED = ("KL", "log ppl ratio", "neighbours changed")
ASKED = 30


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[3, 10, 30, 100])
    arguments = parser.parse_args()
    quiet()
    model, tokenizer = load_model("kedit-hub/atlas-llama")
    profile = kedit_hub.demo.profile("llama")
    texts = kedit_hub.demo.texts("drift")[:200]
    edits = kedit_hub.demo.edits("dev")
    largest = max(arguments.sizes)
    sets = {n: (edits[:n], edits[-n:]) for n in arguments.sizes}
    ids = {edit.id for chosen in sets.values() for part in chosen for edit in part}
    wanted = [edit for edit in edits if edit.id in ids]
    patches, _ = one_by_one(model, tokenizer, wanted, profile=profile)
    made = {patch.edits[0].id: patch for patch in patches}
    report = Report("drift", "Predicted drift of a stack against what it does to text")
    report.say(f"\n{len(patches)} of {len(wanted)} values succeed; stacks of up to {largest} edits.")
    found = []
    for n, number, (mode, (name, knobs)) in product(arguments.sizes, range(2), MODES.items()):
        part = [edit for edit in sets[n][number] if edit.id in made]
        how = {"tokenizer": tokenizer, "mode": mode, "conflicts": "latest"}
        stack, free = kedit_hub.PatchStack([made[edit.id] for edit in part], conflicts="latest"), 1.0
        if mode == "joint":
            unbounded = kedit_hub.apply(stack, model, profile=profile.replace(drift_budget=1e6), **how)
            free = unbounded.report["modules"][profile.module]["drift_predicted"]
        for knob in (free * knob for knob in knobs):
            pm = kedit_hub.apply(stack, model, profile=profile.replace(**{name: knob}), **how)
            scores = kedit_hub.evaluate(pm, part[:ASKED], protocols=("tf-token",), drift_texts=texts)
            told = pm.report["modules"][profile.module]
            kept = row(scores, "tf-token")[2]
            found.append(
                {
                    "mode": mode,
                    "n": n,
                    "set": number,
                    "knob": knob,
                    **{which: told.get(which) for which in PREDICTED},
                    "KL": scores.drift["kl"],
                    "log ppl ratio": math.log(scores.drift["ppl_after"] / scores.drift["ppl_before"]),
                    "neighbours changed": None if kept is None else 1 - kept,
                }
            )
            print(found[-1], flush=True)
    _correlations(report, found)
    report.say("Every stack:")
    report.table(
        ["mode", "edits", "set", "knob", *PREDICTED, *MEASURED],
        [
            [one[name] for name in ("mode", "n", "set", "knob")]
            + [_small(one[name]) for name in (*PREDICTED, *MEASURED)]
            for one in found
        ],
    )
    report.save()


def _correlations(report, found) -> None:
    groups = {f"{mode}, all sizes": [one for one in found if one["mode"] == mode] for mode in MODES}
    sizes = sorted({one["n"] for one in found})
    groups |= {f"{m}, {n} edits": [o for o in found if o["mode"] == m and o["n"] == n] for m in MODES for n in sizes}
    groups["both modes"] = found
    rows = []
    for name, stacks in groups.items():
        for which in PREDICTED:
            known = [one for one in stacks if one[which] is not None]
            if len(known) > 2:
                cells = []
                for measured in MEASURED:
                    both = [(one[which], one[measured]) for one in known if one[measured] is not None]
                    cells.append(float(spearmanr(*zip(*both)).statistic))
                rows.append([name, which, len(known), *cells])
    report.say("\nSpearman rank correlation of the prediction with what was measured:")
    report.table(["stacks", "prediction", "n", *MEASURED], rows)


def _small(value) -> str:
    return "-" if value is None else f"{value:.5f}"


if __name__ == "__main__":
    main()
