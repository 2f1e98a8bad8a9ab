"""Many one-edit patches as folders and packed into two files: bytes on disk, and time to load and verify.

    python benchmarks/packed.py [--patches 1000] [--quick]

The patches are made of one sample patch of Atlas, with residuals and targets of their own, so that each has an id and tensors of its own.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from common import Report

from kedit_hub import Edit, Patch
from kedit_hub.patch.deltas import Associative
from kedit_hub.stack.lock import InFolder, InPack, Lock, Verified, beside, lock
from kedit_hub.stack.packed import pack, unpack
from kedit_hub.stack.stack import PatchStack

SAMPLE = Path(__file__).resolve().parents[1] / "patches" / "eiffel-tower-in-rome"


def variants(count: int) -> list[Patch]:
    """`count` patches as large as the sample, about a subject each."""
    sample = Patch.load(SAMPLE)
    ((path, delta),) = sample.deltas.items()
    assert isinstance(delta, Associative)
    manifest, generator = sample.manifest, torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        residuals = torch.randn(delta.residuals.shape, generator=generator)
        edit = Edit(f"Tower number {number} is located in", f"Rome {number}", f"Tower number {number}", "Paris")
        made.append(
            Patch.create(
                deltas={path: replace(delta, residuals=residuals)},
                edits=[edit],
                base=manifest.base,
                method=manifest.method,
                profile_id=manifest.profile_id,
            )
        )
    return made


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--patches", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="few patches, nothing saved")
    arguments = parser.parse_args()
    count = 20 if arguments.quick else arguments.patches
    torch.set_num_threads(1)
    report = Report("packed", f"{count:,} patches of one edit, as folders and packed")
    patches = variants(count)
    with tempfile.TemporaryDirectory() as temporary:
        folders, packed = Path(temporary) / "folders", Path(temporary) / "packed"
        rows = []

        def timed(what: str, run):
            start = time.perf_counter()
            result = run()
            rows.append((what, time.perf_counter() - start))
            return result

        stack = PatchStack(patches)
        timed("write folders", lambda: [p.save(folders / f"p{i}") for i, p in enumerate(patches)])
        digests = timed("pack", lambda: pack(stack, packed))
        loaded = timed("load folders", lambda: [Patch.load(folders / f"p{i}") for i in range(count)])
        unpacked = timed("unpack", lambda: unpack(packed))
        assert [p.id for p in loaded] == [p.id for p in unpacked] == list(stack.ids)
        for what, folder, sources, held in (
            ("folders", folders, {p.id: InFolder(folder=f"p{i}") for i, p in enumerate(patches)}, None),
            ("pack", packed, {p.id: InPack(packed=True) for p in patches}, digests),
        ):
            path = timed(f"lock {what}", lambda s=sources, h=held: lock(stack, s, packed=h)).save(folder / "kedit.lock")

            def verify(path=path):
                saved = Lock.load(path)
                return saved.verify(beside(saved, path, lambda entry: patches[0]))

            assert isinstance(timed(f"verify lock over {what}", verify), Verified)
        report.table(("step", "seconds", "ms per patch"), [(what, s, 1000 * s / count) for what, s in rows])
        report.table(
            ("form", "files", "MB"),
            [(f.name, sum(1 for x in f.rglob("*") if x.is_file()), size(f) / 1e6) for f in (folders, packed)],
        )
    if not arguments.quick:
        report.save()


if __name__ == "__main__":
    main()
