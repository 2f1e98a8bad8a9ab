"""Which stored keys lie close to which queries. Law: what is returned is close, by an exact product; only `Approximate` may miss some.

    for query, key in search(keys, thresholds).above(queries):    # unit vectors; pairs (p,) with cosine >= thresholds[key]
        ...

The exact search multiplies every query with every key, a bounded number of scores at a time. On a CPU that reads all keys for every
token, so above `MANY` keys an inverted file of faiss looks only into the `PROBES` cells next to the query, where faiss is installed
(extra `ann`). It finds nearly all, not all (benchmarks/gate_cost.py measures how many), and which it misses depends on the other
keys; without faiss, and on other devices, where one product is fast, the search stays exact.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from math import isqrt
from typing import Any, Protocol

import torch
from torch import Tensor

BOUND = 1 << 23  # scores laid out at once (32 MB in float32)
MANY = 20_000
PROBES = 64  # of 16 and 64, the ones that miss fewer than one edit in a hundred at 100,000 keys
ROUNDING = 1e-4  # what faiss finds is searched for with this much to spare and checked exactly

Pairs = tuple[Tensor, Tensor]  # (p,) queries and (p,) keys, int64


class Search(Protocol):
    def above(self, queries: Tensor) -> Iterator[Pairs]:
        """queries (q, d) float32 unit vectors. All pairs whose cosine reaches the key's threshold, in portions of bounded size."""
        ...


@dataclass(frozen=True, eq=False)
class Exact:
    """keys (g, d) float32 unit vectors, thresholds (g,)."""

    keys: Tensor
    thresholds: Tensor

    def above(self, queries: Tensor) -> Iterator[Pairs]:
        if not len(self.keys):
            return
        step = max(1, BOUND // len(self.keys))
        for start in range(0, len(queries), step):
            near = queries[start : start + step] @ self.keys.T
            query, key = (near >= self.thresholds).nonzero(as_tuple=True)
            yield query + start, key


class Approximate:
    """The same through faiss's inverted file: k-means cells (4 sqrt(g) of them, seed 0), of which the nearest are read."""

    def __init__(self, keys: Tensor, thresholds: Tensor):
        import faiss

        count, width = keys.shape
        self.keys = keys
        self.thresholds = thresholds
        self.lowest = float(thresholds.min()) - ROUNDING
        self.index: Any = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(width), width, 4 * isqrt(count), faiss.METRIC_INNER_PRODUCT
        )
        self.index.cp.seed, self.index.cp.niter = 0, 5
        self.index.cp.min_points_per_centroid = 1  # below 39 faiss warns; cells of a dozen keys are what is wanted
        self.index.train(keys.numpy())
        self.index.add(keys.numpy())
        self.index.nprobe = PROBES

    def above(self, queries: Tensor) -> Iterator[Pairs]:
        step = max(1, BOUND // len(self.keys))
        for start in range(0, len(queries), step):
            some = queries[start : start + step].contiguous()
            limits, _, found = self.index.range_search(some.numpy(), self.lowest)
            counts = torch.from_numpy(limits.astype("int64")).diff()
            query, key = torch.arange(len(some)).repeat_interleave(counts), torch.from_numpy(found)
            for q, k in zip(query.split(1 << 12), key.split(1 << 12)):
                exact = (some[q] * self.keys[k]).sum(1) >= self.thresholds[k]
                yield q[exact] + start, k[exact]


def search(keys: Tensor, thresholds: Tensor) -> Search:
    """The search that suits this many keys on their device."""
    if len(keys) > MANY and keys.device.type == "cpu" and find_spec("faiss") is not None:
        return Approximate(keys, thresholds)
    return Exact(keys, thresholds)
