"""Loading patches against loading LoRAs with PEFT: the same 1 to 1,000 rank-1 changes from disk, on the same base, in the same run.

    python benchmarks/versus_peft.py [--counts 1 10 100 1000] [--bases atlas wide] [--repeats 3] [--limit 60]

    kedit_hub     kedit_hub.apply on folders: read, parsed, every tensor hashed, the base's fingerprint compared, conflicts looked
                  for, attached
    peft          PeftModel.from_pretrained, load_adapter for each, all adapters set active; nothing is checked
    peft cat      the same, then add_weighted_adapter(combination_type="cat") and that one set active

atlas is the demo model (6 layers x 256), wide a random Llama of 8 layers x 512; a patch changes one module of Atlas, three of wide. Every
measurement is a process of its own, so that memory is its own high-water mark; the ways take turns. Times are CPU seconds of one thread
from files on disk to a model that is ready, medians over repeats; prefill and decoding are ratios to the plain base in the same process,
taken in turns. A way that has not loaded everything after --limit seconds stops, and its row says how far it got. The ways' logits are
compared with each other.
"""

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import Report, quiet

WAYS = ("kedit_hub", "peft", "peft cat")
MODULES = {"atlas": 1, "wide": 3}
ROUNDS = 5


def base(name, folder):
    """(model, tokenizer)."""
    from kedit_hub.api import load_model

    model, tokenizer = load_model("kedit-hub/atlas-llama")
    return (model, tokenizer) if name == "atlas" else (load_model(folder / "wide")[0], tokenizer)


def write(name, count, folder) -> None:
    """The base, and `count` patches with their twins as PEFT adapters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    import kedit_hub
    from kedit_hub.patch import BaseRef, LowRank, Patch
    from kedit_hub.patch.fingerprint import fingerprint
    from kedit_hub.stack.export import export

    if name == "wide":
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=3072, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8
        )
        LlamaForCausalLM(config).save_pretrained(folder / "wide")
        kedit_hub.api.load_model("kedit-hub/atlas-llama")[1].save_pretrained(folder / "wide")
    model, tokenizer = base(name, folder)
    paths = [f"model.layers.{layer}.mlp.down_proj" for layer in (2, 3, 4)[: MODULES[name]]]
    out, width = model.get_submodule(paths[0]).weight.shape
    prints = {path: fingerprint(model.get_submodule(path)) for path in paths}
    ref = BaseRef(id=f"benchmark/{name}", model_type="llama", fingerprint=prints)
    draw = torch.Generator().manual_seed(1)
    for number in range(count):
        a, b = (torch.randn(size, generator=draw) * 0.03 for size in ((1, width), (out, 1)))
        edit = kedit_hub.Edit(f"The number of patch {number} is", str(number), f"patch {number}")
        patch = Patch.create(deltas={p: LowRank(a, b) for p in paths}, edits=[edit], base=ref, method="lora")
        patch.save(folder / "patches" / f"{number:04d}")
        export(patch, folder / "adapters" / f"{number:04d}", model=model, tokenizer=tokenizer)


# -- one measurement, in a process of its own ----------------------------------------------------------------------------


def load_kedit(model, tokenizer, folder, count, limit):
    """(the model, patches loaded)."""
    import kedit_hub

    pm = kedit_hub.apply(
        [folder / "patches" / f"{number:04d}" for number in range(count)], model, tokenizer=tokenizer, mode="joint"
    )
    return pm.model, count


def load_peft(model, tokenizer, folder, count, limit, cat=False):
    from peft import PeftModel

    start = time.process_time()
    wrapped = PeftModel.from_pretrained(model, folder / "adapters" / "0000", "a0")
    loaded = 1
    while loaded < count and time.process_time() - start < limit:
        wrapped.load_adapter(folder / "adapters" / f"{loaded:04d}", f"a{loaded}")
        loaded += 1
    names = [f"a{number}" for number in range(loaded)]
    if cat:
        wrapped.add_weighted_adapter(names, [1.0] * loaded, "all", "cat")
        wrapped.set_adapter("all")
    else:
        wrapped.base_model.set_adapter(names)
    return wrapped.eval(), loaded


@torch.no_grad()
def measure(name, way, folder, count, limit) -> dict:
    quiet()
    import peft  # noqa: F401  (neither way pays for imports)

    import kedit_hub  # noqa: F401

    torch.set_num_threads(1)
    model, tokenizer = base(name, folder)
    batch = {"input_ids": torch.randint(3, 3000, (4, 128), generator=torch.Generator().manual_seed(2))}
    one = {"input_ids": batch["input_ids"][:, :8], "attention_mask": torch.ones(4, 8, dtype=torch.long)}
    model(**batch)
    plain = copy.deepcopy(model)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    load = load_kedit if way == "kedit_hub" else load_peft
    changed, loaded = load(model, tokenizer, folder, count, limit, **({"cat": True} if way == "peft cat" else {}))
    ready = time.process_time() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    logits = changed(**batch).logits

    def seconds(call, **inputs) -> float:
        start = time.process_time()
        call(**inputs)
        return time.process_time() - start

    decode = {**one, "max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    prefill_ratio, decode_ratio = [], []
    for _ in range(ROUNDS):
        prefill_ratio.append(seconds(changed, **batch) / seconds(plain, **batch))
        decode_ratio.append(seconds(changed.generate, **decode) / seconds(plain.generate, **decode))
    return {
        "loaded": loaded,
        "seconds": ready,
        "memory": memory / 1024,  # MiB
        "prefill": statistics.median(prefill_ratio),
        "decode": statistics.median(decode_ratio),
        "logits": logits[:, -1, :64].flatten().tolist(),
        "effect": (logits - plain(**batch).logits).abs().max().item(),
    }


# -- all of them ---------------------------------------------------------------------------------------------------------


def compare(report, name, counts, repeats, limit, folder) -> None:
    rows = []
    for count in counts:
        found = {way: [] for way in WAYS}
        for _, way in ((repeat, way) for repeat in range(repeats) for way in WAYS):
            if found[way] and found[way][0]["loaded"] < count:
                continue  # once is enough to know that it is too slow
            command = [sys.executable, __file__, "--one", name, way, str(folder), str(count), str(limit)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
        ours = statistics.median(run["seconds"] for run in found["kedit_hub"])
        exact = torch.tensor(found["kedit_hub"][0]["logits"])
        for way in WAYS:
            runs = found[way]
            whole = runs[0]["loaded"] == count
            took = statistics.median(run["seconds"] for run in runs)
            gap = (torch.tensor(runs[0]["logits"]) - exact).abs().max().item() if whole else None
            rows.append(
                [
                    count,
                    way if whole else f"{way}, stopped at {runs[0]['loaded']}",
                    f"{1000 * took:.1f}",
                    f"x{took / ours:.1f}" if whole else f"> x{took / ours:.1f}",
                    *(f"x{statistics.median(run[kind] for run in runs):.2f}" for kind in ("prefill", "decode")),
                    f"{statistics.median(run['memory'] for run in runs):.0f}",
                    "-" if gap is None else f"{gap:.1e}",
                ]
            )
            print(rows[-1], flush=True)
    report.say(f"\n{name}, {MODULES[name]} module(s) in a patch:")
    report.table(
        [
            "patches",
            "way",
            "CPU ms",
            "ratio to kedit_hub",
            "prefill 4 x 128",
            "decode 16",
            "MiB more",
            "logits differ by",
        ],
        rows,
    )


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        name, way, folder, count, limit = sys.argv[2:]
        print(json.dumps(measure(name, way, Path(folder), int(count), float(limit))))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--bases", nargs="+", default=list(MODULES), choices=list(MODULES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=60.0, help="CPU seconds that PEFT may load for")
    arguments = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    import peft

    report = Report("versus_peft", f"Loading patches against loading LoRAs with PEFT {peft.__version__}")
    report.say(
        f"\nRank-1 changes; CPU time, one thread, median of {arguments.repeats}; PEFT stops after {arguments.limit:.0f} s."
    )
    for name in arguments.bases:
        with tempfile.TemporaryDirectory() as folder:
            write(name, max(arguments.counts), Path(folder))
            compare(report, name, arguments.counts, arguments.repeats, arguments.limit, Path(folder))
    report.save()


if __name__ == "__main__":
    main()
