"""What a joint solve costs: time and memory by the number of rows, with whitened keys at hand and without, at three sizes of a map.

    python benchmarks/solve.py                                   # all; hours at the largest, see --sizes and --rows
    python benchmarks/solve.py --sizes atlas gpt2-xl --rows 100 1000

Keys are random with the power-law spectrum that inputs of MLP maps have (eigenvalues ~ rank^-1), residuals are random, and the budget
is a fixed share of what the rows would cost one by one. Every case runs in a process of its own, so its peak memory is its own;
making the problem is not timed. One row per edit; an answer of t tokens has t rows.
"""

import argparse
import math
import multiprocessing
import resource
import time
from pathlib import Path

import torch
from common import RESULTS, Report, timed
from torch import Tensor

from kedit_hub.stack.preconditioner import ridge
from kedit_hub.stack.solve import agrees, prepare, prepare_whitened, within_budget

SIZES = {"atlas": (256, 704), "gpt2-xl": (1600, 6400), "llama3-8b": (4096, 14336)}  # (m, d)
ROWS = (100, 1000, 10_000)
DECAY = 1.0  # eigenvalue of rank i ~ i^-DECAY
SHARE = 0.3  # of what the rows cost one by one: the budget


def problem(m: int, d: int, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """keys (d, n), residuals (m, n), second moment (d, d), whitened keys (d, n), float32; C0 = H diag(s) H, H a reflection."""
    g = torch.Generator().manual_seed(seed)
    s = torch.arange(1, d + 1, dtype=torch.float64) ** -DECAY
    v = torch.nn.functional.normalize(torch.randn(d, generator=g, dtype=torch.float64), dim=0)
    w = s * v  # H diag(s) H = diag(s) - 2 v w^T - 2 w v^T + 4 (v . w) v v^T, with H = I - 2 v v^T
    a = (w - (v @ w) * v).float()
    c0 = torch.diag(s.float()).addr_(v.float(), a, alpha=-2).addr_(a, v.float(), alpha=-2)
    white = torch.randn(d, n, generator=g)
    keys = reflected(s.sqrt()[:, None] * white, v)
    whitened = reflected(reflected(keys, v) / (s + ridge(c0))[:, None], v)
    return keys.float(), torch.randn(m, n, generator=g), c0, whitened.float()


def reflected(x: Tensor, v: Tensor) -> Tensor:
    return x - 2 * torch.outer(v, v @ x)


def case(arguments: tuple[str, int, bool, int]) -> list[float | None]:
    """Seconds to check, to prepare and to solve, and of CPU for all of it; rows met; GiB at the peak, and of the problem itself."""
    size, n, known, threads = arguments
    torch.set_num_threads(threads)
    keys, residuals, c0, whitened = problem(*SIZES[size], n, seed=0)
    before, start = peak(), time.process_time()
    check = None
    if known:
        with timed() as clock:
            assert agrees(keys, whitened, c0, seed=0)
            check = clock()
        with timed() as clock:
            normal = prepare_whitened(keys, residuals, whitened, ridge(c0))
            ready = clock()
    else:
        with timed() as clock:
            normal = prepare(keys, residuals, c0)
            ready = clock()
    budget = SHARE * n / normal.own().median().item() * (residuals.double().square().sum(0).mean().item())
    with timed() as clock:
        solution = within_budget(normal, budget)
        solved = clock()
    cpu = time.process_time() - start
    assert solution.energy <= budget
    return [check, ready, solved, (check or 0.0) + ready + solved, cpu, solution.fit.mean().item(), peak(), before]


def peak() -> float:
    """GiB of resident memory at its highest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def plot(times: dict[str, list[tuple[int, float]]]) -> str:
    """Seconds over rows, both logarithmic, as a small SVG."""
    points = [point for line in times.values() for point in line]
    low_x, high_x = math.log10(min(n for n, _ in points)), math.log10(max(n for n, _ in points))
    low_y = math.floor(math.log10(min(t for _, t in points)))
    high_y = math.ceil(math.log10(max(t for _, t in points)))

    def place(n: float, seconds: float) -> str:
        x = 60 + 380 * (math.log10(n) - low_x) / max(high_x - low_x, 1.0)
        return f"{x:.1f},{300 - 270 * (math.log10(seconds) - low_y) / max(high_y - low_y, 1):.1f}"

    colours = ("#1b6ca8", "#1b6ca8", "#b2521c", "#b2521c", "#2f7d4f", "#2f7d4f")
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 350" font-family="sans-serif" font-size="12">',
        "<title>Seconds of a joint solve by number of rows</title>",
        '<rect width="640" height="350" fill="white"/>',
    ]
    for power in range(low_y, high_y + 1):
        y = place(10**low_x, 10.0**power).split(",")[1]
        parts.append(
            f'<path d="M60,{y}H440" stroke="#ddd"/><text x="52" y="{float(y) + 4}" text-anchor="end">{10.0**power:g} s</text>'
        )
    for n in sorted({n for n, _ in points}):
        parts.append(f'<text x="{place(n, 10.0**low_y).split(",")[0]}" y="320" text-anchor="middle">{n:,}</text>')
    parts.append('<text x="250" y="342" text-anchor="middle">rows</text>')
    for number, (name, line) in enumerate(times.items()):
        colour, dashed = colours[number % len(colours)], ' stroke-dasharray="5 4"' if "C0" in name else ""
        route = " ".join(place(n, t) for n, t in line)
        parts.append(f'<polyline points="{route}" fill="none" stroke="{colour}" stroke-width="2"{dashed}/>')
        y = 40 + 20 * number
        parts.append(
            f'<path d="M460,{y}h24" stroke="{colour}" stroke-width="2"{dashed}/><text x="490" y="{y + 4}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="solve", help="of the files in the results folder")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    report = Report(given.name, "The cost of a joint solve")
    report.say(
        f"Random keys with eigenvalues ~ rank^-{DECAY:g}; a budget of {SHARE:g} of what the rows cost one by one; float64."
    )
    spawn = multiprocessing.get_context("spawn")
    rows, times = [], {}
    for size in given.sizes:
        for known in (True, False):
            line: list[tuple[int, float]] = []
            for n in given.rows:
                with spawn.Pool(1) as pool:
                    found = pool.apply(case, ((size, n, known, given.threads),))
                total = found[4]
                growth = math.log(total / line[-1][1]) / math.log(n / line[-1][0]) if line else None
                line.append((n, total))
                how = "whitened keys" if known else "C0"
                rows.append([f"{size} {SIZES[size]}", how, f"{n:,}", *found, growth])
                print(*rows[-1], flush=True)
            times[f"{size}, {'whitened' if known else 'C0'}"] = line
    report.table(
        [
            "map (m, d)",
            "from",
            "rows",
            "check s",
            "prepare s",
            "solve s",
            "total s",
            "CPU s",
            "mean fit",
            "peak GiB",
            "of it the problem",
            "growth",
        ],
        rows,
    )
    report.say(
        "growth: exponent of the CPU seconds between this number of rows and the one before. More rows than d are merged into d."
    )
    report.say(f"![seconds by rows]({given.name}.svg)")
    report.save()
    (Path(RESULTS) / f"{given.name}.svg").write_text(plot(times))


if __name__ == "__main__":
    main()
