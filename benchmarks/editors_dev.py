"""The same small budget on dev edits for every editor that needs no training: three settings of what matters most to it.

    python benchmarks/editors_dev.py

Forty dev edits of Atlas in one patch, by real generation: H, the harmonic mean of reliability, generalization and neighbours. Methods
that solve for the weights try a tenth of, and ten times, the lambda that meets the median edit alone to the profile's share; ROME the
bound on values, fine-tuning the learning rate (FT-L its bound: of three rates, tried first, all at H = 0), neurons the threshold,
UltraEdit the step. The middle one is the default; benchmarks/editors.py reports it on test edits, and another one beside it where that
did better here by .04.
"""

import json
import statistics

from common import RESULTS, Report, mean, quiet
from editors import BASE, ROWS

import kedit_hub
from kedit_hub import PatchStack, demo
from kedit_hub.api import load_model
from kedit_hub.editors.editor import EDITORS
from kedit_hub.evaluate.metrics import harmonic_mean

EDITS = 40
SOLVED = (
    "memit written", "alphaedit", "emmet", "pmet", "memit-spread", "pmet-spread", "alphaedit-spread", "memit-blue", "alphaedit-blue",
)  # fmt: skip
KNOBS = {  # row of editors.py -> (setting, its three values; of `lam`, `lr` and `norm_bound` times the default)
    **dict.fromkeys(SOLVED, ("lam", (0.1, 1.0, 10.0))),
    **dict.fromkeys(("rome-published", "r-rome"), ("value.clamp", (0.75, 1.5, 3.0))),
    **dict.fromkeys(("ft", "ft-m", "locft"), ("lr", (1 / 3, 1.0, 3.0))),
    "ft-l": ("norm_bound", (1 / 3, 1.0, 3.0)),
    "kn": ("threshold", (0.2, 0.4, 0.6)),
    "ultraedit": ("step", (0.25, 0.5, 1.0)),
}


class Bench:
    def __init__(self, out):
        self.out = out
        self.cells = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        self.model, self.tokenizer = load_model(BASE)
        self.edits = demo.edits("dev")[:EDITS]
        self.told_by_base = {}

    def made(self, method, settings):
        fields = EDITORS[method].settings.model_fields
        settings = {**({"failed": "drop"} if "failed" in fields else {}), **settings}
        return kedit_hub.edit(
            self.model, self.edits, method, tokenizer=self.tokenizer, settings=settings, progress=False
        )

    def usual(self, name, knob):
        """What `lam`, `lr` or `norm_bound` is times 1; the others are told as they are."""
        method, settings, _ = ROWS[name]
        if knob == "lam":
            return statistics.median(self.made(method, settings).manifest.settings["lam_used"])
        if knob == "lr":
            return EDITORS[method].settings.LR / self.model.config.intermediate_size
        if knob == "norm_bound":
            return EDITORS[method].settings.BOUND / self.model.config.intermediate_size
        return 1.0

    def cell(self, name):
        knob, values = KNOBS[name]
        method, settings, mode = ROWS[name]
        found = []
        usual = self.usual(name, knob)
        for value in values:
            part, _, field = knob.rpartition(".")
            own = {part: {field: value * usual}} if part else {field: value * usual}
            try:
                patch = self.made(method, {**settings, **own})
            except kedit_hub.KeditError as error:
                print(name, knob, value, str(error)[:160], flush=True)
                found.append(None)
                continue
            patched = kedit_hub.apply(PatchStack([patch]), self.model, tokenizer=self.tokenizer, mode=mode)
            told = kedit_hub.evaluate(
                patched, self.edits, protocols=("generate",), drift_texts=[], told_by_base=self.told_by_base
            ).protocols["generate"]
            patched.detach()
            found.append([told["reliability"], told["generalization"], told["locality"]["neighbour"]])
        return {"name": name, "knob": knob, "values": values, "scores": found}

    def run(self):
        done = {cell["name"] for cell in self.cells}
        for name in KNOBS:
            if name not in done:
                self.cells.append(self.cell(name))
                with self.out.open("a") as file:
                    file.write(json.dumps(self.cells[-1]) + "\n")
                print(self.cells[-1], flush=True)


def report(cells):
    told = Report("editors_dev", "Editors that need no training: three settings each, on dev edits")
    told.say("\n" + __doc__.split("\n\n")[2].strip())
    rows, kept = [], 0
    for cell in cells:
        h = [scores and harmonic_mean(scores) for scores in cell["scores"]]
        best = max(range(len(h)), key=lambda i: h[i] or 0.0)
        kept += best == 1
        shown = [" / ".join(f"{x:.3f}" for x in scores) if scores else None for scores in cell["scores"]]
        tried = ", ".join(f"{value:.3g}" for value in cell["values"])
        rows.append(
            [cell["name"], f"{cell['knob']}: {tried}", *h, f"{cell['values'][best]:.3g}", shown[1], shown[best]]
        )
    columns = [
        "method",
        "tried",
        "H, first",
        "H, default",
        "H, third",
        "best",
        "default: rel. / gen. / neighbours",
        "best: the same",
    ]
    told.table(columns, rows)
    scores = [[(x and harmonic_mean(x)) or 0.0 for x in cell["scores"]] for cell in cells]
    gain = mean(max(of_one) - of_one[1] for of_one in scores)
    told.say(
        f"The default is the best of three for {kept} of {len(cells)} methods; the best would bring {gain:.3f} of H on average."
    )
    told.save()


if __name__ == "__main__":
    quiet()
    bench = Bench(RESULTS / "editors_dev.jsonl")
    bench.run()
    report(bench.cells)
