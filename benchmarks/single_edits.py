"""100 single edits of the Atlas test split, ROME and MEMIT, each patch alone on the base, under both protocols.

    python benchmarks/single_edits.py [--edits 100]

Columns are means over edits; "alone" applies one patch, asks its own questions and takes it off again. Gated = the two-key gate; weights =
the same rows solved alone and added to the weights (mode "sum"). The ceiling is the share of edits whose optimised value, put in place by
a hook, makes the model say the target: no way of storing the edit can do better. The classic methods edit at the subject's last token.
"""

import argparse

from common import COLUMNS, Report, mean_row, one_by_one, quiet, timed

import kedit_hub
from kedit_hub.api import load_model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--edits", type=int, default=100)
    count = parser.parse_args().edits
    quiet()
    report = Report("single_edits", f"{count} single edits of the Atlas test split")
    model, tokenizer = load_model("kedit-hub/atlas-llama")
    edits = kedit_hub.demo.edits("test")[:count]
    rows = []
    for method in ("rome", "memit", "rome-classic", "memit-classic"):
        with timed() as seconds:
            patches, failed = one_by_one(model, tokenizer, edits, method=method)
            per_edit = seconds() / len(edits)
        ceiling = 1 - len(failed) / len(edits)
        for mode in ("sum",) if method.endswith("classic") else ("gated", "sum"):
            sheets = []
            for patch in patches:
                pm = kedit_hub.apply(patch, model, tokenizer=tokenizer, mode=mode)
                sheets.append(kedit_hub.evaluate(pm, patch.edits, drift_texts=[]))
                pm.detach()
            where = patches[0].manifest.settings
            shown = "weights" if mode == "sum" else mode
            for protocol in ("generate", "tf-token"):
                means = mean_row(sheets, protocol, len(failed))
                rows.append([method, f"{where['layer']} {where['site']}", shown, protocol, *means, ceiling, per_edit])
    report.say(
        "no setting was chosen on these edits; an edit whose value failed counts as 0 in reliability and generalization"
    )
    report.table(["method", "layer, site", "mode", "protocol", *COLUMNS, "ceiling", "s/edit"], rows)
    report.save()


if __name__ == "__main__":
    main()
