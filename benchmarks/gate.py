"""What can be found at edit time to make the gate's job easier: paraphrases, openings, counter-keys, thresholds, a soft gate.

    python benchmarks/gate.py [--edits 100] [--seeds 3] [--architectures llama gpt2]

One patch of 100 edits behind the gate, on Atlas, from edits without their author's paraphrases, since that is where generated ones matter.
On the dev split each help is tried alone and together; the best by H4 (teacher forcing) is chosen, per architecture, and only that one is
then made from test edits and scored beside the patch as it is made today, each seed with its own draw of test edits and its own sampling.
The same two are also made once from edits with their author's paraphrases. On dev, patches that share their paraphrases share their values,
which do not depend on anything else tried here; on test every patch is made from nothing.
"""

import argparse
import random
from dataclasses import dataclass, replace

import torch
from common import COLUMNS, Report, quiet, row, timed

import kedit_hub
from kedit_hub.api import load_model
from kedit_hub.editors.calibrate import calibrated
from kedit_hub.editors.locate import mentions
from kedit_hub.editors.paraphrase import may_open, openings


@dataclass(frozen=True)
class Help:
    """One configuration: settings of the editor, and the softness of the gate."""

    template_paraphrases: int = 0
    base_paraphrases: int = 0
    openings: int = 0
    counter_keys: int = 0
    thresholds: bool = False
    softness: float = 0.0

    def settings(self):
        return {name: value for name, value in vars(self).items() if value and name != "softness"}

    def __str__(self):
        return ", ".join(f"{name} {value}" for name, value in vars(self).items() if value) or "as today"


TRIED = [
    Help(),
    Help(template_paraphrases=4),
    Help(base_paraphrases=3),
    Help(openings=64),
    Help(counter_keys=16),
    Help(thresholds=True),
    Help(softness=0.2),
    Help(openings=64, thresholds=True),
    Help(template_paraphrases=4, thresholds=True),
    Help(template_paraphrases=4, openings=64),
    Help(template_paraphrases=4, openings=64, thresholds=True),
    Help(template_paraphrases=4, openings=64, counter_keys=16),
    Help(template_paraphrases=4, openings=64, softness=0.2),
    Help(template_paraphrases=4, base_paraphrases=3, openings=64, counter_keys=16, thresholds=True, softness=0.2),
]


def gate_of(profile, help):
    return profile.replace(gate=profile.settings.gate.model_copy(update={"softness": help.softness}))


def made(model, tokenizer, profile, edits, help, seed):
    """A patch of all edits that take, made from nothing."""
    settings = {"failed": "drop", **help.settings()}
    return kedit_hub.edit(
        model, edits, tokenizer=tokenizer, profile=profile, settings=settings, seed=seed, progress=False
    )


def dressed(model, tokenizer, profile, patch, help, seed):
    """The patch with the openings, counter-keys and thresholds it would have been made with, on its own rows."""
    delta = patch.deltas[profile.module]
    if help.openings:
        begun = openings(patch.edits)
        more = [[o for o in begun if may_open(o, edit)][: help.openings] for edit in patch.edits]
        heard = mentions(model, tokenizer, profile, patch.edits, more)
        delta = replace(
            delta,
            gate_keys=torch.cat([delta.gate_keys, heard["mentions"]]),
            gate_edit=torch.cat([delta.gate_edit, heard["of"]]),
        )
    if help.counter_keys or help.thresholds:
        delta = calibrated(
            model, tokenizer, profile, patch.edits, delta,
            counter_keys=help.counter_keys, thresholds=help.thresholds, seed=seed,
        )  # fmt: skip
    return replace(patch, deltas={profile.module: delta})


def scored(model, tokenizer, profile, patch, edits, help, protocols):
    pm = kedit_hub.apply(patch, model, tokenizer=tokenizer, mode="gated", profile=gate_of(profile, help))
    scores = kedit_hub.evaluate(pm, edits, protocols=protocols, drift_texts=[])
    pm.detach()
    return scores


def tune(report, model, tokenizer, profile, edits):
    """The configuration of TRIED with the best H4 on dev."""
    values = {}
    rows = []
    for help in TRIED:
        phrased = Help(template_paraphrases=help.template_paraphrases, base_paraphrases=help.base_paraphrases)
        with timed() as seconds:
            if phrased not in values:
                values[phrased] = made(model, tokenizer, profile, edits, phrased, 0)
                report.say(f"{phrased}: {values[phrased].evals['making']} in {seconds():.0f} s")
            patch = dressed(model, tokenizer, profile, values[phrased], help, 0)
            scores = scored(model, tokenizer, profile, patch, edits, help, ("tf-token",))
            rows.append([str(help), *row(scores, "tf-token"), patch.deltas[profile.module].nbytes() / 2**20, seconds()])
        print(rows[-1], flush=True)
    report.table(["dev, tf-token", *COLUMNS, "MiB", "s"], rows)
    best = max(range(len(TRIED)), key=lambda at: rows[at][len(COLUMNS)])
    report.say(f"{len(TRIED)} configurations tried; chosen: {TRIED[best]}")
    patch = dressed(
        model,
        tokenizer,
        profile,
        values[replace(TRIED[best], openings=0, counter_keys=0, thresholds=False, softness=0.0)],
        TRIED[best],
        0,
    )
    plain = values[Help()]
    both = ((Help(), plain), (TRIED[best], patch))
    sheets = [(help, scored(model, tokenizer, profile, one, edits, help, ("generate",))) for help, one in both]
    report.table(["dev, generate", *COLUMNS], [[str(help), *row(sheet)] for help, sheet in sheets])
    return TRIED[best]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--architectures", nargs="+", default=["llama", "gpt2"])
    arguments = parser.parse_args()
    quiet()
    report = Report("gate", f"Helps for the gate: one patch of {arguments.edits} edits of Atlas")
    for architecture in arguments.architectures:
        model, tokenizer = load_model(f"kedit-hub/atlas-{architecture}")
        profile = kedit_hub.demo.profile(architecture)
        report.say(
            f"\n## {architecture}: {profile.settings.gate}, subjects at layer {profile.settings.gate_layer}, rows at {profile.layer}"
        )
        dev = kedit_hub.demo.edits("dev")[: arguments.edits]
        best = tune(report, model, tokenizer, profile, [replace(edit, paraphrases=()) for edit in dev])
        rows = []
        for seed in range(arguments.seeds):
            drawn = random.Random(seed).sample(kedit_hub.demo.edits("test"), arguments.edits)
            for authors in (False, True) if seed == 0 else (False,):
                edits = drawn if authors else [replace(edit, paraphrases=()) for edit in drawn]
                for help in dict.fromkeys((Help(), best)):
                    patch = made(model, tokenizer, profile, edits, help, seed)
                    scores = scored(model, tokenizer, profile, patch, edits, help, ("generate", "tf-token"))
                    for protocol in ("generate", "tf-token"):
                        given = "the author's 2" if authors else "none"
                        rows.append([str(help), given, seed, protocol, *row(scores, protocol)])
                        print(rows[-1], flush=True)
        report.table(["test", "paraphrases given", "seed", "protocol", *COLUMNS], rows)
    report.save()


if __name__ == "__main__":
    main()
