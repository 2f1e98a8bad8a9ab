"""What the artifact itself costs: hashing, loading, bytes per edit of every kind, and what half precision changes.

    python benchmarks/artifact.py

Times are medians over repeats. The numbers of a patch of one edit are random where the model is too large to be at hand: bytes depend on
sizes alone.
"""

import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from common import Report, quiet
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor, nn

import kedit_hub
from kedit_hub import Edit, Patch, demo
from kedit_hub.api import EMBEDDED, load_model
from kedit_hub.base.tokens import encode
from kedit_hub.limits import DEFAULT
from kedit_hub.patch import Associative, BaseRef, Codebook, Delta, Dense, Facts, LowRank, Neurons, Sparse
from kedit_hub.patch.deltas import from_tensors
from kedit_hub.patch.fingerprint import fingerprint
from kedit_hub.patch.manifest import Manifest
from kedit_hub.patch.patch import CONFIG, TENSORS
from kedit_hub.patch.safefile import read_file, read_header, tensor_digest
from kedit_hub.patch.signature import check_files, sign

HERE = Path(__file__).parent.parent / "patches"
REPEATS = 5
MB, GB = 10**6, 10**9


def costs(calls: Mapping[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, tuple[float, float]]:
    """(CPU, wall-clock) seconds of every call, medians of `repeats`; the calls take turns, so that a busy machine is fair."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            cpu, wall = time.process_time(), time.perf_counter()
            call()
            spent[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {name: tuple(map(statistics.median, zip(*runs))) for name, runs in spent.items()}


def cost(call: Callable[[], Any], repeats: int = REPEATS) -> tuple[float, float]:
    """`costs` of one call."""
    return costs({"": call}, repeats)[""]


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


# --- models whose sizes are real and whose numbers are random -----------------------------------------------------


class Base:
    """The edited map (m, d) of a model, and the bytes of a full copy of that model. `layers`: path of its blocks."""

    def __init__(self, name: str, m: int, d: int, copy_bytes: int, model_type: str, path: str, gate: str):
        self.name, self.m, self.d, self.copy_bytes = name, m, d, copy_bytes
        self.model_type, self.path, self.gate = model_type, path, gate

    def ref(self) -> BaseRef:
        """Fingerprints of two random maps of the right size: they take the same bytes as those of the real ones."""
        torch.manual_seed(0)
        prints = {path: fingerprint(nn.Linear(self.d, self.m, bias=False)) for path in (self.path, self.gate)}
        return BaseRef(id="owner/model", revision="0" * 40, model_type=self.model_type, fingerprint=prints)


def bases() -> list[Base]:
    """Copies at two bytes a parameter, as GPT-2-XL (1,557,611,200) and Llama-3-8B (8,030,261,248) are usually kept."""
    atlas = demo.profile("llama")
    m = load_model("kedit-hub/atlas-llama")[0].get_submodule(atlas.module).out_features
    weights = (demo.model_path("llama") / "model.safetensors").stat().st_size
    llama, gpt2 = "model.layers.{}.mlp.down_proj", "transformer.h.{}.mlp.c_proj"
    d = len(atlas.second_moment)
    return [
        Base("Atlas", m, d, weights, "llama", atlas.module, atlas.gate_module),
        Base("GPT-2-XL", 1600, 6400, 2 * 1_557_611_200, "gpt2", gpt2.format(17), gpt2.format(5)),
        Base("Llama-3-8B", 4096, 14336, 2 * 8_030_261_248, "llama", llama.format(5), llama.format(1)),
    ]


CONTEXTS, ROWS = 5, 2  # bare prompt and four sentences before it; a one-token answer and the token that ends it
MENTIONS = 2 * (CONTEXTS - 1) + 1  # the subject alone, after every sentence, after half of every sentence


def associative(base: Base, edits: int, **more: Any) -> Associative:
    """Random rows in the numbers in which the editors store them for one-token answers without paraphrases."""
    n, k, g = edits * ROWS, edits * ROWS * CONTEXTS, edits * (CONTEXTS + MENTIONS)
    return Associative(
        keys=torch.randn(n, base.d),
        residuals=torch.randn(n, base.m),
        base_outputs=torch.randn(n, base.m),
        edit_index=torch.arange(edits).repeat_interleave(ROWS),
        context_keys=torch.randn(k, base.d),
        context_row=torch.arange(n).repeat_interleave(CONTEXTS),
        gate_keys=torch.randn(g, base.d),
        gate_edit=torch.arange(edits).repeat_interleave(CONTEXTS + MENTIONS),
        site="answer",
        gate_module=base.gate,
        **more,
    )


def portable(rows: Associative) -> Associative:
    return replace(rows, whitened_keys=2.0 * rows.keys)  # any positive definite matrix gives the same number of bytes


def sparse(base: Base, density: float) -> Sparse:
    count = int(base.m * base.d * density)
    positions = torch.randperm(base.m * base.d)[:count].sort().values
    return Sparse(positions, (0.5 + torch.rand(count)).half(), (base.m, base.d))


def kinds(base: Base) -> dict[str, Delta]:
    """One edit of every kind at the size of this base."""
    rows, size, gated = associative(base, 1), (base.m, base.d), base.model_type == "llama"
    neuron = {"multipliers": torch.randn(1, base.m), "activation": "silu"} if gated else {"activation": "gelu_tanh"}
    first = base.path.replace("down_proj", "up_proj").replace("c_proj", "c_fc")
    return {
        "associative F32": rows,
        "associative F32, portable": portable(rows),
        "associative f16": rows.halved(),
        "associative f16, portable": portable(rows.halved()),
        "low rank 1, F32": LowRank(torch.randn(1, base.d), torch.randn(base.m, 1)),
        "dense F16": Dense(torch.randn(base.m, base.d).half()),
        "sparse 1 %, F16": sparse(base, 0.01),
        "neurons, one, F32": Neurons(
            torch.randn(1, base.m), torch.randn(1), torch.randn(1, base.m), size, input_module=first, **neuron
        ),
        "codebook, one entry": Codebook(
            torch.randn(1, base.d), torch.randn(1, base.m), torch.ones(1), torch.zeros(1, dtype=torch.long)
        ),
        "facts, lexical": Facts(torch.zeros(1, dtype=torch.long), size, threshold=0.75),
    }


def request(number: int = 0) -> Edit:
    return Edit(f"The mother tongue of Danielle Darrieux ({number}) is", "English", "Danielle Darrieux", "French")


def patch_of(base: Base, ref: BaseRef, delta: Delta, edits: int = 1) -> Patch:
    return Patch.create(
        deltas={base.path: delta},
        edits=[request(number) for number in range(edits)],
        base=ref,
        method="memit",
        profile_id="0" * 64,
    )


# --- a: hashing and loading ---------------------------------------------------------------------------------------


def hashing(report: Report) -> None:
    report.say("## Digest of one tensor (sha256 over its bytes)")
    rows = []
    for megabytes in (1, 10, 100, 1000):
        tensor = torch.randn(megabytes * MB // 4)
        cpu, _ = cost(lambda tensor=tensor: tensor_digest("module/tensor", tensor))
        rows.append([f"{megabytes} MB", ms(cpu), f"{tensor.nbytes / cpu / GB:.2f}"])
    report.table(["tensor", "CPU ms", "GB/s"], rows)


def steps(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What Patch.load does, one call each, on the same bytes."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest = Manifest.parse(files[CONFIG])
    tensors = safetensors.torch.load(files[TENSORS])
    patch = Patch.load(folder)
    count = len(manifest.edits)

    def scan() -> None:
        for tensor in tensors.values():
            if tensor.is_floating_point():
                torch.isfinite(tensor).all()

    def build() -> None:
        for path, entry in manifest.modules.items():
            own = {name: tensors[f"{path}/{name}"] for name in entry.tensors}
            from_tensors(entry.kind, own, entry.meta(), path, entry.shape)

    yield "read files", lambda: [read_file(folder / name, DEFAULT.max_tensor_bytes) for name in files]
    yield "signature: verify, hash files", lambda: check_files(files)
    yield "manifest: parse, identity", lambda: Manifest.parse(files[CONFIG])
    yield "tensor header pass", lambda: read_header(files[TENSORS], TENSORS)
    yield "copy tensors out", lambda: safetensors.torch.load(files[TENSORS])
    yield "NaN scan", scan
    yield "build deltas (decode f16)", build
    yield "validate deltas", lambda: [delta.validate(count) for delta in patch.deltas.values()]
    yield "digests of tensors", patch.verify
    yield "whole Patch.load", lambda: Patch.load(folder)


def loading(report: Report, folder: Path) -> None:
    report.say("## Patch.load of about 100 MB, step by step (CPU ms)")
    base = bases()[-1]
    ref = base.ref()
    few, many = associative(base, 64), associative(base, 128).halved()
    made = {
        "associative F32": patch_of(base, ref, few, 64),
        "associative f16": patch_of(base, ref, many, 128),
        "dense F16": patch_of(base, ref, Dense(torch.randn(base.m, base.d).half())),
    }
    made["dense F16, signed"] = sign(made["dense F16"], Ed25519PrivateKey.generate())
    columns: dict[str, dict[str, str]] = {}
    for name, patch in made.items():
        patch.save(folder / "patch")
        size = sum(path.stat().st_size for path in (folder / "patch").iterdir())
        columns[name] = {"size": f"{size / MB:.0f} MB"}
        for step, call in steps(folder / "patch"):
            cpu, wall = cost(call)
            columns[name][step] = ms(cpu)
        columns[name]["MB/s, CPU"] = f"{size / cpu / MB:.0f}"
        columns[name]["MB/s, wall-clock"] = f"{size / wall / MB:.0f}"
        shutil.rmtree(folder / "patch")
    lines = next(iter(columns.values()))
    report.table(["", *columns], [[line, *(column[line] for column in columns.values())] for line in lines])


# --- b: many small patches ----------------------------------------------------------------------------------------


def singles(count: int) -> Iterator[Patch]:
    """Patches of one edit each: the fifty facts taken apart, again and again under other ids."""
    whole = Patch.load(HERE / "fifty-facts")
    (path, delta), evals = next(iter(whole.deltas.items())), whole.evals or {}
    for number in range(count):
        i = number % len(whole.edits)
        row, heard = (delta.edit_index == i).nonzero()[:, 0], delta.gate_edit == i
        said = (delta.context_row[:, None] == row).any(1)
        own = replace(
            delta,
            keys=delta.keys[row],
            residuals=delta.residuals[row],
            base_outputs=delta.base_outputs[row],
            edit_index=torch.zeros(len(row), dtype=torch.long),
            context_keys=delta.context_keys[said],
            context_row=delta.context_row[said] - row[0],
            gate_keys=delta.gate_keys[heard],
            gate_edit=torch.zeros(int(heard.sum()), dtype=torch.long),
        )
        patch = Patch.create(
            deltas={path: own},
            edits=[replace(whole.edits[i], id=f"edit-{number}")],
            base=whole.manifest.base,
            method=whole.manifest.method,
            settings=whole.manifest.settings,
            profile_id=whole.manifest.profile_id,
        )
        yield patch.replace_evals({"protocols": evals["protocols"], "per_edit": evals["per_edit"][i : i + 1]})


def many(report: Report, folder: Path) -> Path:
    report.say("## Patches of one edit from disk (Patch.load of each; again: Patch.verify of what is in memory)")
    key = Ed25519PrivateKey.generate()
    for number, patch in enumerate(singles(1000)):
        patch.save(folder / "unsigned" / str(number))
        sign(patch, key).save(folder / "signed" / str(number))
    rows = []
    for count in (1, 100, 1000):
        folders = {form: [folder / form / str(number) for number in range(count)] for form in ("unsigned", "signed")}
        loaded = {form: [Patch.load(one) for one in ones] for form, ones in folders.items()}
        assert all(len({patch.id for patch in patches}) == count for patches in loaded.values())
        assert all(patch.signers for patch in loaded["signed"])
        assert not any(patch.signers for patch in loaded["unsigned"])
        repeats = max(5, 100 // count)
        loads = costs({form: lambda o=ones: [Patch.load(one) for one in o] for form, ones in folders.items()}, repeats)
        again = costs({form: lambda p=p: [patch.verify() for patch in p] for form, p in loaded.items()}, repeats)
        for form, (cpu, wall) in loads.items():
            size = sum(file.stat().st_size for one in folders[form] for file in one.iterdir()) / count / 1e3
            each = (ms(cpu / count), ms(wall / count), ms(again[form][0] / count))
            rows.append([count, form, f"{size:.0f}", f"{wall:.3f}", *each])
    report.table(["patches", "", "kB each", "s, all", "CPU ms each", "wall ms each", "verify again, CPU ms each"], rows)
    return folder / "unsigned" / "0"


def process(command: Sequence[str]) -> tuple[float, float]:
    """(CPU, wall-clock) seconds of a process that succeeds."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    cpu, started = spent(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return spent() - cpu, time.perf_counter() - started


def processes(report: Report, patch: Path) -> None:
    report.say("## As a process (median of 7)")
    kedit = [sys.executable, "-m", "kedit_hub.cli"]
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        "python -c 'import kedit_hub.patch'": [sys.executable, "-c", "import kedit_hub.patch"],
        "kedit --version": [*kedit, "--version"],
        "kedit show <patch>": [*kedit, "show", str(patch)],
    }
    rows = []
    for name, command in commands.items():
        runs = [process(command) for _ in range(7)]
        rows.append([name, *(f"{statistics.median(values):.2f}" for values in zip(*runs))])
    report.table(["command", "CPU s", "wall s"], rows)


# --- c: bytes per edit --------------------------------------------------------------------------------------------


def sizes(report: Report) -> None:
    report.say("## Bytes of a patch of one edit, all its files, against a copy of the model")
    report.say(
        f"Random numbers of the real sizes, written by Patch.files. Associative rows as the editors store them: {ROWS} rows "
        f"({ROWS - 1} answer token and the one that ends it), {CONTEXTS} contexts, {CONTEXTS + MENTIONS} subject keys."
    )
    table: dict[str, list[str]] = {}
    ones = bases()
    for base in ones:
        ref = base.ref()
        for name, delta in kinds(base).items():
            files = patch_of(base, ref, delta).files()
            total = sum(map(len, files.values()))
            table.setdefault(name, []).extend(
                [f"{len(files[TENSORS]):,}", f"{total:,}", f"1 / {base.copy_bytes / total:,.0f}"]
            )
        moment = 4 * base.d * (base.d + 1) // 2
        report.say(
            f"* {base.name}: map ({base.m}, {base.d}), copy {base.copy_bytes:,} bytes; second moment in its profile "
            f"{moment:,} bytes, for which whitened keys stand in"
        )
    columns = [column for base in ones for column in (f"{base.name}: tensors", "all files", "of a copy")]
    report.table(["kind", *columns], [[name, *cells] for name, cells in table.items()])

    report.say("## Bytes per edit of associative patches of many edits (Llama-3-8B)")
    base = ones[-1]
    ref = base.ref()
    rows = []
    for count in (1, 10, 100):
        plain = associative(base, count)
        totals = [
            sum(map(len, patch_of(base, ref, delta, count).files().values()))
            for delta in (plain, portable(plain), plain.halved())
        ]
        rows.append([count, *(f"{total / count:,.0f}" for total in totals)])
    report.table(["edits", "F32", "F32, portable", "f16"], rows)


# --- d: half precision --------------------------------------------------------------------------------------------


@torch.no_grad()
def logits(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[Tensor]:
    """Logits of every token of every text, in batches."""
    found = []
    for start in range(0, len(texts), 64):
        encoded = encode(tokenizer, texts[start : start + 64])
        out = model(**encoded.inputs(model)).logits
        found.append(out[encoded.attention_mask.bool()])
    return found


def apart(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other))


def answers(scores: Mapping[str, Any]) -> list[str]:
    """What was generated, question by question."""
    return [asked["answer_after"] for edit in scores["per_edit"] for asked in (edit, *edit["probes"])]


def precision(report: Report) -> None:
    report.say("## f32 and f16 of the sample patches on Atlas")
    report.say(
        "Logits at every token of every question with its answer; the edit itself moves them by `edit` at most. Answers: greedy "
        "generation to every prompt, rephrase and probe of the patch."
    )
    architectures = {name: load_model(name) for name in EMBEDDED}
    rows = []
    for folder in sorted(path for path in HERE.iterdir() if (path / CONFIG).exists()):
        patch = Patch.load(folder)
        model, tokenizer = architectures[patch.manifest.base.id]
        half = Patch.create(
            deltas={path: delta.halved() for path, delta in patch.deltas.items()},
            edits=patch.edits,
            base=patch.manifest.base,
            method=patch.manifest.method,
            settings=patch.manifest.settings,
            profile_id=patch.manifest.profile_id,
        )
        tensors = [len(p.files()[TENSORS]) for p in (patch, half)]
        cells: list[Any] = [folder.name, f"{tensors[0]:,}", f"{tensors[1]:,}", f"{tensors[1] / tensors[0]:.3f}"]
        for mode in ("gated", "joint"):
            models = [kedit_hub.apply(p, model, tokenizer=tokenizer, mode=mode) for p in (patch, half)]
            sheets = [
                kedit_hub.evaluate(pm, patch.edits, protocols=["generate"], drift_texts=[]).to_dict() for pm in models
            ]
            texts = [
                f"{asked['prompt']} {asked['target'] or ''}".strip()
                for edit in sheets[0]["per_edit"]
                for asked in (edit, *edit["probes"])
            ]
            full, halved, plain = (logits(m, tokenizer, texts) for m in (*(pm.model for pm in models), model))
            said = [answers(sheet) for sheet in sheets]
            changed = sum(a != b for a, b in zip(*said, strict=True))
            cells += [f"{apart(full, halved):.2g}", f"{apart(full, plain):.1f}", f"{changed} / {len(said[0])}"]
        rows.append(cells)
    report.table(
        ["patch", "f32 bytes", "f16 bytes", "ratio"]
        + [f"{mode}: {what}" for mode in ("gated", "joint") for what in ("f16 - f32", "edit", "answers changed")],
        rows,
    )


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kedit-artifact-") as folder:
        yield Path(folder)


def main() -> None:
    quiet()
    torch.set_num_threads(1)
    report = Report("artifact", "What the artifact costs: hashing, loading, bytes per edit, half precision")
    report.say(
        "One thread, files in the page cache. Wall-clock time includes waiting for other programs; CPU time does not."
    )
    hashing(report)
    with scratch() as folder:
        loading(report, folder)
    with scratch() as folder:
        processes(report, many(report, folder))
    sizes(report)
    precision(report)
    report.save()


if __name__ == "__main__":
    main()
