"""Editors that need no training, side by side on Atlas: alone, in a batch, in batches one after the other, and one edit after the other.

    python benchmarks/editors.py [--rows "memit, gated;ft-m"] [--only single,batch] [--out FILE]

Every cell is appended to --out as it is finished, so a run that is stopped goes on; the tables are printed from that file. Edits are of the
test split, another shuffle for every draw; what could be chosen was chosen on dev edits. After a sequence all edits are asked again.
"Written" methods edit the model as the patches before have left it; rows (memit, rome) belong to the base and are only stacked.
"""

import argparse
import json
import random
from pathlib import Path

from common import RESULTS, Report, quiet

import kedit_hub
from kedit_hub import PatchStack, demo
from kedit_hub.api import load_model
from kedit_hub.editors.editor import EDITORS
from kedit_hub.workshop import counted

BASE = "kedit-hub/atlas-llama"
SMALL = {"value": {"lr": 0.05, "steps": 100, "weight_decay": 2.0}}
PLAIN = {"preconditioner": "second-moment", "history": False}
# name in the table -> (method, settings, mode the patches are applied in)
ROWS = {
    "memit, gated": ("memit", {}, "gated"),
    "memit, joint": ("memit", {}, "joint"),
    "memit, sum": ("memit", {}, "sum"),
    "memit written": ("alphaedit", PLAIN, "sum"),
    "memit written, history": ("alphaedit", {**PLAIN, "history": True}, "sum"),
    "memit written, small values": ("alphaedit", {**PLAIN, **SMALL}, "sum"),
    "alphaedit": ("alphaedit", {}, "sum"),
    "alphaedit, no history": ("alphaedit", {"history": False}, "sum"),
    "emmet": ("emmet", {}, "sum"),
    "pmet": ("pmet", {}, "sum"),
    "rome-published": ("rome-published", {}, "sum"),
    "r-rome": ("r-rome", {}, "sum"),
    "r-rome, small values": ("r-rome", SMALL, "sum"),
    "memit-spread": ("memit-spread", {}, "sum"),
    "pmet-spread": ("pmet-spread", {}, "sum"),
    "alphaedit-spread": ("alphaedit-spread", {}, "sum"),
    "memit-blue": ("memit-blue", {}, "sum"),
    "alphaedit-blue": ("alphaedit-blue", {}, "sum"),
    "ft": ("ft", {}, "sum"),
    "ft-l": ("ft-l", {}, "sum"),
    "ft-m": ("ft-m", {}, "sum"),
    "locft": ("locft", {}, "sum"),
    "kn": ("kn", {}, "sum"),
    "ultraedit": ("ultraedit", {}, "sum"),
    "ultraedit, all rows": ("ultraedit", {"rows": "all"}, "sum"),
}
# scenario -> (number of patches, edits of each, draws): all patches on one model, but for "single"
SCENARIOS = {"batch": (1, 100, 3), "sequence": (5, 20, 3), "single": (20, 1, 1), "one by one": (40, 1, 1)}
COLUMNS = (
    "reliability",
    "generalization",
    "neighbour",
    "same_subject",
    "portability",
    "kl",
    "cpu s/edit",
    "MiB",
    "kB/edit",
)


class Bench:
    def __init__(self):
        self.model, self.tokenizer = load_model(BASE)
        self.texts = demo.texts("drift")[:60]
        known = set(kedit_hub.methods())
        self.rows = {name: row for name, row in ROWS.items() if row[0] in known}

    def apply(self, patches, mode):
        return kedit_hub.apply(PatchStack(patches), self.model, tokenizer=self.tokenizer, mode=mode)

    def made(self, name, edits, below):
        """(patch or None, CPU seconds, peak bytes)"""
        method, settings, mode = self.rows[name]
        on = self.apply(below, mode) if below else None
        fields = {"failed": "drop"} if "failed" in EDITORS[method].settings.model_fields else {}
        with counted(self.model) as cost:
            try:
                patch = kedit_hub.edit(
                    self.model,
                    edits,
                    method,
                    tokenizer=self.tokenizer,
                    settings={**fields, **settings},
                    on=on,
                    progress=False,
                )
            except kedit_hub.KeditError as error:
                print(name, str(error)[:200])
                patch = None
        return patch, cost["cpu_s"], cost["peak_rss_bytes"]

    def scored(self, patches, edits, mode):
        patched = self.apply(patches, mode) if patches else self.apply([], mode)
        return kedit_hub.evaluate(patched, edits, drift_texts=self.texts, fluency=False).to_dict()

    def cell(self, scenario, name, draw):
        count, size, _ = SCENARIOS[scenario]
        edits = list(demo.edits("test"))
        random.Random(draw).shuffle(edits)
        edits = edits[: count * size]
        mode = self.rows[name][2]
        patches, cpu, peak, sheets = [], 0.0, 0, []
        for start in range(0, len(edits), size):
            batch = edits[start : start + size]
            patch, seconds, bytes_ = self.made(name, batch, [] if scenario == "single" else patches)
            cpu, peak = cpu + seconds, max(peak, bytes_ or 0)
            if scenario == "single":
                sheets.append(self.scored([patch] if patch else [], batch, mode))
            if patch is not None:
                patches.append(patch)
        if scenario != "single":
            sheets = [self.scored(patches, edits, mode)]
        size_of = sum(delta.nbytes() for patch in patches for delta in patch.deltas.values())
        found = {protocol: means(sheets, protocol) for protocol in ("tf-token", "generate")}
        drift = [sheet["drift"]["kl"] for sheet in sheets]
        return {
            "scenario": scenario, "name": name, "draw": draw, "edits": len(edits), **found, "kl": sum(drift) / len(drift),
            "cpu s/edit": cpu / len(edits), "MiB": peak / 2**20,
            "kB/edit": size_of / 1000 / len(edits),
        }  # fmt: skip


def means(sheets, protocol):
    """Averages over score sheets, one per patch or one for all."""
    found = {}
    for column in COLUMNS[:5]:
        values = []
        for sheet in sheets:
            scores = sheet["protocols"][protocol]
            if column == "portability":
                kinds = [value for value in scores["portability"].values() if value is not None]
                value = sum(kinds) / len(kinds) if kinds else None
            else:
                value = scores.get(column, scores["locality"].get(column))
            values += [] if value is None else [value]
        found[column] = sum(values) / len(values) if values else None
    return found


def tables(cells):
    report = Report("editors", "Editors that need no training, on Atlas (Llama), test edits")
    report.say("one base, settings chosen on dev edits; KL on 60 sentences")
    for scenario, (count, size, _) in SCENARIOS.items():
        for protocol in ("tf-token", "generate"):
            rows = []
            for name in ROWS:
                own = [cell for cell in cells if (cell["scenario"], cell["name"]) == (scenario, name)]
                if not own:
                    continue
                columns = []
                for column in COLUMNS:
                    values = [cell[protocol].get(column) if column in COLUMNS[:5] else cell[column] for cell in own]
                    known = [value for value in values if value is not None]
                    columns.append(sum(known) / len(known) if known else None)
                spread = [cell[protocol]["reliability"] for cell in own]
                rows.append([name, len(own), *columns, f"{min(spread):.2f}-{max(spread):.2f}"])
            if rows:
                what = f"{count} patches of {size} edit(s)" + (", each alone" if scenario == "single" else ", together")
                report.say()
                report.say(f"## {scenario}: {what}, `{protocol}`")
                report.table(["method", "draws", *COLUMNS, "reliability of draws"], rows)
    report.save()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default="", help="names of the table, separated by semicolons")
    parser.add_argument("--only", default="")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "editors.jsonl")
    asked = parser.parse_args()
    quiet()
    bench = Bench()
    cells = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []
    done = {(cell["scenario"], cell["name"], cell["draw"]) for cell in cells}
    names = [name for name in bench.rows if not asked.rows or name in asked.rows.split(";")]
    for draw in range(asked.draws):
        for scenario, (_, _, draws) in SCENARIOS.items():
            if draw >= draws or (asked.only and scenario not in asked.only.split(",")):
                continue
            for name in names:
                if (scenario, name, draw) in done:
                    continue
                cells.append(bench.cell(scenario, name, draw))
                with asked.out.open("a") as file:
                    file.write(json.dumps(cells[-1]) + "\n")
                told = cells[-1]
                print(
                    scenario,
                    name,
                    draw,
                    {k: round(v, 3) for k, v in told["generate"].items() if v is not None},
                    told["cpu s/edit"],
                )
    tables(cells)


if __name__ == "__main__":
    main()
