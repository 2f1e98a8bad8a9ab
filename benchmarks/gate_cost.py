"""What the two-key gate costs a token, by width, number of edits and kind of search.

    python benchmarks/gate_cost.py                 # some three minutes on one thread, 7 GB
    python benchmarks/gate_cost.py --edits 100 1000 --widths 704

Keys are random: `PER` around each edit's own direction at cosine 0.85, as one subject in several contexts has; half the queries come
near an edit (cosine 0.55 to 0.95), half near none. Time is the median over single tokens, as in decoding: the product with the subject
keys ("exact") or the search through faiss ("approximate"), and the whole gate (both whitenings, both searches) for a sequence that has
named one edit. Recall is the share of pairs, and of (query, edit), above the subject threshold that the approximate search finds.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from common import Report
from torch import Tensor
from torch.nn.functional import normalize
from transformers import DynamicCache

from kedit_hub.runtime.attach import Pass
from kedit_hub.runtime.gate import Bank, TwoKeyGate, whiten
from kedit_hub.runtime.nearest import MANY, Approximate, Exact, Search
from kedit_hub.runtime.remember import keep

PER = 5  # subject keys of an edit, and answer keys
THRESHOLD = 0.5
OUT = 64
QUERIES = 200
MEMORY = 3 << 30  # bytes of subject keys that are tried; more is left out and said so
INDEXED = (
    1 << 30
)  # bytes of them that are also tried with an index, which copies them and takes minutes to build beyond


def around(centres: Tensor, cosine: Tensor, generator: torch.Generator) -> Tensor:
    """Unit vectors at these cosines (n,) of unit vectors (n, d)."""
    made = torch.empty_like(centres)
    for some, to, at in zip(made.split(1000), centres.split(1000), cosine[:, None].split(1000)):
        noise = torch.randn(to.shape, generator=generator)
        noise = normalize(noise - (noise * to).sum(1, keepdim=True) * to, dim=1)
        some.copy_(at * to + (1 - at**2).sqrt() * noise)
    return made


def milliseconds(run: Callable[[], object], most: int = 30, seconds: float = 2.0) -> float:
    times: list[float] = []
    while len(times) < 3 or (len(times) < most and sum(times) < seconds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * median(times)


def pairs(search: Search, queries: Tensor) -> set[tuple[int, int]]:
    found = (search.above(query[None]) for query in queries)
    return {(n, int(key)) for n, portions in enumerate(found) for _, keys in portions for key in keys}


def one(width: int, edits: int, whitener: Tensor, approximate: bool) -> list[object]:
    generator = torch.Generator().manual_seed(0)
    centres = normalize(torch.randn(edits, width, generator=generator), dim=1)
    edit = torch.arange(edits).repeat(PER)
    keys = torch.cat([around(centres, torch.full((edits,), 0.85), generator) for _ in range(PER)])
    near = around(
        centres[torch.randint(edits, (QUERIES // 2,), generator=generator)],
        0.55 + 0.4 * torch.rand(QUERIES // 2, generator=generator),
        generator,
    )
    queries = torch.cat([near, normalize(torch.randn(QUERIES // 2, width, generator=generator), dim=1)])
    thresholds = torch.full((len(keys),), THRESHOLD)

    gate = gate_of(keys, edit, edits, whitener)
    exact = Exact(keys, thresholds)
    turns = iter(range(1 << 30))
    exact_ms = milliseconds(lambda: list(exact.above(queries[next(turns) % QUERIES][None])))
    row: list[object] = [width, edits, f"{keys.nbytes / 2**20:.0f}", f"{exact_ms:.3f}"]
    if not approximate:
        return [*row, *[None] * 4, f"{decoding(gate, centres[:1]):.3f}" if len(keys) <= MANY else None]
    start = time.perf_counter()
    index = gate.ear(keys.device).search if len(keys) > MANY else Approximate(keys, thresholds)
    built = time.perf_counter() - start
    approximate_ms = milliseconds(lambda: list(index.above(queries[next(turns) % QUERIES][None])), most=QUERIES)
    true, found = pairs(exact, queries), pairs(index, queries)
    named, reached = ({(query, key % edits) for query, key in some} for some in (true, found))
    recalls = [len(found & true) / len(true), len(reached) / len(named)]
    return [*row, f"{approximate_ms:.3f}", f"{built:.1f}", *recalls, f"{decoding(gate, centres[:1]):.3f}"]


def gate_of(keys: Tensor, edit: Tensor, edits: int, whitener: Tensor) -> TwoKeyGate:
    bank = Bank(
        subject_keys=keys,
        subject_edit=edit,
        keys=keys,
        key_row=edit,
        residuals=torch.zeros(edits, OUT),
        row_edit=torch.arange(edits),
        owners=("patch",) * edits,
        thresholds=torch.tensor([[THRESHOLD, THRESHOLD]]).expand(edits, 2),
    )
    return TwoKeyGate(bank, whitener, whitener)


def decoding(gate: TwoKeyGate, named: Tensor) -> float:
    """Milliseconds of the gate at one more token of a text that has named (1, d) a subject, with the search it chooses itself."""
    cache, now = DynamicCache(), Pass()
    gate.watch(named[None], now)
    keep(cache, now.lasting)
    assert now.notes[id(gate)].shape[1]
    x, y, place = named[None].flip(2), torch.zeros(1, 1, OUT), iter(range(1, 1 << 30))

    def token() -> None:
        now = Pass(past=next(place), cache=cache)
        gate.watch(x, now)
        gate(x, y, now)
        keep(cache, now.lasting)

    return milliseconds(token)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, nargs="+", default=[1, 100, 1_000, 10_000, 50_000])
    parser.add_argument("--widths", type=int, nargs="+", default=[704, 14_336])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    report = Report("gate_cost", "What the gate costs a token")
    report.say(f"{PER} subject keys per edit, threshold {THRESHOLD}; milliseconds per token on one thread, median.")
    rows, left_out = [], []
    for width in chosen.widths:
        whitener = torch.eye(width)
        token = torch.randn(1, width, generator=torch.Generator().manual_seed(1))
        alone = milliseconds(partial(whiten, token, whitener))
        report.say(
            f"One whitening at width {width:,}: {alone:.3f} ms, whatever the number of edits; the gate does one or two."
        )
        for edits in chosen.edits:
            if 4 * width * PER * edits > MEMORY:
                left_out.append(f"{edits:,} edits at width {width:,} ({4e-9 * width * PER * edits:.1f} GB of keys)")
                continue
            rows.append(one(width, edits, whitener, approximate=edits >= 1_000 and 4 * width * PER * edits <= INDEXED))
    report.table(
        [
            "width",
            "edits",
            "keys, MiB",
            "exact ms",
            "approximate ms",
            "index s",
            "recall, pairs",
            "recall, edits",
            "gate ms",
        ],
        rows,
    )
    if left_out:
        report.say(f"Left out for memory: {'; '.join(left_out)}. The exact product grows in proportion to the keys.")
    report.save()


if __name__ == "__main__":
    main()
