"""What a memory of many entries costs a pass: codebooks, facts in words and gated rows, beside the base.

    python benchmarks/memory_latency.py                     # Atlas and a wider model, 1,000 to 100,000 entries

Entries are random, in one patch, at the base's own module; of the questions none is in scope of a fact, in a ball, or names a subject: what
is measured is finding that out, which every request pays. Keys of codebooks lie as what the base reads in random texts does, of which they
are sums; "keys at random" are as long and know no direction that tells more than others. Balls are of half a key's length (GRACE begins
with 0.6 and splits). Prefill: a pass over 32 tokens; decode: one more token behind them, with the KV cache. Medians of CPU time. The wider
model has 12 layers of width 768 (GPT-2's shape in Llama's form), its weights random. On Atlas, 5 million parameters, a pass is over before
anything that is done beside it in Python is, so that its ratios are those of overhead.
"""

import argparse
import time
from functools import partial
from statistics import median

import torch
from common import Report, quiet
from torch.nn.functional import normalize
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from kedit_hub.api import load_model
from kedit_hub.base.families import edited_linear, linear_shape
from kedit_hub.runtime.attach import Attachment, Plan
from kedit_hub.runtime.codebook import CodebookBranch
from kedit_hub.runtime.facts import Fact, FactsRouter, Piece
from kedit_hub.runtime.gate import Bank, TwoKeyGate
from kedit_hub.runtime.scope import Lexical, Near, words

PROMPT = 32
WIDTH = 64  # of the embeddings of a trained scope
NEVER = "nothing"
KINDS = (
    "codebook", "codebook, keys at random", "codebook, every position", "facts, trained scope", "facts, words", "gated rows",
)  # fmt: skip


def wide():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        num_key_value_heads=12, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), lambda ids: " ".join(f"word{i}" for i in ids)


def atlas():
    model, tokenizer = load_model("kedit-hub/atlas-llama")
    return model, partial(tokenizer.decode, skip_special_tokens=True)


def plan(kind, model, decode, entries):
    """What this many entries hang on the model."""
    path, linear = edited_linear(model, model.config.num_hidden_layers // 2)
    m, d = linear_shape(linear)
    drawn = torch.Generator().manual_seed(0)
    owners = ("patch",) * entries
    if kind.startswith("codebook"):
        everywhere = torch.full((entries,), kind == "codebook, every position")
        seen = read(model, linear)
        if kind == "codebook, keys at random":
            keys = seen.norm(dim=1).mean() * normalize(torch.randn(entries, d, generator=drawn), dim=1)
        else:
            keys = like(seen, entries, drawn)
        book = CodebookBranch(keys, torch.zeros(entries, m), keys.norm(dim=1) / 2, everywhere, owners)
        return Plan({path: [book]}, {})
    if kind == "gated rows":
        keys = normalize(torch.randn(entries, d, generator=drawn), dim=1)
        early, _ = edited_linear(model, 1)
        each = torch.arange(entries)
        bank = Bank(keys, each, keys, each, torch.zeros(entries, m), each, owners, torch.full((entries, 2), 0.9))
        gate = TwoKeyGate(bank, torch.eye(d), torch.eye(d))
        return Plan({path: [gate]}, {early: [gate.watch]})
    facts = tuple(Fact(0.5, Piece("", ()), "patch") for _ in range(entries))
    if kind == "facts, words":
        texts = [f"The capital of country {n} is {NEVER}{n}" for n in range(entries)]
        scope = Lexical(tuple(words(text) for text in texts))
        return Plan({}, {}, routers=[FactsRouter(facts, (scope,), decode, None)])
    scope = Near(100 + torch.randn(entries, WIDTH, generator=drawn), 1.0, torch.randn(WIDTH, d, generator=drawn))
    return Plan({}, {path: [scope.watch]}, routers=[FactsRouter(facts, (scope,), decode, None)])


def read(model, linear):
    """(2048, d) inputs of the module at texts of random tokens, without their beginnings, which are much alike."""
    heard = []
    handle = linear.register_forward_pre_hook(lambda _module, args: heard.append(args[0][:, 8:].flatten(0, 1)))
    ids = torch.randint(3, 2000, (32, 72), generator=torch.Generator().manual_seed(2))
    for some in ids.split(8):
        model(some, logits_to_keep=1)
    handle.remove()
    return torch.cat(heard)


def like(seen, entries, drawn):
    """(entries, d) each one of `seen`, and half the difference of two more."""
    keys = torch.empty(entries, seen.shape[1])
    for some in keys.split(4096):
        first, second, third = torch.randint(len(seen), (3, len(some)), generator=drawn)
        some.copy_(seen[first] + (seen[second] - seen[third]) / 2)
    return keys


def milliseconds(run, least, seconds=1.0):
    times = []
    while len(times) < least or sum(times) < seconds:
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return 1e3 * median(times)


def measured(model):
    """CPU ms of a prefill and of a token decoded."""
    ids = torch.randint(3, 2000, (1, PROMPT), generator=torch.Generator().manual_seed(1))
    caches = []

    def prefill():
        caches[:] = [DynamicCache()]
        model(ids, past_key_values=caches[0], use_cache=True, logits_to_keep=1)

    def decode():
        model(ids[:, :1], past_key_values=caches[0], use_cache=True, logits_to_keep=1)

    first = milliseconds(prefill, 5)
    prefill()
    for _ in range(3):
        decode()
    return first, milliseconds(decode, 30)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--bases", nargs="+", default=["atlas", "wide"])
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument(
        "--most", type=float, default=3.0, help="GB of keys that are tried; more is left out and said so"
    )
    chosen = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    report = Report("memory_latency", "What a memory of many entries costs a pass")
    report.say(
        f"Prefill of {PROMPT} tokens and decoding of one, CPU milliseconds and ratio to the base; nothing is in scope."
    )
    kinds = chosen.kinds
    for name in chosen.bases:
        model, decode = {"atlas": atlas, "wide": wide}[name]()
        rows, base = [], measured(model)
        width = linear_shape(edited_linear(model, 1)[1])[1]
        for kind in kinds:
            for entries in chosen.entries:
                if 4e-9 * width * entries > chosen.most:
                    rows.append([kind, f"{entries:,}", *[None] * 4])
                    continue
                attachment = Attachment(model)
                attachment.put(plan(kind, model, decode, entries))
                own, again = measured(model), measured_base(model, attachment)
                attachment.detach()
                ratios = [mine / other for mine, other in zip(own, again)]
                rows.append([kind, f"{entries:,}", f"{own[0]:.2f}", ratios[0], f"{own[1]:.2f}", ratios[1]])
                print(name, rows[-1], flush=True)
        size = sum(p.numel() for p in model.parameters()) / 1e6
        report.say(
            f"\n## {name}: {size:.0f} million parameters; base {base[0]:.2f} ms a prefill, {base[1]:.2f} ms a token"
        )
        report.table(["memory", "entries", "prefill ms", "x base", "decode ms", "x base"], rows)
    report.save()


def measured_base(model, attachment):
    """The base right after, with everything switched off: the machine is not always as fast."""
    with attachment.within(enabled=False):
        return measured(model)


if __name__ == "__main__":
    main()
