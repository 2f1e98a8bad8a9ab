"""Real CounterFact records on a small real model: every record edited alone, and all of them as one stack.

    python benchmarks/counterfact.py MODEL_FOLDER RECORDS.json [--profile FOLDER]

The profile (layer, site, gate thresholds, drift budget) is measured by the sweep of `kedit profile` on the first SWEEP records; the
table is given for all records and for the records the sweep never saw. Generalization is over all rephrases of a record (some are
phrasings the base was trained with).
"""

import argparse
from pathlib import Path

from common import COLUMNS, Report, mean_row, one_by_one, quiet, row, timed

import kedit_hub
from kedit_hub import BaseProfile
from kedit_hub.api import load_model
from kedit_hub.editors.sweep import DEV_EDITS as SWEEP


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("records")
    parser.add_argument("--profile")
    arguments = parser.parse_args()
    quiet()
    report = Report("counterfact", "CounterFact records on a 4.3 M-parameter Llama that knows them")
    model, tokenizer = load_model(arguments.model)
    edits = kedit_hub.read_edits(arguments.records)
    if arguments.profile and Path(arguments.profile).is_dir():
        profile = BaseProfile.load(arguments.profile)
    else:
        with timed() as seconds:
            profile = kedit_hub.build_profile(model, tokenizer, edits=edits)
            report.say(f"profile built in {seconds():.0f} s")
        if arguments.profile:
            profile.save(arguments.profile)
    s = profile.settings
    report.say(
        f"profile {profile.id[:12]}: layer {s.layer}, {s.site} site, gate layer {s.gate_layer}, "
        f"thresholds {s.gate.subject} / {s.gate.answer}, value lr {s.value.lr} clamp {s.value.clamp}, "
        f"drift budget {s.drift_budget}, chosen on the first {SWEEP} records"
    )
    with timed() as seconds:
        patches, failed = one_by_one(model, tokenizer, edits, profile=profile)
        report.say(f"{len(patches)} of {len(edits)} values succeed, {seconds() / len(edits):.2f} s per edit")

    rows = []
    for mode in ("gated", "sum"):
        sheets = []
        for patch in patches:
            pm = kedit_hub.apply(patch, model, tokenizer=tokenizer, mode=mode, profile=profile)
            sheets.append(kedit_hub.evaluate(pm, patch.edits, drift_texts=[]))
            pm.detach()
        for protocol in ("generate", "tf-token"):
            what = f"alone, {'weights' if mode == 'sum' else mode}"
            rows.append([what, protocol, len(edits), *mean_row(sheets, protocol, len(failed)), None, None])
    for mode in ("gated", "joint", "sum"):
        pm = kedit_hub.apply(patches, model, tokenizer=tokenizer, mode=mode, profile=profile, conflicts="latest")
        for name, part in (("all", edits), ("not in the sweep", edits[SWEEP:])):
            scores = kedit_hub.evaluate(pm, part)
            drift = (scores.drift["ppl_after"], scores.drift["kl"])
            for protocol in ("generate", "tf-token"):
                what = f"stack of {len(patches)}, {mode}, {name}"
                rows.append([what, protocol, len(part), *row(scores, protocol), *drift])
    report.table(["what", "protocol", "records", *COLUMNS, "ppl", "KL"], rows)
    report.save()


if __name__ == "__main__":
    main()
