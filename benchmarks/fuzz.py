"""Mutants of good patches against `Patch.from_files`: every answer is a typed refusal, or the same patch again, in less than a second.

    python benchmarks/fuzz.py                    # 100,000 mutants, seed 0; exit 1 when anything else comes out
    python benchmarks/fuzz.py --count 1000 --seed 7

A mutant is a good patch after one to three mutations. Some know nothing of the format (flipped bits, cuts, splices), some know JSON
and safetensors, and some are made by somebody who knows everything and recomputes digests, ids, seals and signatures.
What is accepted has to be a patch that can be written: config.json, evals.json and what was signed come back byte for byte, the tensors
bit for bit, and a stack, a score check and a card can be made of it.
"""

import argparse
import contextlib
import copy
import hashlib
import json
import math
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Report

from kedit_hub import strictjson
from kedit_hub.errors import KeditError
from kedit_hub.evaluate.claims import check_claims
from kedit_hub.patch import BaseRef, Patch
from kedit_hub.patch.fingerprint import ModuleFingerprint
from kedit_hub.patch.safefile import DTYPE_NAMES, DTYPES, tensor_digest
from kedit_hub.patch.signature import sign
from kedit_hub.stack.stack import PatchStack
from tests.patch.build import EDITS, EVALS, D, M, make_patch
from tests.patch.kinds import EXAMPLES, every_kind

CARD, CONFIG, TENSORS, SCORES, SIGNATURE = (
    "README.md",
    "config.json",
    "patch.safetensors",
    "evals.json",
    "signature.json",
)
KEY = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
SECONDS = 1.0  # of processor time, for one mutant
Files = dict[str, bytes]


# --- good patches ---------------------------------------------------------------------------------------------------


def seeds() -> list[Files]:
    """One small patch per kind, signed and scored ones, and two large ones."""
    prints = {"model.layers.0.mlp.down_proj": ModuleFingerprint(shape=(M, D), dtype="float32")}
    base = BaseRef(id="org/base", revision="0" * 40, model_type="llama", fingerprint=prints)
    small = [
        Patch.create(
            deltas={path: delta}, edits=EDITS, base=base, method="any", profile_id="a" * 64,
            settings={"lr": 0.5, "steps": 20, "note": "\u00e9", "layers": [1, 2]},
            provenance={"version": "0.1.0", "environment": {"device": "cpu"}} if number % 2 else {"version": "0.1.0"},
        )
        for number, delta in enumerate(EXAMPLES.values())
        for path in prints
    ]  # fmt: skip
    scored = [patch.replace_evals(EVALS) for patch in small[:3]]
    signed = [sign(patch, KEY, repo_id="ada/tower", version="1.2.0") for patch in (small[0], scored[1], small[5])]
    return [patch.files() for patch in (*small, *scored, *signed, make_patch().replace_evals(EVALS), every_kind())]


# --- mutations that know nothing ------------------------------------------------------------------------------------


def any_file(r: random.Random, files: Files) -> str:
    return r.choice([name for name in (CONFIG, TENSORS, SCORES, SIGNATURE, CARD) if files.get(name)])


def flip(r: random.Random, files: Files, _: list[Files]) -> None:
    name = any_file(r, files)
    data = bytearray(files[name])
    for _ in range(r.choice((1, 1, 1, 2, 8))):
        data[r.randrange(len(data))] ^= 1 << r.randrange(8)
    files[name] = bytes(data)


def cut(r: random.Random, files: Files, _: list[Files]) -> None:
    name = any_file(r, files)
    begin, end = sorted(r.randrange(len(files[name]) + 1) for _ in range(2))
    files[name] = r.choice((files[name][:begin], files[name][begin:], files[name][:begin] + files[name][end:]))


def repeat(r: random.Random, files: Files, _: list[Files]) -> None:
    name = any_file(r, files)
    begin, end = sorted(r.randrange(len(files[name]) + 1) for _ in range(2))
    piece, at = files[name][begin:end], r.randrange(len(files[name]) + 1)
    files[name] = files[name][:at] + piece + files[name][at:]


def splice(r: random.Random, files: Files, donors: list[Files]) -> None:
    name, donor = any_file(r, files), r.choice(donors)
    other = donor[any_file(r, donor)]
    begin, end = sorted(r.randrange(len(other) + 1) for _ in range(2))
    at = r.randrange(len(files[name]) + 1)
    files[name] = files[name][:at] + other[begin:end] + files[name][at + r.choice((0, end - begin)) :]


def exchange(r: random.Random, files: Files, donors: list[Files]) -> None:
    """A whole file of another patch, or of another name; or one less; or one more."""
    name, donor = any_file(r, files), r.choice(donors)
    match r.randrange(4):
        case 0:
            files[name] = donor.get(name, b"")
        case 1:
            files[name] = donor[any_file(r, donor)]
        case 2:
            del files[name]
        case _:
            files[r.choice(("more.bin", ".gitattributes", "Config.json", SCORES, SIGNATURE))] = donor[
                any_file(r, donor)
            ]


WORDS = [
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u0000", b"\\ud800", b"NaN", b"-Infinity", b"1e999", b"-0.0", b"null", b"true",
    b"9" * 30, b"0.1", b"1e5", b"//", b"\xef\xbb\xbf", b"\xff", b"\r\n", b"\t", b" ", b"\0", b"\xcc\x81", b"\xe2\x80\xae", b"<b>", b"../",
    b'"id": "x",', b'"kind": "dense",', b'"format_version": 1,', b'"__metadata__": {"format":"pt"},', b"F64", b"data_offsets",
]  # fmt: skip


def word(r: random.Random, files: Files, _: list[Files]) -> None:
    name = any_file(r, files)
    at = r.randrange(len(files[name]) + 1)
    files[name] = files[name][:at] + r.choice(WORDS) + files[name][at + r.choice((0, 0, 1, 4)) :]


# --- mutations that know JSON ---------------------------------------------------------------------------------------

POOL: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 8, 12, 96, 2**31, 2**63 - 1, 10**18, 0.0, -0.0, 0.5, 1.0, 1.5, -1.0, 1e-300, 1e300, 1e22, 5e-324, "",
    " ", "x", "a" * 64, "0" * 40, "0" * 64, "f16", "dense", "lowrank", "sparse", "facts", "relu", "silu", "answer", "subject", "norm",
    "mask", "model", "lexical", "projection", "last", "every", "prompt", "org/x", "org/x@" + "1" * 40, "../x", "C:\\x", "a\u0301",
    "\u202e", "\ud7ff", "\U0001f600", "<script>", "{{x}}", "model.layers.0.mlp.down_proj", "h.0", "F16", "F32", "I64", "BF16", [], {}, [0],
    [[]], {"a": 1}, ["a"] * 300, "The capital of France is", "Rome", "France", {"prompt": "Ada was born in", "target_new": "Oslo"},
]  # fmt: skip
KEYS = [
    "id", "x", "kind", "shape", "tensors", "site", "layer", "precision", "threshold", "scale", "scope", "answer", "routing", "positions",
    "activation", "input_module", "gate_module", "scope_model", "requires", "settings", "dirty", "environment", "datasets", "profile_id",
    "prompt", "target_new", "subject", "locality", "portability", "omega", "auto_map", "__class__", "keys", "keys_scale", "a\u0301",
]  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key or index) of every value inside."""
    found: list[tuple[Any, Any]] = []
    todo = [value]
    while todo:
        item = todo.pop()
        keys: Any = item.keys() if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ()
        for key in keys:
            found.append((item, key))
            todo.append(item[key])
    return found


def copied(value: Any) -> Any:
    """A value of its own: what is put into itself would never end."""
    return copy.deepcopy(value)


def change_json(r: random.Random, value: Any) -> None:
    """One change somewhere inside, in place."""
    where = places(value)
    if not where:
        return
    container, key = r.choice(where)
    match r.randrange(7):
        case 0 | 1:
            container[key] = copied(r.choice(POOL))
        case 2:
            del container[key]
        case 3:
            other, at = r.choice(where)
            container[key] = copied(other[at])
        case 4:
            other, at = r.choice(where)
            if type(other) is type(container):
                container[key], other[at] = copied(other[at]), copied(container[key])  # one may lie inside the other
        case 5 if isinstance(container, dict):
            container[r.choice(KEYS)] = container.pop(key)
        case 6 if isinstance(container, dict):
            container[r.choice(KEYS)] = copied(r.choice(POOL))
        case _:
            if isinstance(container, list):
                container.append(copied(r.choice([r.choice(POOL), container[key]])))
            elif isinstance(container[key], int | float):
                container[key] = r.choice(
                    (container[key] + 1, -container[key], container[key] * 2, float(container[key]))
                )
            elif isinstance(container[key], str):
                text = container[key]
                at = r.randrange(len(text) + 1)
                container[key] = text[:at] + r.choice(("a", ".", "/", "\u0301", "0", "\u200b", " ", "_")) + text[at:]


def parsed(files: Files, name: str) -> Any:
    try:
        return json.loads(files[name])
    except (ValueError, KeyError, RecursionError):
        return None


def json_of_config(r: random.Random, files: Files, _: list[Files]) -> None:
    config = parsed(files, CONFIG)
    if isinstance(config, dict):
        for _ in range(r.choice((1, 1, 1, 2))):
            change_json(r, config)
        files[CONFIG] = written(r, config)


def json_of_scores(r: random.Random, files: Files, _: list[Files]) -> None:
    scores = parsed(files, SCORES) or {}
    if isinstance(scores, dict):
        change_json(r, scores) if scores else scores.update(x=r.choice(POOL))
        files[SCORES] = written(r, scores)


def json_of_signature(r: random.Random, files: Files, _: list[Files]) -> None:
    signature = parsed(files, SIGNATURE)
    if isinstance(signature, dict):
        change_json(r, signature)
        files[SIGNATURE] = written(r, signature)


def written(r: random.Random, value: Any) -> bytes:
    """Mostly in the one form that is accepted."""
    if r.random() < 0.05:
        return json.dumps(value).encode("utf-8", "surrogatepass")
    try:
        return strictjson.pretty(value)
    except (ValueError, UnicodeEncodeError):
        return json.dumps(value).encode()


# --- mutations that know safetensors --------------------------------------------------------------------------------


def split(data: bytes) -> tuple[dict[str, Any], bytes] | None:
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        return None
    return (header, data[8 + length :]) if isinstance(header, dict) else None


def header(r: random.Random, files: Files, _: list[Files]) -> None:
    parts = split(files.get(TENSORS, b""))
    if parts is None:
        return
    entries, body = parts
    names = [name for name in entries if name != "__metadata__"]
    match r.randrange(6):
        case 0:
            change_json(r, entries)
        case 1 if names:
            entries[r.choice(names)]["dtype"] = r.choice([*DTYPES, "F8_E4M3", "BOOL", 3])
        case 2 if names:
            shape = entries[r.choice(names)].get("shape")
            if isinstance(shape, list) and shape:
                shape[r.randrange(len(shape))] = r.choice((0, 1, 2, -1, 2**40, True, 1.0))
                r.shuffle(shape)
        case 3 if names:
            offsets = entries[r.choice(names)].get("data_offsets")
            if isinstance(offsets, list) and offsets:
                offsets[r.randrange(len(offsets))] = r.choice((0, 4, 8, 2**50, -4, len(body)))
        case 4 if len(names) > 1:
            a, b = r.sample(names, 2)
            entries[a], entries[b] = entries[b], entries[a]
        case _:
            entries = dict(r.sample(list(entries.items()), len(entries)))
    text = json.dumps(entries).encode() + b" " * r.choice((0, 0, 1, 7, 64))
    files[TENSORS] = len(text).to_bytes(8, "little") + text + body


NUMBERS = [
    math.nan,
    math.inf,
    -math.inf,
    0.0,
    -0.0,
    1e-45,
    1e-38,
    65504.0,
    1e6,
    1.1e6,
    -1e30,
    1.0,
    -1.0,
    3.0,
    2.0**-126,
    2.0**127,
]
INDICES = [-1, 0, 1, 2, 7, 11, 12, 95, 96, 2**31, 2**62, -(2**63), 2**63 - 1]


def numbers(r: random.Random, files: Files, _: list[Files]) -> None:
    """Other values, dtypes or shapes in the tensors themselves."""
    try:
        held = safetensors.torch.load(files.get(TENSORS, b""))
    except (safetensors.SafetensorError, ValueError, KeyError):
        return
    if not held:
        return
    name = r.choice(list(held))
    tensor = held[name].clone()
    pool: list[Any] = NUMBERS if tensor.is_floating_point() else INDICES
    match r.randrange(9):
        case 0 | 1 | 2:
            tensor.reshape(-1)[r.randrange(max(1, tensor.numel()))] = r.choice(pool)
        case 3:
            tensor = torch.full_like(tensor, r.choice(pool))
        case 4:
            tensor = tensor.to(r.choice(list(DTYPES.values())))
        case 5:
            tensor = tensor.flatten() if r.random() < 0.5 else tensor[None]
        case 6:
            tensor = tensor.T.contiguous() if tensor.dim() == 2 else tensor.flip(0)
        case 7:
            tensor = torch.cat([tensor, tensor]) if r.random() < 0.5 else tensor[:1]
        case _:
            del held[name]
            name = r.choice((f"{name}_scale", name.replace("/", "/x"), name.replace(".0.", ".1."), "more"))
    held[name] = tensor.contiguous()
    files[TENSORS] = safetensors.torch.save({key: held[key] for key in sorted(held)}, metadata={"format": "pt"})


# --- whoever knows the format puts everything right again -----------------------------------------------------------


def reseal(r: random.Random, files: Files, digests: bool) -> None:
    """Digests of the tensors there are, the id of what is said, the seal of the scores, a signature over all of it."""
    config = parsed(files, CONFIG)
    if not isinstance(config, dict):
        return
    if digests:
        _digest(files, config)
    config.pop("id", None)
    try:
        config["id"] = hashlib.sha256(b"kedit patch 1\n" + strictjson.canonical(config)).hexdigest()
        files[CONFIG] = strictjson.pretty(config)
    except (ValueError, UnicodeEncodeError):
        return
    scores = parsed(files, SCORES)
    if isinstance(scores, dict):
        scores.pop("sha256", None)
        scores["patch_id"] = config["id"]
        try:
            files[SCORES] = strictjson.pretty(
                {**scores, "sha256": hashlib.sha256(strictjson.canonical(scores)).hexdigest()}
            )
        except (ValueError, UnicodeEncodeError):
            return
    signature = parsed(files, SIGNATURE)
    if isinstance(signature, dict) and isinstance(signature.get("statement"), dict):
        _sign(files, signature, config["id"])


def _digest(files: Files, config: dict[str, Any]) -> None:
    try:
        held = safetensors.torch.load(files.get(TENSORS, b""))
    except (safetensors.SafetensorError, ValueError, KeyError):
        return
    modules = config.get("modules")
    for path, entry in modules.items() if isinstance(modules, dict) else ():
        if isinstance(entry, dict):
            entry["tensors"] = {
                name.removeprefix(f"{path}/"): {
                    "dtype": DTYPE_NAMES[tensor.dtype],
                    "shape": list(tensor.shape),
                    "sha256": tensor_digest(name, tensor),
                }
                for name, tensor in held.items()
                if name.startswith(f"{path}/") and tensor.dtype in DTYPE_NAMES
            }


def _sign(files: Files, signature: dict[str, Any], patch_id: str) -> None:
    stated = signature["statement"]
    stated["patch_id"] = patch_id
    stated["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name != SIGNATURE}
    try:
        text = b"kedit signature 1\n" + strictjson.canonical(stated)
        signature["signatures"] = [
            {"key": KEY.public_key().public_bytes_raw().hex(), "signature": KEY.sign(text).hex()}
        ]
        files[SIGNATURE] = strictjson.pretty(signature)
    except (ValueError, UnicodeEncodeError):
        return


Mutation = Callable[[random.Random, Files, list[Files]], None]
BLIND: tuple[Mutation, ...] = (flip, cut, repeat, splice, exchange, word)
KNOWING: tuple[Mutation, ...] = (
    json_of_config,
    json_of_config,
    json_of_config,
    json_of_scores,
    json_of_signature,
    header,
    numbers,
    numbers,
)


def mutant(r: random.Random, good: list[Files]) -> tuple[Files, str]:
    """A mutant, and what was done to it."""
    files = dict(r.choice(good if r.random() < 0.97 else good[-2:]))
    done = []
    knowing = r.random() < 0.7
    for _ in range(r.choice((1, 1, 1, 2, 3))):
        mutate = r.choice(KNOWING if knowing else BLIND)
        with contextlib.suppress(RuntimeError, TypeError, ValueError, LookupError, AttributeError, OverflowError):
            mutate(r, files, good)  # what an earlier one broke may be nothing that this one can change
        done.append(mutate.__name__)
    how = "damaged"
    if knowing:
        how = "changed"
        if r.random() < 0.85:
            how = "forged"
            reseal(r, files, digests=r.random() < 0.8)
    return files, f"{how}: {'+'.join(dict.fromkeys(done)) if len(set(done)) == 1 else 'several'}"


# --- what came of it ------------------------------------------------------------------------------------------------


class Violation(Exception):
    """An accepted patch that is not the one that was given."""


def outcome(files: Files) -> str:
    """The name of the error, or "accepted ..."; anything else is raised."""
    try:
        patch = Patch.from_files(files)
    except KeditError as error:
        if len(str(error)) > 5000:
            raise Violation(f"a message of {len(str(error)):,} characters") from None
        return type(error).__name__
    again = patch.files()
    kept = [CONFIG, SCORES, SIGNATURE, *([CARD, TENSORS] if patch.signature else [])]
    for name in kept:
        if files.get(name) != again.get(name):
            raise Violation(f"{name} is written back otherwise")
    if Patch.from_files(again) != patch:
        raise Violation("it is another patch when it is read again")
    check_claims(patch)
    PatchStack([patch], conflicts="latest")
    repr(patch)
    if again[TENSORS] == files[TENSORS]:
        return "accepted"
    ours, theirs = (safetensors.torch.load(data) for data in (again[TENSORS], files[TENSORS]))
    same = ours.keys() == theirs.keys() and all(
        tensor_digest(n, t) == tensor_digest(n, theirs[n]) for n, t in ours.items()
    )
    if not same:
        raise Violation(f"{TENSORS} is written back with other tensors")
    return "accepted, tensors laid out otherwise"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--count", type=int, default=100_000)
    arguments.add_argument("--seed", type=int, default=0)
    asked = arguments.parse_args()
    torch.set_num_threads(1)
    good = seeds()
    for files in good:
        assert outcome(files) == "accepted"
    tally: Counter[tuple[str, str]] = Counter()
    bad: list[tuple[int, str]] = []
    slowest, unchanged, began = (0.0, 0), 0, time.process_time()
    originals = {hashlib.sha256(repr(sorted(files.items())).encode()).digest() for files in good}
    for number in range(asked.count):
        files, how = mutant(random.Random(f"{asked.seed} {number}"), good)
        unchanged += hashlib.sha256(repr(sorted(files.items())).encode()).digest() in originals
        started = time.process_time()
        try:
            came = outcome(files)
        except Exception as error:
            came = "VIOLATION" if isinstance(error, Violation) else f"CRASH {type(error).__name__}"
            bad.append((number, f"{how}: {type(error).__name__}: {str(error)[:300]}\n{traceback.format_exc(limit=-3)}"))
        spent = time.process_time() - started
        slowest = max(slowest, (spent, number))
        if spent > SECONDS:
            bad.append((number, f"{how}: {spent:.2f} s"))
        tally[how, came] += 1
        if len(bad) >= 20:
            break
        if number % 1000 == 0 and sys.stderr.isatty():
            print(f"\r{number:,}", end="", file=sys.stderr, flush=True)
    return told(asked, tally, bad, slowest, unchanged, time.process_time() - began)


def told(
    asked: argparse.Namespace, tally: Counter[tuple[str, str]], bad: list[tuple[int, str]], slowest: tuple[float, int],
    unchanged: int, seconds: float,
) -> int:  # fmt: skip
    report = Report("fuzz", "Mutants of good patches against Patch.from_files")
    total = sum(tally.values())
    report.say(
        f"{total:,} mutants, seed {asked.seed}, {seconds / 60:.1f} minutes of processor time; {unchanged:,} of them were unchanged"
    )
    outcomes = sorted({came for _, came in tally}, key=lambda came: (not came.startswith("accepted"), came))
    report.table(
        ["what was done", *outcomes],
        [[how, *(tally[how, came] for came in outcomes)] for how in sorted({how for how, _ in tally})]
        + [["all", *(sum(count for (_, came), count in tally.items() if came == of) for of in outcomes)]],
    )
    report.say(f"Crashes, hangs over {SECONDS:g} s and accepted patches that are not what was given: {len(bad)}")
    report.say(f"The slowest took {slowest[0]:.2f} s")
    for number, what in bad:
        print(f"\nmutant {number} of seed {asked.seed}: {what}")
    if asked.count >= 100_000 and not bad:
        report.save()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
