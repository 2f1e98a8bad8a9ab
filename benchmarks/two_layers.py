"""Is it worth giving an edit rows at two layers? On Atlas, N edits made independently, stacked.

    python benchmarks/two_layers.py [--sizes 1 10 30 100]

One value optimisation at the upper layer l2 gives every edit its change z of the block output. Three stacks of the same z:

    single      all of z in rows at l2
    stored      half of z in rows at l1 < l2; at l2 what is then left of it, measured with the edit's own l1 rows alone
    refreshed   the same patches, l2 measured anew with everybody's l1 rows in place (stack/refresh.py)

The half at l1 is the same vector at the output of the lower block, at the positions that predict the answer. Modes: joint, at a drift
budget per layer chosen on dev edits for every stack and size by itself (the two layers of a stack spend half of it each), and gated at the
profile's thresholds, which need no budget. Teacher forcing on test edits; H4 as in the other benchmarks.
"""

import argparse
from dataclasses import replace
from functools import partial

import torch
from common import COLUMNS, Report, quiet, row, timed

import kedit_hub
from kedit_hub.api import base_name, load_model
from kedit_hub.base.signals import capture
from kedit_hub.editors.job import Job
from kedit_hub.editors.locate import LocateSettings, assemble, locate, measure, mentions
from kedit_hub.editors.rebase import remeasured
from kedit_hub.editors.rows import context_rows
from kedit_hub.editors.sweep import build_profile
from kedit_hub.editors.values import Values
from kedit_hub.patch.fingerprint import fingerprint
from kedit_hub.patch.manifest import BaseRef
from kedit_hub.patch.patch import Patch
from kedit_hub.runtime.attach import Attachment
from kedit_hub.stack.compose import compose
from kedit_hub.stack.refresh import refresh
from kedit_hub.stack.stack import PatchStack

SHARE = 0.5  # of the value that the lower layer takes
BUDGETS = (0.1, 0.3, 0.6)  # of predicted drift, shared by the layers of a stack
ALONE = 1.0  # budget under which an edit's own lower rows are put on to measure its upper ones
STACKS = ("single", "stored", "refreshed")


class Bench:
    """The base, a profile for either layer, and compose under a budget."""

    def __init__(self):
        self.model, self.tokenizer = load_model("kedit-hub/atlas-llama")
        self.plain, _ = load_model("kedit-hub/atlas-llama")  # what locality is measured against
        upper = kedit_hub.demo.profile("llama")
        texts = kedit_hub.demo.texts("profile")[:2000]
        lower = build_profile(
            self.model, self.tokenizer, texts, upper.layer - 1, site=upper.site, gate_layer=upper.settings.gate_layer,
            name="atlas", progress=False,
        )  # fmt: skip
        same = {name: getattr(upper.settings, name) for name in ("contexts", "answer_end", "value", "gate")}
        self.upper, self.lower = upper, lower.replace(**same)
        self.profiles = {profile.module: profile for profile in (self.lower, self.upper)}
        prints = {path: fingerprint(self.model.get_submodule(path)) for path in self.profiles}
        self.base = BaseRef(id=base_name(self.model)[0], model_type=self.model.config.model_type, fingerprint=prints)

    def composed(self, stack, mode, budget):
        layers = {path for patch in stack for path in patch.deltas}
        share = None if budget is None else budget / len(layers)
        profiles = (
            self.profiles if share is None else {p: q.replace(drift_budget=share) for p, q in self.profiles.items()}
        )
        return compose(stack, self.model, profiles, mode=mode)

    def patch(self, deltas, edit):
        return Patch.create(deltas=deltas, edits=[edit], base=self.base, method="memit", settings={"omega": 1.0})

    def made(self, edit):
        """(single, two layers) of one edit, or None where its value fails."""
        try:
            job = Job(self.model, self.tokenizer, [edit], LocateSettings(), profile=self.upper)
            delta = locate(job, bare_weight=0.5).deltas[self.upper.module]
        except kedit_hub.KeditError:
            return None
        rows = context_rows(
            self.tokenizer, [edit], self.lower.settings.contexts, self.lower.site, self.lower.settings.answer_end
        )
        signals = measure(self.model, self.lower, rows) | mentions(self.model, self.tokenizer, self.lower, [edit])
        part = assemble(rows, signals, _values(SHARE * delta.residuals, rows), self.lower, 0.5)
        first = self.patch({self.lower.module: part}, edit)
        # what is left of z at the upper layer: the block output moved by l1 already, seen on the base with the edit's own l1 rows
        before = self.block_outputs(rows)
        alone = self.composed(PatchStack([first]), "joint", ALONE)
        attachment = Attachment(self.model, alone.branches, alone.watchers)
        try:
            moved = (self.block_outputs(rows) - before).mean(0)  # (S, m), over the contexts
            stale = self.patch({self.upper.module: delta}, edit)
            anew = remeasured(stale, self.upper.module, self.model, self.tokenizer, self.upper)
        finally:
            attachment.detach()
        rest = replace(anew, residuals=delta.residuals - moved[: len(delta.residuals)])
        return stale, self.patch({self.lower.module: part, self.upper.module: rest}, edit)

    def block_outputs(self, rows):
        """(N, S, m) outputs of block l2 at the sites of every context; one edit, so no site is missing."""
        path = self.upper.module.rpartition(".mlp")[0]
        hidden = capture(self.model, [path], rows.encoded, outputs=True)[path]
        return hidden[torch.arange(len(rows.sites))[:, None], rows.sites]

    def score(self, kind, patches, edits, mode, budget):
        """One row of the table for the stack of these patches."""
        stack = PatchStack(patches, conflicts="latest")
        compose_ = partial(self.composed, mode=mode, budget=budget)
        if kind == "refreshed":
            made = refresh(
                stack, self.model, compose_,
                lambda patch, path, model, under: remeasured(patch, path, model, self.tokenizer, self.profiles[path], under),
            ).composition  # fmt: skip
        else:
            made = compose_(stack)
        attachment = Attachment(self.model, made.branches, made.watchers)
        try:
            scores = kedit_hub.evaluate(
                self.model, edits, tokenizer=self.tokenizer, base=self.plain, protocols=("tf-token",), drift_texts=[]
            )
        finally:
            attachment.detach()
        return row(scores, "tf-token")


def _values(delta, rows):
    """Values that are given: delta (S, m) of one edit."""
    edits = rows.edits
    everybody = torch.ones(edits, dtype=torch.bool)
    return Values(delta[None], torch.zeros(edits), everybody, torch.ones(edits), 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 30, 100])
    arguments = parser.parse_args()
    quiet()
    report = Report("two_layers", "Rows at two layers against rows at one, on Atlas")
    bench = Bench()
    report.say(
        f"layers {bench.lower.layer} and {bench.upper.layer}, {bench.upper.site} site, half of the value at the lower one"
    )
    made = {}
    for split in ("dev", "test"):
        edits = kedit_hub.demo.edits(split)[: max(arguments.sizes)]
        with timed() as seconds:
            pairs = [(edit, patches) for edit in edits if (patches := bench.made(edit)) is not None]
        made[split] = pairs
        report.say(f"{split}: {len(pairs)} of {len(edits)} values succeed, {seconds() / len(edits):.2f} s per edit")
    rows, best = [], {}
    for size in arguments.sizes:
        for kind in STACKS:
            for mode in ("joint", "gated"):
                dev = _taken(made["dev"], kind, size)
                tried = (
                    [(bench.score(kind, *dev, mode, b)[-1], -b) for b in BUDGETS] if mode == "joint" else [(0.0, None)]
                )
                budget = -max(tried)[1] if mode == "joint" else None
                scores = bench.score(kind, *_taken(made["test"], kind, size), mode, budget)
                rows.append([size, mode, kind, budget, *scores])
                best[size, mode, kind] = scores[-1]
    report.table(["edits", "mode", "stack", "budget", *COLUMNS], rows)
    _verdict(report, best, arguments.sizes)
    report.save()


def _taken(pairs, kind, size):
    chosen = pairs[:size]
    return [patches[0 if kind == "single" else 1] for _, patches in chosen], [edit for edit, _ in chosen]


def _verdict(report, best, sizes) -> None:
    """In words, from the numbers above: a difference of H4 below 0.02 is called none."""
    for mode in ("joint", "gated"):
        for kind in ("stored", "refreshed"):
            gains = {size: best[size, mode, kind] - best[size, mode, "single"] for size in sizes}
            told = ", ".join(f"{gain:+.3f} at {size}" for size, gain in gains.items())
            pays = [str(size) for size, gain in gains.items() if gain > 0.02]
            costs = [str(size) for size, gain in gains.items() if gain < -0.02]
            verdict = f"pays at {', '.join(pays)} edits" if pays else "never pays"
            report.say(
                f"- {mode}, two layers {kind} against one: {told}: {verdict}"
                + (f", costs at {', '.join(costs)}" if costs else "")
            )
        fresh = {size: best[size, mode, "refreshed"] - best[size, mode, "stored"] for size in sizes}
        told = ", ".join(f"{gain:+.3f} at {size}" for size, gain in fresh.items())
        helps = any(gain > 0.02 for gain in fresh.values())
        report.say(
            f"- {mode}, refreshed against stored keys: {told}: refreshing {'helps' if helps else 'does not matter here'}"
        )


if __name__ == "__main__":
    main()
