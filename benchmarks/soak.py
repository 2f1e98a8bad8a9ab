"""The promises at length: what tests/promises tries a few times, many times. Exit 1 when one of them does not hold.

python benchmarks/soak.py                    # about 15 minutes of processor time on one thread
python benchmarks/soak.py --only bits trees

bits       every bit of every file of a signed patch is flipped                      (promise 2)
trees      random folders beside a signature                                         (promise 3)
kills      SIGKILL from outside at a random moment of saving over a patch            (promise 4)
rollback   random stacks of up to 20 patches, put on and taken off                   (promise 6)
bytes      the same patch built in other processes, folders, locales, orders         (promise 7)
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Report

from kedit_hub.edits import Edit
from kedit_hub.errors import PatchFormatError
from kedit_hub.patch import BaseRef, Patch
from kedit_hub.patch.signature import Signed, check_folder, sign
from kedit_hub.stack.patched import PatchedModel
from kedit_hub.stack.settings import StackSettings
from kedit_hub.stack.stack import PatchStack
from tests.patch.build import EDITS as BUILT
from tests.patch.build import EVALS, make_patch
from tests.profiles import EDITS, base_of, logits, profile_of
from tests.profiles import make_patch as rows_patch
from tests.promises import artifact
from tests.promises.test_promise_06_rollback import deltas, digests
from tests.promises.trees import CHANGES
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[1]
KEY = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
Row = tuple[str, str, str]  # (promise, what was tried, what came of it)


class Broken(Exception):
    """A promise that does not hold."""


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def refused(files: dict[str, bytes]) -> bool:
    try:
        Patch.from_files(files)
    except PatchFormatError:
        return True
    return False


# --- 2 -------------------------------------------------------------------------------------------------------------------


def bits(_: random.Random) -> Row:
    edits = (*BUILT, *(Edit(f"Fact number {number} is", "so", relation="number") for number in range(50)))
    files = sign(make_patch(edits=edits).replace_evals(EVALS), KEY).files()
    if refused(files):
        raise Broken("the patch itself is refused")
    tried = 0
    for name, data in files.items():
        changed = bytearray(data)
        for bit in range(8 * len(data)):
            changed[bit // 8] ^= 1 << bit % 8
            if not refused({**files, name: bytes(changed)}):
                raise Broken(f"bit {bit} of {name}")
            changed[bit // 8] ^= 1 << bit % 8
            tried += 1
    size = sum(map(len, files.values()))
    return (
        "2 one flipped bit is refused",
        f"every one of {tried:,} bits of a signed patch of {size:,} bytes",
        "all refused",
    )


# --- 3 -------------------------------------------------------------------------------------------------------------------


def trees(r: random.Random) -> Row:
    """One to four changes at random files, one after the other; some undo each other, then nothing must be wrong."""
    outcomes: Counter[str] = Counter()
    with folder() as temporary:
        good = sign(make_patch().replace_evals(EVALS), KEY).save(temporary / "good")
        stored = {path.name: path.read_bytes() for path in good.iterdir()}
        while sum(outcomes.values()) < 1000:
            tree = shutil.copytree(good, temporary / "t" / "p")
            for _ in range(r.randint(1, 4)):
                try:
                    CHANGES[r.choice(list(CHANGES))](tree, r.choice(list(stored)))
                except (OSError, StopIteration):  # the file is gone by now, or a folder, or the last one
                    continue
            names = {path.name for path in tree.iterdir()}
            untouched = names == set(stored) and all(
                path.is_file() and not path.is_symlink() and path.read_bytes() == stored[path.name]
                for path in tree.iterdir()
            )
            try:
                loaded: Patch | None = Patch.load(tree)
            except PatchFormatError:
                loaded = None
            if loaded is None:
                outcomes["refused"] += 1
                if untouched:
                    raise Broken("an untouched folder is refused")
            elif "signature.json" not in names:
                outcomes["unsigned, and said to be so"] += 1
                if loaded.signers:
                    raise Broken("signers without a signature")
            else:
                outcomes["untouched after all"] += 1
                if not untouched or not isinstance(check_folder(tree), Signed):
                    raise Broken(f"taken: {sorted(names)}")
            shutil.rmtree(temporary / "t")
    return "3 another tree is refused", "1,000 random trees, 1 to 4 changes of 16 kinds each", _told(outcomes)


# --- 4 -------------------------------------------------------------------------------------------------------------------


def kills(r: random.Random) -> Row:
    """Processes that save two patches over each other for ever are killed after a random time; what lies there is whole."""
    one, two = make_patch().replace_evals(EVALS), sign(make_patch(method="rome").replace_evals(EVALS), KEY)
    whole = {patch.id: patch.files() for patch in (one, two)}
    outcomes: Counter[str] = Counter()
    with folder() as temporary:
        one.save(temporary / "one")
        two.save(temporary / "two")
        target = one.save(temporary / "p")
        patches = [Patch.load(temporary / name) for name in ("one", "two")]
        for _ in range(3000):
            child = os.fork()  # far cheaper than a new interpreter, and killed from outside all the same
            if child == 0:
                while True:
                    for patch in patches:
                        patch.save(target)
            time.sleep(r.uniform(0, 0.08))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            found = {path.name: path.read_bytes() for path in target.iterdir()}
            loaded = Patch.load(target)
            if found != whole[loaded.id]:
                raise Broken("a mixture of two patches")
            outcomes["first" if loaded.id == one.id else "second"] += 1
            for path in temporary.glob(".p.*"):
                outcomes["half-written folders beside it"] += 1
                shutil.rmtree(path)
    if min(outcomes.values()) < 100:
        raise Broken(f"hardly anything was interrupted: {outcomes}")
    return "4 killed at any moment: old or new", "3,000 SIGKILLs at random moments of saving", _told(outcomes)


# --- 6 -------------------------------------------------------------------------------------------------------------------


def rollback(r: random.Random) -> Row:
    model, tokenizer = tiny_model("llama")
    profile = profile_of(model, tokenizer)
    generator = torch.Generator().manual_seed(0)
    pool: list[Patch] = []
    for number in range(60):
        edit = EDITS[number % len(EDITS)]
        if number % 3 == 0:
            pool.append(rows_patch(model, tokenizer, profile, [edit], seed=number, size=2.0))
            continue
        path = f"model.layers.{r.randrange(3)}.mlp.down_proj"
        delta = r.choice(list(deltas(64, 128, generator).values()))
        base: BaseRef = base_of(model, path)
        pool.append(Patch.create(deltas={path: delta}, edits=[edit], base=base, method="any", settings={"n": number}))
    prompts = [edit.prompt for edit in EDITS]
    before, said = digests(model), logits(model, tokenizer, prompts)
    changed = tried = 0
    for number in range(1000):
        chosen = r.sample(pool, r.randint(1, 20))
        stack = PatchStack(chosen, conflicts="latest")
        view = PatchedModel(
            model,
            tokenizer,
            stack,
            profiles=lambda *_: {profile.module: profile},
            settings=StackSettings(mode=r.choice(("gated", "joint", "sum"))),
        )
        changed += not torch.equal(logits(view.model, tokenizer, prompts), said)
        for _ in range(r.randint(0, 3)):
            gone = r.choice(chosen)
            view.remove(gone)
            view.add(gone)
        left = r.sample(chosen, r.randint(0, len(chosen)))
        for patch in left:
            view.remove(patch)
        tried += len(chosen)
        view.detach()
        if not torch.equal(logits(view.model, tokenizer, prompts), said) or not torch.equal(
            logits(model, tokenizer, prompts), said
        ):
            raise Broken(f"stack {number} leaves other answers")
        if number % 20 == 0 and digests(model) != before:
            raise Broken(f"stack {number} leaves other numbers or hooks")
    if digests(model) != before or changed < 900:
        raise Broken(f"other numbers or hooks are left, or too little was changed ({changed})")
    return (
        "6 rollback is bit-exact",
        f"1,000 random stacks of up to 20 patches ({tried:,} in all) on a tiny Llama, in three modes",
        f"{changed:,} changed the answers; all came off: answers, numbers and hooks as before",
    )


# --- 7 -------------------------------------------------------------------------------------------------------------------


def same_bytes(r: random.Random) -> Row:
    expected = artifact.digests(order=0)
    for order in range(1, 81):
        if artifact.digests(order=order) != expected:
            raise Broken(f"order {order}")
    for number in range(20):
        world = {
            "LC_ALL": r.choice(("C", "C.UTF-8", "POSIX")), "TZ": r.choice(("UTC", "Asia/Tokyo", "America/Lima")),
            "PYTHONHASHSEED": str(r.randrange(2**32)), "OMP_NUM_THREADS": r.choice(("1", "2")), "ORDER": str(number),
        }  # fmt: skip
        with folder() as temporary:
            env = {**os.environ, "PYTHONPATH": str(ROOT), **world}
            command = [sys.executable, "-m", "tests.promises.artifact"]
            done = subprocess.run(
                command, cwd=temporary, env=env, capture_output=True, text=True, timeout=120, check=False
            )
        if done.returncode or json.loads(done.stdout) != expected:
            raise Broken(f"{world}: {done.stderr[-500:]}")
    return (
        "7 the same input, the same bytes",
        "80 orders in one process, 20 other processes, each in a world of its own",
        "all equal",
    )


# --- running ---------------------------------------------------------------------------------------------------------------

SOAKS: dict[str, Callable[[random.Random], Row]] = {
    "bits": bits, "trees": trees, "kills": kills, "rollback": rollback, "bytes": same_bytes,
}  # fmt: skip


def spent() -> float:
    """Seconds of processor time, of this process and of all that it has started."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _told(outcomes: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(outcomes.items()))


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", nargs="+", choices=SOAKS, default=list(SOAKS))
    arguments.add_argument("--seed", type=int, default=0)
    asked = arguments.parse_args()
    torch.set_num_threads(1)
    report = Report("soak", "The promises at length")
    report.say(f"seed {asked.seed}")
    rows: list[list[str]] = []
    broken = False
    for name in asked.only:
        began = spent()
        try:
            row: Row = SOAKS[name](random.Random(f"{asked.seed} {name}"))
        except Broken as error:
            row, broken = (name, "", f"BROKEN: {error}"), True
        rows.append([*row, f"{spent() - began:.0f}"])
        print(rows[-1], file=sys.stderr, flush=True)
    report.table(["promise", "what was tried", "what came of it", "s of processor time"], rows)
    if asked.only == list(SOAKS) and not broken:
        report.save()
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
