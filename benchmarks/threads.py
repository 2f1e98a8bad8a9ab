"""One patched model asked from many threads, in every row of every batch another sub-stack: is each row the row alone?

    OMP_NUM_THREADS=1 python benchmarks/threads.py --minutes 10 --threads 8

Half of the threads' patched model is gated, the other half's is solved jointly. Every row's tokens must be those of the same padded row
generated alone under the same sub-stack (asked once, before the threads start). Some batches run inside `without` or `disabled`, while
one more thread adds and removes a patch that no row asks for. The first wrong row is printed and the exit code is 1.
"""

import argparse
import random
import sys
import threading
import time
from collections import Counter

import torch
from common import Report, quiet

import kedit_hub
from kedit_hub.api import load_model
from kedit_hub.base.tokens import encode

MODES = ("gated", "joint")
SUB_STACKS = 12
NEW = 8


class Asked:
    """A patched model, the sub-stacks its rows ask for, and what every prompt answers alone under each."""

    def __init__(self, model, tokenizer, patches, prompts, mode):
        draw = random.Random(mode)
        self.mode, self.extra = mode, patches[-1]
        self.made = kedit_hub.apply(patches, model, tokenizer=tokenizer, mode=mode, conflicts="latest")
        ids = [patch.id for patch in patches[:-1]]
        self.sets = [(), tuple(ids), *(tuple(draw.sample(ids, draw.randint(1, len(ids)))) for _ in range(SUB_STACKS))]
        encoded = encode(tokenizer, prompts, side="left")
        self.batch = {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}
        self.alone = [[self.generate([row], [chosen])[0] for chosen in self.sets] for row in range(len(prompts))]

    def generate(self, rows, sets):
        batch = {name: value[rows] for name, value in self.batch.items()}
        return self.made.generate(batch, patches=sets, do_sample=False, min_new_tokens=NEW, max_new_tokens=NEW)

    def wrong(self, draw):
        """One batch at random; how many rows, and the first that is not as alone."""
        rows = draw.choices(range(len(self.alone)), k=draw.randint(1, 8))
        chosen = draw.choices(range(len(self.sets)), k=len(rows))
        kind = draw.choice(["plain", "plain", "plain", "disabled", "without"])
        if kind == "disabled":
            with self.made.disabled():
                got = self.generate(rows, [self.sets[c] for c in chosen])
            chosen = [0] * len(rows)
        elif kind == "without" and self.extra in self.made.stack:
            try:
                with self.made.without(self.extra):
                    got = self.generate(rows, [self.sets[c] for c in chosen])
            except kedit_hub.KeditError as error:
                if "holds no patch" not in str(error):  # taken out by the other thread in this moment
                    raise
                return 0, None
        else:
            got = self.generate(rows, [self.sets[c] for c in chosen])
        for at, (row, c) in enumerate(zip(rows, chosen)):
            if not torch.equal(got[at], self.alone[row][c]):
                return len(rows), f"{self.mode}, {kind}: prompt {row} with sub-stack {c} in row {at} of {len(rows)}"
        return len(rows), None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--patches", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=16)
    how = parser.parse_args()
    quiet()
    report = Report("threads", f"{how.threads} threads on one patched model for {how.minutes:g} minutes (Atlas, fp32)")
    model, tokenizer = load_model("kedit-hub/atlas-llama")
    edits = kedit_hub.demo.edits("test")[: 4 * how.patches]
    patches = [
        kedit_hub.edit(model, edits[i :: how.patches], tokenizer=tokenizer, settings={"failed": "drop"}, progress=False)
        for i in range(how.patches)
    ]
    prompts = [edit.prompt for edit in edits][: how.prompts]
    asked = [Asked(model, tokenizer, patches, prompts, mode) for mode in MODES]
    rows: Counter[str] = Counter()
    batches: Counter[str] = Counter()
    errors: list[str] = []
    end = time.monotonic() + 60 * how.minutes

    def ask(number: int) -> None:
        mine, draw = asked[number % len(asked)], random.Random(number)
        while time.monotonic() < end and not errors:
            try:
                count, wrong = mine.wrong(draw)
            except Exception as error:
                count, wrong = 0, f"{mine.mode}: {type(error).__name__}: {error}"
            rows[f"{mine.mode} {number}"] += count
            batches[f"{mine.mode} {number}"] += 1
            errors.extend([wrong] if wrong else [])

    def change() -> None:
        while time.monotonic() < end and not errors:
            for one in asked:
                one.made.remove(one.extra)
                time.sleep(0.05)
                one.made.add(one.extra)
            batches["changes"] += 1
            time.sleep(0.5)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(how.threads)] + [threading.Thread(target=change)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = []
    for one in asked:
        distinct = len({tuple(ids.tolist()) for told in one.alone for ids in told})
        told = [sum(v for name, v in counts.items() if name.startswith(one.mode)) for counts in (batches, rows)]
        lines.append([one.mode, len(one.sets), distinct, *told])
    report.table(["mode", "sub-stacks", "distinct answers alone", "batches", "rows compared"], lines)
    report.say(f"The stack was changed {4 * batches['changes']} times meanwhile. errors = {len(errors)}")
    for error in errors[:1]:
        report.say(f"first wrong row: {error}")
    report.save()
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
