"""What a stack costs at run time beside the plain base: prefill, decoding, memory; and what one more patch costs.

    OMP_NUM_THREADS=1 python benchmarks/runtime_cost.py
    OMP_NUM_THREADS=1 python benchmarks/runtime_cost.py --edits 1 10 --ranks 100 --stack 10 --repeats 2     # to try it

Prompts mention edited subjects (the gate has work to do) or none of them (it should be nearly free). Median of repeats, interleaved.
The ranks are random low-rank patches on one map: what they say does not matter to what they cost.
"""

import argparse
import statistics

import torch
from common import Report, quiet, timed

import kedit_hub
from kedit_hub.api import load_model
from kedit_hub.patch import Dense, LowRank, Neurons, Patch
from kedit_hub.patch.fingerprint import fingerprint
from kedit_hub.patch.manifest import BaseRef
from kedit_hub.runtime.gate import TwoKeyGate
from kedit_hub.runtime.linear import LowRankBranch

HOW = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False}


@torch.no_grad()
def seconds(call, batch, **how) -> float:
    with timed() as elapsed:
        call(**batch, **how)
        return elapsed()


def ratios(model, patched, batch, repeats) -> list[str]:
    found = {"prefill": [], "decode": []}
    for _ in range(repeats):
        plain, edited = seconds(model, batch), seconds(patched, batch)
        found["prefill"].append(edited / plain)
        plain, edited = seconds(model.generate, batch, **HOW), seconds(patched.generate, batch, **HOW)
        found["decode"].append(edited / plain)
    return [f"x{statistics.median(one):.2f}" for one in found.values()]


def held(pm) -> float:
    """MB of the tensors that the branches of a patched model use."""
    tensors = {}
    for branches in pm._composition.branches.values():
        for branch in branches:
            match branch:
                case TwoKeyGate():
                    values = [*vars(branch.bank).values(), branch.subject_whitener, branch.answer_whitener]
                case LowRankBranch():
                    values = [branch.u, branch.v, *([branch.matrix()] if branch.is_dense else [])]
                case _:
                    values = list(vars(branch).values())
            tensors |= {id(value): value.nbytes for value in values if isinstance(value, torch.Tensor)}
    return sum(tensors.values()) / 1e6


def patches_of(deltas, path, base):
    """One patch of each, with an edit of its own."""
    made = []
    for number, delta in enumerate(deltas):
        edit = kedit_hub.Edit(f"Thing {number} is called", f"Name{number}", f"Thing {number}")
        made.append(Patch.create(deltas={path: delta}, edits=[edit], base=base, method="other"))
    return made


class Random:
    """Deltas of a map (out, width)."""

    def __init__(self, out, width, seed):
        self.out, self.width, self.generator = out, width, torch.Generator().manual_seed(seed)

    def numbers(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def low(self, rank):
        return LowRank(self.numbers(rank, self.width) / self.width**0.5, 1e-3 * self.numbers(self.out, rank))

    def matrix(self):
        return Dense(1e-3 * self.numbers(self.out, self.width) / self.width**0.5)

    def neuron(self):
        keys = self.numbers(1, self.width) / self.width**0.5
        return Neurons(
            keys, self.numbers(1), 1e-3 * self.numbers(1, self.out), (self.out, self.width), None, None, "relu"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--ranks", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--stack", type=int, default=1000, help="patches added one by one")
    parser.add_argument("--beside", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--repeats", type=int, default=7)
    how = parser.parse_args()
    quiet()
    report = Report("runtime_cost", "Cost of a stack at run time, relative to the plain base (Atlas, fp32)")
    model, tokenizer = load_model("kedit-hub/atlas-llama")
    edits = [*kedit_hub.demo.edits("test"), *kedit_hub.demo.edits("dev")]
    texts = {"edited subjects": [e.prompt for e in edits[:32]], "other text": kedit_hub.demo.texts("drift")[:32]}
    batches = {
        name: {
            key: value
            for key, value in tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").items()
            if key != "token_type_ids"
        }
        for name, prompts in texts.items()
    }

    rows = []
    for count in sorted({min(n, len(edits)) for n in how.edits}):
        part = kedit_hub.edit(model, edits[:count], tokenizer=tokenizer, settings={"failed": "drop"}, progress=False)
        for mode in ("gated", "joint"):
            pm = kedit_hub.apply(part, model, tokenizer=tokenizer, mode=mode, conflicts="latest")
            for name, batch in batches.items():
                rows.append([count, mode, name, *ratios(model, pm.model, batch, how.repeats), held(pm)])
    report.table(["edits", "mode", "prompts", "prefill", "generate 16", "MB"], rows)

    path = next(iter(part.deltas))
    base = BaseRef(
        id="kedit-hub/atlas-llama",
        model_type=model.config.model_type,
        fingerprint={path: fingerprint(model.get_submodule(path))},
    )
    out, width = base.fingerprint[path].shape
    rows = []
    for rank in how.ranks:
        pm = kedit_hub.apply(patches_of([Random(out, width, 0).low(rank)], path, base), model, tokenizer=tokenizer)
        rows.append([rank, *ratios(model, pm.model, batches["other text"], how.repeats), held(pm)])
    report.say(f"A random change of {path} ({out}, {width}); dense above rank {out * width / (out + width):.0f}:")
    report.table(["rank", "prefill", "generate 16", "MB"], rows)

    random = Random(out, width, 1)
    patches = patches_of([random.low(1) for _ in range(how.stack)], path, base)
    pm = kedit_hub.apply(patches[:1], model, tokenizer=tokenizer)
    took = []
    for patch in patches[1:]:
        with timed() as elapsed:
            pm.add(patch)
            took.append(elapsed())
    rows = [
        [at, 1000 * statistics.median(took[max(0, at - 6) : at - 1])] for at in (2, 10, 100, 1000) if at <= len(patches)
    ]
    report.say("Adding one more patch of rank 1 to a stack that has no solve:")
    report.table(["patches after it", "ms"], rows)
    rows = [[len(patches), *ratios(model, pm.model, batches["other text"], how.repeats), held(pm)]]
    report.table(["patches of rank 1", "prefill", "generate 16", "MB"], rows)

    for name, make in (("patches of a whole matrix", random.matrix), ("patches of a neuron", random.neuron)):
        rows = []
        for count in how.beside:
            pm = kedit_hub.apply(patches_of([make() for _ in range(count)], path, base), model, tokenizer=tokenizer)
            rows.append([count, *ratios(model, pm.model, batches["other text"], how.repeats)])
        report.table([name, "prefill", "generate 16"], rows)
    report.save()


if __name__ == "__main__":
    main()
