"""How quality falls with the number of patches: 1 to 300 edits of Atlas, each made alone, put together in nine ways.

    python benchmarks/quality_curve.py [--sizes 1 3 10] [--seeds 1] [--tries 2] [--work FOLDER]

    gated, joint, sum   the install modes of kedit_hub
    joint-contexts      the joint solve with a row for every context of a key in place of their mean (rows="contexts")
    sequential          edit after edit written into the weights, each measured on what the ones before left, no history kept
    cat                 every patch as a LoRA of its own, the LoRAs side by side (PEFT's `cat`): their sum, scaled
    ties, dare-linear, dare-ties   the same LoRAs merged by PEFT's own functions, of the whole changes and of full rank (its
                        `ties_svd`, `dare_linear_svd` and `dare_ties_svd` where nothing is cut off)

Every way has one knob with eight tries, tuned by H4 under teacher forcing on stacks of dev edits of the nearest of four sizes; what is
reported are stacks of test edits, other subjects, asked once. A seed is which edits, in which order; stacks are its beginnings and, of
small ones, the next so many. Of a stack of more than ASKED edits that many are asked, evenly spaced. Made patches and finished cells are
kept in the work folder, so that an interrupted run of the same file goes on; the table is written anew after every cell.
"""

import argparse
import copy
import io
import json
import math
import random
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import torch
from common import COLUMNS, RESULTS, Report, quiet, row, timed

import kedit_hub
from kedit_hub.api import load_model
from kedit_hub.base.families import dense_weight
from kedit_hub.base.profile import GateSettings
from kedit_hub.editors.editor import make_patch
from kedit_hub.evaluate.metrics import harmonic_mean
from kedit_hub.evaluate.report import plots
from kedit_hub.evaluate.report.alone import standing_alone
from kedit_hub.patch import Patch
from kedit_hub.stack.settings import StackSettings
from kedit_hub.stack.solve import balanced_lambda, prepare, solve

SIZES = (1, 3, 10, 30, 100, 300)
TUNED = {1: 12, 5: 6, 30: 2, 150: 1}  # dev stacks of this many edits: how many of them
ASKED = 60
REPEATED = 30  # small stacks are repeated until a seed has made this many edits
GENERATED = 100  # the largest stack that is asked to generate too
KNOBS = {
    "gated": [
        (s, a)
        for s, a in ((0.5, 0.4), (0.6, 0.3), (0.6, 0.4), (0.6, 0.5), (0.7, 0.4), (0.7, 0.5), (0.8, 0.4), (0.8, 0.5))
    ],
    "joint": [0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.5],
    "joint-contexts": [0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.5],
    "sum": [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99],
    "sequential": [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99],
    "cat": [0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 1.25],  # weight of every LoRA
    "ties": list(product((0.1, 0.3), (1.0, 2.0, 5.0, 15.0))),  # density, weight
    "dare-linear": list(product((0.5, 0.9), (0.3, 0.5, 0.7, 1.0))),
    "dare-ties": list(product((0.5, 0.9), (1.0, 2.0, 5.0, 15.0))),
}
SHOWN = (*COLUMNS[:4], "H4")


# -- putting patches together ------------------------------------------------------------------------------------------


class Rewritten:
    """The base with another weight in one module; `disabled` puts the old one back, so that it is measured as a patched model is."""

    def __init__(self, model, tokenizer, path, change, edits):
        self.model, self.tokenizer, self.stack = copy.deepcopy(model), tokenizer, SimpleNamespace(edits=edits)
        self.weight = dense_weight(self.model.get_submodule(path))
        self.plain = self.weight.detach().clone()
        self.changed = (self.plain + change).to(self.plain.dtype)
        self._put(self.changed)

    def _put(self, weight) -> None:
        with torch.no_grad():
            self.weight.copy_(weight)

    @contextmanager
    def disabled(self):
        self._put(self.plain)
        try:
            yield self
        finally:
            self._put(self.changed)


def alone(patch, profile) -> tuple[torch.Tensor, torch.Tensor]:
    """The patch as the LoRA its author would export: B (m, r), A (r, d), fitted to `alone_fit`."""
    delta = patch.deltas[profile.module]
    normal = prepare(delta.keys.T, delta.residuals.T, profile.second_moment)
    solution = solve(normal, balanced_lambda(normal, profile.settings.alone_fit))
    return solution.y.float(), solution.u.T.float()


def merged(way, knob, loras) -> torch.Tensor:
    """(m, d): the LoRAs as one change of the weight, by PEFT's functions; DARE draws. A lone one is only weighted, as PEFT does."""
    from peft.utils import merge_utils

    density, weight = (1.0, knob) if way == "cat" else knob
    changes = [b @ a for b, a in loras]
    weights = torch.full((len(changes),), weight)
    if way == "cat" or len(changes) == 1:
        return merge_utils.task_arithmetic(changes, weights)
    return getattr(merge_utils, way.replace("-", "_"))(changes, weights, density)


def against_peft(model, tokenizer, profile, patches) -> float:
    """Largest difference between `merged` and PEFT's own add_weighted_adapter on the exported LoRAs, relative to the largest entry."""
    from peft import PeftModel

    adapters = [f"a{number}" for number in range(len(patches))]
    with tempfile.TemporaryDirectory() as folder:
        for name, patch in zip(adapters, patches):
            pm = kedit_hub.apply([patch], model, tokenizer=tokenizer, mode="sum", profile=profile)
            kedit_hub.export(pm, Path(folder) / name)
        wrapped = PeftModel.from_pretrained(copy.deepcopy(model), Path(folder) / adapters[0], adapters[0])
        for name in adapters[1:]:
            wrapped.load_adapter(Path(folder) / name, name)
    layer = wrapped.base_model.model.get_submodule(profile.module)
    loras, rank = [alone(patch, profile) for patch in patches], min(layer.weight.shape)
    torch.manual_seed(0)
    wrapped.add_weighted_adapter(adapters, [1.0] * len(adapters), "svd", "svd", svd_rank=rank)
    drawn, worst = torch.get_rng_state(), 0.0  # PEFT draws initial values first, for this rank these
    for way, knob in (("cat", 0.7), ("ties", (0.3, 2.0)), ("dare-linear", (0.5, 0.7)), ("dare-ties", (0.5, 2.0))):
        density, weight = (None, knob) if way == "cat" else knob
        kind = way if way == "cat" else f"{way.replace('-', '_')}_svd"
        torch.manual_seed(0)
        wrapped.add_weighted_adapter(adapters, [weight] * len(adapters), way, kind, svd_rank=rank, density=density)
        torch.set_rng_state(drawn)
        theirs, ours = layer.get_delta_weight(way), merged(way, knob, loras)
        worst = max(worst, ((theirs - ours).abs().max() / ours.abs().max()).item())
    return worst


def sequence(model, tokenizer, edits, profile, sizes) -> dict[int, torch.Tensor]:
    """The changes (m, d) that sequential editing has left after each of `sizes` edits."""
    edited = copy.deepcopy(model)
    weight = dense_weight(edited.get_submodule(profile.module))
    plain, left = weight.detach().clone(), {}
    for number, edit in enumerate(edits[: max(sizes)], 1):
        try:
            patch = make_patch(edited, tokenizer, [edit], profile, base=("sequential", None), progress=False)
        except kedit_hub.KeditError:
            pass  # its value fails on what is left of the model: the weights stay, and the edit is asked all the same
        else:
            b, a = alone(patch, profile)
            with torch.no_grad():
                weight.add_(b @ a)
        if number in sizes:
            left[number] = weight.detach() - plain
    return left


class Ways:
    """All ways of one base. made: by edit id, its patch, or None where its value failed."""

    def __init__(self, model, tokenizer, profile, made):
        self.model, self.tokenizer, self.profile, self.made = model, tokenizer, profile, made
        self.loras = {name: alone(patch, profile) for name, patch in made.items() if patch is not None}
        self.left = {}  # sequential editing: by its edits and knob, the changes by size

    def put(self, way, knob, edits, sizes):
        """The model that answers with `edits`; sizes: what else will be asked of the same sequence."""
        profile, patches = self.profile, [p for e in edits if (p := self.made[e.id]) is not None]
        if way in ("gated", "joint", "joint-contexts", "sum"):
            settings = StackSettings(
                mode=way.partition("-")[0], rows="contexts" if way == "joint-contexts" else "means"
            )
            if way == "gated":
                profile = profile.replace(gate=GateSettings(subject=knob[0], answer=knob[1]))
            else:
                profile = profile.replace(**{"alone_fit" if way == "sum" else "drift_budget": knob})
            return kedit_hub.apply(
                patches, self.model, tokenizer=self.tokenizer, settings=settings, profile=profile, conflicts="latest"
            )
        if way == "sequential":
            change = self._left(edits, knob, sizes)
        else:
            torch.manual_seed(0)
            change = merged(way, knob, [self.loras[e.id] for e in edits if e.id in self.loras])
        return Rewritten(self.model, self.tokenizer, profile.module, change, edits)

    def _left(self, edits, knob, sizes) -> torch.Tensor:
        key = (edits[0].id, knob)
        if len(edits) not in self.left.get(key, {}):
            everything, profile = sizes[max(sizes)], self.profile.replace(alone_fit=knob)
            assert everything[: len(edits)] == edits
            self.left = {key: sequence(self.model, self.tokenizer, everything, profile, list(sizes))}
        return self.left[key][len(edits)]


# -- asking ------------------------------------------------------------------------------------------------------------


def some(edits) -> list:
    """At most ASKED of them, evenly spaced from the first made on, without the probes that no column shows."""
    chosen = edits if len(edits) <= ASKED else [edits[number * len(edits) // ASKED] for number in range(ASKED)]
    kept = ("neighbour", "same_subject", "unrelated")
    return [replace(e, portability=(), locality=tuple(p for p in e.locality if p.kind in kept)) for e in chosen]


def h4(ways, way, knob, stacks) -> float:
    """Of the mean columns over dev stacks, under teacher forcing."""
    lines = []
    for edits in stacks:
        scores = kedit_hub.evaluate(
            ways.put(way, knob, edits, {len(edits): edits}), some(edits), protocols=("tf-token",), drift_texts=[]
        )
        lines.append(row(scores, "tf-token"))
    return averaged(lines)[-1]


def averaged(lines) -> list[float | None]:
    """SHOWN over the stacks of one cell: the mean of each column, and the harmonic mean of these."""
    columns = list(zip(*lines))[:4]
    means = [statistics.fmean(known) if (known := [v for v in c if v is not None]) else None for c in columns]
    return [*means, harmonic_mean([value for value in means if value is not None])]


def cell_of(ways, way, knob, stacks, same, texts) -> dict:
    """What is reported of one cell. same: beginnings of the first stack that sequential editing passes on the way."""
    protocols = ("tf-token", "generate") if len(stacks[0]) <= GENERATED else ("tf-token",)
    sheets, kl, ppl = {protocol: [] for protocol in protocols}, [], []
    for number, edits in enumerate(stacks):
        model = ways.put(way, knob, edits, same if number == 0 else {len(edits): edits})
        scores = kedit_hub.evaluate(
            model, some(edits), protocols=protocols, drift_texts=texts[: len(texts) // len(stacks)]
        )
        for protocol in protocols:
            sheets[protocol].append(row(scores, protocol))
        kl.append(scores.drift["kl"])
        ppl.append(scores.drift["ppl_after"] / scores.drift["ppl_before"])
    means = {protocol: averaged(lines) for protocol, lines in sheets.items()}
    return means | {"kl": statistics.fmean(kl), "ppl": statistics.fmean(ppl)}


def made_alone(model, tokenizer, edits, profile, folder) -> dict[str, Patch | None]:
    """By edit id; kept in the folder."""
    made: dict[str, Patch | None] = {}
    for number, edit in enumerate(edits, 1):
        path, failed = folder / edit.id, folder / f"{edit.id}.failed"
        if path.is_dir() or failed.exists():
            made[edit.id] = None if failed.exists() else Patch.load(path)
            continue
        try:
            made[edit.id] = kedit_hub.edit(model, [edit], tokenizer=tokenizer, profile=profile, progress=False)
            made[edit.id].save(path)
        except kedit_hub.KeditError:
            made[edit.id] = None
            failed.touch()
        if number % 40 == 0:
            print(f"made {number} of {len(edits)}", flush=True)
    return made


class Cells:
    """Finished cells by key, one JSON line each."""

    def __init__(self, path):
        self.path, self.found = path, {}
        if path.exists():
            for line in path.read_text().splitlines():
                cell = json.loads(line)
                self.found[cell["key"]] = cell["value"]

    def get(self, key: Sequence, measure):
        name = " ".join(map(str, key))
        if name not in self.found:
            with timed() as seconds:
                self.found[name] = measure()
                took = seconds()
            with self.path.open("a") as out:
                out.write(json.dumps({"key": name, "value": self.found[name]}) + "\n")
            print(f"{name}: {took:.1f} s", flush=True)
        return self.found[name]


# -- telling -----------------------------------------------------------------------------------------------------------


def nearest(n, sizes) -> int:
    """The one of `sizes` that is the smallest factor away from n."""
    return min(sizes, key=lambda size: abs(math.log(size / n)))


def spread(values) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{statistics.fmean(known):.3f}" + (f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else "")


def write(found, sizes, ways, tuned, arguments, made, gap) -> None:
    """The table and the plots of what has been measured so far."""
    report = Report("quality_curve", "Quality against the number of patches, each made alone on Atlas")
    report.say(
        f"\n{arguments.seeds} seed(s); {sum(patch is None for patch in made.values())} of {len(made)} values fail and count as "
        f"wrong; at most {ASKED} edits of a stack are "
        f"asked; H4 is the harmonic mean of the columns before it; mean ± sd over seeds; a seed of a small stack is the mean of "
        f"as many stacks as {REPEATED} edits make. KL and perplexity (as a ratio to the base's) on texts of the world."
    )
    report.say(
        f"\nThe merges against PEFT's add_weighted_adapter on three exported patches: largest difference {gap:.1e} of the largest entry."
    )
    report.say("\nKnobs, tuned on dev stacks: " + "; ".join(f"{w} {k}" for w, k in tuned.items()))
    for protocol in ("tf-token", "generate"):
        rows = []
        for n, way in product(sizes, ways):
            cells = [found[key] for s in range(arguments.seeds) if (key := (way, n, s)) in found]
            lines = [cell[protocol] for cell in cells if cell.get(protocol)]
            if lines:
                columns = [spread(column) for column in zip(*lines)]
                rows.append([n, way, *columns, *(spread([c[name] for c in cells]) for name in ("kl", "ppl"))])
        report.say(f"\n{protocol}:")
        report.table(["patches", "way", *SHOWN, "KL", "ppl ratio"], rows)
    report.save()
    curves = (
        ("h4", "H4 under teacher forcing", lambda cell: cell["tf-token"][-1], "share"),
        ("kl", "KL to the base on text", lambda cell: cell["kl"], "ratio"),
    )
    for name, title, read, unit in curves:
        series = []
        for colour, way in enumerate(ways):
            points = []
            for n in sizes:
                values = [read(found[key]) for s in range(arguments.seeds) if (key := (way, n, s)) in found]
                if values:
                    mean, sd = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
                    points.append(plots.Point(n, mean, max(mean - sd, 0.0), mean + sd))
            if points:
                series.append(plots.Series(way, colour, tuple(points)))
        if series:
            svg = plots.lines(title, series, unit=unit, named="patches")
            (RESULTS / f"quality_curve_{name}.svg").write_text(standing_alone(svg))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tries", type=int, default=8)
    parser.add_argument("--ways", nargs="+", default=list(KNOBS), choices=list(KNOBS))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "kedit-quality-curve")
    arguments = parser.parse_args()
    quiet()
    model, tokenizer = load_model("kedit-hub/atlas-llama")
    profile = kedit_hub.demo.profile("llama")
    folder = arguments.work / profile.id[:16]
    folder.mkdir(parents=True, exist_ok=True)
    dev, test = kedit_hub.demo.edits("dev"), kedit_hub.demo.edits("test")
    groups = {n: count for n, count in TUNED.items() if n <= 2 * max(arguments.sizes)}
    orders = [
        random.Random(seed).sample(test, len(test))[: max(*arguments.sizes, REPEATED)]
        for seed in range(arguments.seeds)
    ]
    shuffled = random.Random(0).sample(dev, len(dev))
    wanted = {e.id: e for e in [*shuffled[: max(n * c for n, c in groups.items())], *(e for o in orders for e in o)]}
    made = made_alone(model, tokenizer, list(wanted.values()), profile, folder)
    version = sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    cells, ways = Cells(folder / f"cells-{version}.jsonl"), Ways(model, tokenizer, profile, made)
    texts = kedit_hub.demo.texts("drift")[:200]
    gap = against_peft(model, tokenizer, profile, [patch for patch in made.values() if patch is not None][:3])
    if gap > 1e-4:
        raise SystemExit(f"the merges are not PEFT's: they differ by {gap:.1e} of the largest entry")

    tuned: dict[str, dict[int, object]] = {}
    for way in arguments.ways:
        tuned[way] = {}
        for n, count in groups.items():
            stacks = [shuffled[n * number : n * (number + 1)] for number in range(count)]
            tried = [
                (
                    cells.get(
                        ("tune", way, n, knob), lambda way=way, knob=knob, stacks=stacks: h4(ways, way, knob, stacks)
                    ),
                    knob,
                )
                for knob in KNOBS[way][: arguments.tries]
            ]
            tuned[way][n] = max(tried)[1]

    found = {}
    for seed, way in product(range(arguments.seeds), arguments.ways):
        for n in arguments.sizes:
            at = nearest(n, groups)
            knob = tuned[way][at]
            same = {m: orders[seed][:m] for m in arguments.sizes if nearest(m, groups) == at}

            stacks = [orders[seed][at : at + n] for at in range(0, max(n, REPEATED // n * n), n)]

            def measure(way=way, knob=knob, stacks=stacks, same=same):
                return cell_of(ways, way, knob, stacks, same, texts)

            found[way, n, seed] = cells.get(("test", way, n, f"seed{seed}", knob), measure)
            with redirect_stdout(io.StringIO()):
                write(found, arguments.sizes, arguments.ways, tuned, arguments, made, gap)
    write(found, arguments.sizes, arguments.ways, tuned, arguments, made, gap)


if __name__ == "__main__":
    main()
