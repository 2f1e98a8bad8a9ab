"""What it costs to know the right base: hashing, fingerprints of single maps, and checks as a share of loading the base.

    python benchmarks/fingerprint.py

Medians of repeats; CPU time of all threads, and wall-clock time behind it. A patch made by kedit fingerprints two maps, the edited one
and the one its gate listens to; these two are what is checked. The large base is a Llama with random weights, saved as bfloat16 shards
in a temporary folder (which stays in the page cache: loading it from a slow disk takes longer, and the shares are smaller).
Loaded in the dtype they are stored in, weights are mapped and not read; therefore the share is also given of loading plus one forward
pass over two tokens, which reads them all and which kedit_hub.apply makes anyway.
"""

import gc
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import Report, quiet
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from kedit_hub.api import load_model
from kedit_hub.base.families import edited_linear
from kedit_hub.base.load import load_base
from kedit_hub.base.stored import verify_stored
from kedit_hub.patch import BaseRef
from kedit_hub.patch.fingerprint import check, fingerprint

REPEATS, LOADS = 7, 3
SHAPES = ((5632, 2048), (14336, 4096))
LARGE = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 9,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
HOW: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": "bfloat16"},
    "float32": {"dtype": "float32"},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
    "nf4": {"dtype": "bfloat16", "quantization": "nf4"},
}


class Seconds(NamedTuple):
    cpu: float
    wall: float

    def __str__(self) -> str:
        return f"{self.cpu:.4f} ({self.wall:.4f})"


def once(call: Callable[[], Any]) -> tuple[Seconds, Any]:
    cpu, wall = time.process_time(), time.perf_counter()
    made = call()
    return Seconds(time.process_time() - cpu, time.perf_counter() - wall), made


def middle(times: list[Seconds]) -> Seconds:
    return Seconds(*(statistics.median(column) for column in zip(*times)))


def repeated(call: Callable[[], Any]) -> Seconds:
    return middle([once(call)[0] for _ in range(REPEATS)])


def linear(weight: torch.Tensor, dtype: torch.dtype) -> nn.Linear:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    module.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    return module


def quantized(weight: torch.Tensor, name: str) -> nn.Module:
    import bitsandbytes as bnb

    out, width = weight.shape
    if name == "int8":
        module = bnb.nn.Linear8bitLt(width, out, bias=False, has_fp16_weights=False)
        module.weight = bnb.nn.Int8Params(weight.bfloat16(), requires_grad=False, has_fp16_weights=False)
    else:
        module = bnb.nn.Linear4bit(width, out, bias=False, quant_type=name, compress_statistics=False)
        module.weight = bnb.nn.Params4bit(
            weight.bfloat16(), requires_grad=False, quant_type=name, compress_statistics=False
        )
    return module.to("cpu")


def single_maps(report: Report) -> None:
    rows = []
    for shape in SHAPES:
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        made = fingerprint(linear(weight, torch.bfloat16))
        for name in HOW:
            full = name in ("bfloat16", "float32")
            module = linear(weight.bfloat16(), getattr(torch, name)) if full else quantized(weight, name)
            taken = repeated(lambda module=module: fingerprint(module))
            checked = repeated(lambda made=made, module=module: check(made, module))
            rows.append([f"{shape[0]} x {shape[1]}", name, check(made, module), taken, checked])
    report.say("Seconds of CPU (wall clock in brackets); the fingerprint that is checked was made on the bfloat16 map.")
    report.table(["map", "precision", "level", "fingerprint()", "check()"], rows)


def shares(report: Report, name: str, how: dict[str, dict[str, Any]], load: Callable[..., Any]) -> list[list[Any]]:
    """One row per precision: loading, checking two maps, one forward pass, and the share of the check."""
    model, _ = load(**next(iter(how.values())))
    paths = [edited_linear(model, layer)[0] for layer in (1, 3)]
    prints = {path: fingerprint(model.get_submodule(path)) for path in paths}
    del model
    rows = []
    for precision, options in how.items():
        loads, checks, passes, levels = [], [], [], set()
        for _ in range(LOADS):
            gc.collect()
            taken, (model, _) = once(lambda options=options: load(**options))
            loads.append(taken)

            def checking(model: Any = model) -> set[str]:
                return {check(prints[path], model.get_submodule(path)) for path in paths}

            taken, found = once(checking)  # the first check of a loaded model, as in kedit_hub.apply
            checks.append(taken)
            levels |= found

            def answering(model: Any = model) -> Any:
                with torch.no_grad():
                    return model(input_ids=torch.zeros(1, 2, dtype=torch.long))

            passes.append(once(answering)[0])
            del model, checking, answering
        loading, checked, answered = middle(loads), middle(checks), middle(passes)
        both = Seconds(*(sum(parts) for parts in zip(loading, answered)))
        rows.append(
            [name, precision, "/".join(sorted(levels)), loading, checked, share(checked, loading), share(checked, both)]
        )
    return rows


def share(part: Seconds, whole: Seconds) -> str:
    cpu, wall = (f"{100 * a / b:.2f} %" for a, b in zip(part, whole))
    return f"{cpu} ({wall})"


def main() -> None:
    quiet()
    report = Report("fingerprint", "Cost of knowing the right base")
    data = bytes(1 << 26)
    hashed = repeated(lambda: hashlib.sha256(data).digest())
    report.say(f"sha256: {len(data) / hashed.cpu / 1e9:.2f} GB/s of CPU time\n")
    single_maps(report)

    _, tokenizer = load_model("kedit-hub/atlas-llama")
    atlas = {"float32": {}, "int8": {"quantization": "int8"}, "nf4": {"quantization": "nf4"}}
    rows = shares(report, "Atlas", atlas, lambda **how: load_model("kedit-hub/atlas-llama", **how))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**LARGE)).bfloat16()
        size = sum(parameter.numel() for parameter in model.parameters())
        model.save_pretrained(folder, max_shard_size="300MB")
        tokenizer.save_pretrained(folder)
        del model
        rows += shares(report, f"Llama, {size / 1e9:.2f} B", HOW, lambda **how: load_base(folder, **how))
        report.say("Loading the base, and checking two maps of it: seconds of CPU (wall clock in brackets).")
        columns = ["base", "loaded as", "level", "loading", "check of two maps", "share of loading"]
        report.table([*columns, "share of loading and one pass"], rows)
        report.say(
            f"Two maps of {7 * LARGE['num_hidden_layers']} are read, whatever else the model has: the share falls with the number of "
            "layers. Loaded in the dtype it is stored in, a model is mapped and not read, so that there is hardly a load to compare with.\n"
        )

        model, _ = load_base(folder, dtype="bfloat16")
        prints = {path: fingerprint(model.get_submodule(path)) for path in (edited_linear(model, n)[0] for n in (1, 3))}
        del model
        base = BaseRef(id="random/llama", model_type="llama", fingerprint=prints)
        report.say(
            f"The same two maps checked in the folder, no model loaded (verify_stored): {repeated(lambda: verify_stored(base, folder))}"
        )
    report.save()


if __name__ == "__main__":
    main()
