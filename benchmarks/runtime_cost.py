"""What a stack costs at run time: prefill and decoding with 1, 10 and 100 gated or jointly solved edits, as ratios to the plain base.

    python benchmarks/runtime_cost.py

Prompts mention edited subjects (the gate has work to do) or none of them (it should be nearly free). Median of repeats, interleaved.
"""

import statistics

import torch
from common import Report, quiet, timed

import kedit_hub
from kedit_hub.api import load_model

REPEATS = 7


HOW = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False}


@torch.no_grad()
def seconds(call, batch, **how) -> float:
    with timed() as elapsed:
        call(**batch, **how)
        return elapsed()


def main() -> None:
    quiet()
    report = Report("runtime_cost", "Cost of a stack at run time, relative to the plain base (Atlas, fp32)")
    model, tokenizer = load_model("kedit-hub/atlas-llama")
    edits = kedit_hub.demo.edits("test")[:100]

    def make(some):
        return kedit_hub.edit(model, some, tokenizer=tokenizer, settings={"failed": "drop"}, progress=False)

    texts = {"edited subjects": [e.prompt for e in edits[:32]], "other text": kedit_hub.demo.texts("drift")[:32]}
    rows = []
    for count in (1, 10, 100):
        part = make(edits[:count])
        for mode in ("gated", "joint"):
            pm = kedit_hub.apply(part, model, tokenizer=tokenizer, mode=mode, conflicts="latest")
            for name, prompts in texts.items():
                batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
                batch.pop("token_type_ids", None)
                ratios = {"prefill": [], "decode": []}
                for _ in range(REPEATS):
                    plain, edited = seconds(model, batch), seconds(pm.model, batch)
                    ratios["prefill"].append(edited / plain)
                    plain, edited = seconds(model.generate, batch, **HOW), seconds(pm.model.generate, batch, **HOW)
                    ratios["decode"].append(edited / plain)
                rows.append([count, mode, name, *(f"x{statistics.median(r):.2f}" for r in ratios.values())])
    report.table(["edits", "mode", "prompts", "prefill", "generate 16"], rows)
    report.save()


if __name__ == "__main__":
    main()
