"""100 patches made one by one on Atlas, never seeing each other, then stacked: gated, joint, sum, and sequential editing without history.

    python benchmarks/stack.py [--edits 100]

Every mode has one knob: the gate's two thresholds, the joint solve's drift budget, how closely a lone patch is fitted. Each is tuned with
eight tries (two for sequential editing, which costs minutes a try) on the dev stack of another 100 edits, other subjects, by the harmonic
mean of reliability, generalization, neighbour and same-subject locality under teacher forcing; the test stack is then scored once per mode.
Also: the 37th patch taken out against the stack that never had it, everything taken out against the base, and the same stack on int8 and
nf4 bases.
"""

import argparse
import copy

import torch
from common import COLUMNS, Report, one_by_one, quiet, row, timed

import kedit_hub
from kedit_hub.api import load_model
from kedit_hub.base.families import dense_weight
from kedit_hub.base.profile import GateSettings
from kedit_hub.editors.editor import make_patch
from kedit_hub.stack.solve import balanced_lambda, prepare, solve

TRIES = {
    "gated": [(0.5, 0.4), (0.6, 0.3), (0.6, 0.4), (0.6, 0.5), (0.7, 0.4), (0.7, 0.5), (0.8, 0.4), (0.8, 0.5)],
    "joint": [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0],
    "sum": [0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99],
    "sequential": [0.8, 0.95],
}


def tuned(profile, mode, knob):
    """The profile with one mode's knob set."""
    if mode == "gated":
        return profile.replace(gate=GateSettings(subject=knob[0], answer=knob[1]))
    return profile.replace(drift_budget=knob) if mode == "joint" else profile.replace(alone_fit=knob)


def sequential(model, tokenizer, edits, profile):
    """Edit after edit written into the weights, each measured on what the ones before left: no history is kept."""
    edited = copy.deepcopy(model)
    linear = edited.get_submodule(profile.module)
    for edit in edits:
        try:
            patch = make_patch(edited, tokenizer, [edit], profile, base=("sequential", None), progress=False)
        except kedit_hub.KeditError:
            continue
        delta = patch.deltas[profile.module]
        normal = prepare(delta.keys.T, delta.residuals.T, profile.second_moment)
        solution = solve(normal, balanced_lambda(normal, profile.settings.alone_fit))
        with torch.no_grad():
            dense_weight(linear).add_((solution.y @ solution.u.T).float())
    return edited


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--skip-sequential", action="store_true")
    arguments = parser.parse_args()
    quiet()
    report = Report("stack", f"{arguments.edits} patches made one by one on Atlas, stacked")
    model, tokenizer = load_model("kedit-hub/atlas-llama")
    profile = kedit_hub.demo.profile("llama")
    drift_texts = kedit_hub.demo.texts("drift")[:400]
    made = {}
    for split in ("dev", "test"):
        edits = kedit_hub.demo.edits(split)[: arguments.edits]
        with timed() as seconds:
            patches, _ = one_by_one(model, tokenizer, edits, profile=profile)
        made[split] = (edits, patches)
        report.say(f"{split}: {len(patches)} of {len(edits)} values succeed, {seconds() / len(edits):.2f} s per edit")

    report.say("\nTuning on the dev stack (teacher forcing, H4):")
    chosen = {}
    edits, patches = made["dev"]
    for mode, knobs in TRIES.items():
        tried = []
        for knob in knobs:
            setting = tuned(profile, mode, knob)
            if mode == "sequential":
                if arguments.skip_sequential:
                    continue
                scores = kedit_hub.evaluate(
                    sequential(model, tokenizer, edits, setting),
                    edits,
                    tokenizer=tokenizer,
                    base=model,
                    protocols=("tf-token",),
                    drift_texts=[],
                )
            else:
                pm = kedit_hub.apply(
                    patches, model, tokenizer=tokenizer, mode=mode, profile=setting, conflicts="latest"
                )
                scores = kedit_hub.evaluate(pm, edits, protocols=("tf-token",), drift_texts=[])
            tried.append((row(scores, "tf-token")[-1], knob))
        if tried:
            chosen[mode] = max(tried)[1]
            report.say(
                f"- {mode}: " + ", ".join(f"{knob}: {score:.3f}" for score, knob in tried) + f" -> {chosen[mode]}"
            )

    edits, patches = made["test"]
    rows = []
    sheets = {}
    for mode, knob in chosen.items():
        setting = tuned(profile, mode, knob)
        if mode == "sequential":
            scores = kedit_hub.evaluate(
                sequential(model, tokenizer, edits, setting),
                edits,
                tokenizer=tokenizer,
                base=model,
                drift_texts=drift_texts,
            )
        else:
            pm = kedit_hub.apply(patches, model, tokenizer=tokenizer, mode=mode, profile=setting, conflicts="latest")
            scores = kedit_hub.evaluate(pm, edits, drift_texts=drift_texts)
        sheets[mode] = scores
        for protocol in ("generate", "tf-token"):
            rows.append(
                [
                    mode,
                    protocol,
                    *row(scores, protocol),
                    scores.drift["ppl_before"],
                    scores.drift["ppl_after"],
                    scores.drift["kl"],
                ]
            )
    report.say(
        "\nTest stack, scored once per mode (reliability is of all edits; those whose value failed count as wrong):"
    )
    report.table(["mode", "protocol", *COLUMNS, "ppl before", "ppl after", "KL"], rows)
    counts = sheets["gated"].protocols["generate"]["n"]
    report.say(f"questions asked and dropped (generate): {counts}")

    setting = tuned(profile, "gated", chosen["gated"])
    _removal(report, model, tokenizer, patches, setting, chosen, profile)
    _quantized(report, edits, patches, setting, drift_texts)
    report.save()


def _removal(report, model, tokenizer, patches, setting, chosen, profile) -> None:
    report.say("\nRemoval, max abs difference of logits over 200 prompts:")
    prompts = [edit.prompt for edit in kedit_hub.demo.edits("test")[:200]]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="right")
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        base = model(**batch).logits
        for mode in ("gated", "joint", "sum"):
            use = tuned(profile, mode, chosen[mode])
            pm = kedit_hub.apply(patches, model, tokenizer=tokenizer, mode=mode, profile=use, conflicts="latest")
            pm.remove(patches[36].id)
            never = kedit_hub.apply(
                patches[:36] + patches[37:], model, tokenizer=tokenizer, mode=mode, profile=use, conflicts="latest"
            )
            gap = (pm.model(**batch).logits - never.model(**batch).logits).abs().max().item()
            pm.detach()
            exact = torch.equal(pm.model(**batch).logits, base)
            report.say(
                f"- {mode}: 37th of {len(patches)} removed: {gap:.2e}; all removed: bit-equal to the base: {exact}"
            )


def _quantized(report, edits, patches, setting, drift_texts) -> None:
    rows = []
    for quantization in (None, "int8", "nf4"):
        pm = kedit_hub.apply(
            patches, "kedit-hub/atlas-llama", quantization=quantization, profile=setting, conflicts="latest"
        )
        scores = kedit_hub.evaluate(pm, edits, drift_texts=drift_texts[:100])
        rows.append([quantization or "fp32", "gated", "generate", *row(scores)])
    report.say("\nThe same gated stack on quantized bases (locality against the same quantized base):")
    report.table(["base", "mode", "protocol", *COLUMNS], rows)


if __name__ == "__main__":
    main()
