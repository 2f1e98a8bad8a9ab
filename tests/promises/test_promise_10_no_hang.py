"""Promise 10: no hostile patch and no hostile stack hangs us. Each is answered in less than a second of processor time and
300 MB of memory, most of them in milliseconds; the bounds are in kedit_hub.limits.
"""

import gc
import json
import os
import resource
import sys
import time

import pytest
import torch

import kedit_hub
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError, LimitError, PatchFormatError, UnknownFormatError, WrongBaseError
from kedit_hub.patch import LowRank, ModuleFingerprint, Patch
from kedit_hub.stack.stack import PatchStack
from tests.attacks.test_12_malformed_safetensors import raw, zero_sized
from tests.attacks.tools import CONFIG, EVALS_FILE, TENSORS, good
from tests.patch.build import EDITS, PATHS, D, M, base, make_patch
from tests.tiny import tiny_model

SECONDS, MEGABYTES = 1.0, 300


def config(**fields: object) -> bytes:
    return json.dumps({**json.loads(good()[CONFIG]), **fields}).encode()


MANY = 20_000_000
BOMBS = {  # file -> how to make it; the error
    "a million brackets": (CONFIG, lambda: b"[" * 1_000_000 + b"]" * 1_000_000, LimitError),
    "64 million brackets": (CONFIG, lambda: b"[" * 64_000_000, LimitError),
    "20 million empty lists": (CONFIG, lambda: b'{"a":[' + b"[]," * MANY + b"[]]}", LimitError),
    "20 million empty objects": (CONFIG, lambda: b'{"a":[' + b"{}," * MANY + b"{}]}", LimitError),
    "30 million zeros": (CONFIG, lambda: b'{"a":[' + b"0," * 30_000_000 + b"0]}", LimitError),
    "more bytes than are read": (CONFIG, lambda: b" " * ((1 << 26) + 1), LimitError),
    "64 million spaces": (CONFIG, lambda: b" " * (1 << 26), PatchFormatError),
    "16 million digits": (CONFIG, lambda: config(settings={"x": 0}).replace(b'"x": 0', b'"x": ' + b"1" * 16_000_000), LimitError),
    "16 million digits behind a point": (CONFIG, lambda: b'{"x": 0.' + b"1" * 16_000_000 + b"}", UnknownFormatError),
    "a method of 20 million letters": (CONFIG, lambda: config(method="a" * 20_000_000), PatchFormatError),
    "20 million letters of a base": (
        CONFIG, lambda: config(base={**json.loads(good()[CONFIG])["base"], "id": "a-" * 10_000_000}), PatchFormatError
    ),
    "80,000 marks on one letter": (CONFIG, lambda: config(settings={"x": "a" + "\u0301\u0316" * 40_000}), PatchFormatError),
    "a prompt of 20 million letters": (
        CONFIG, lambda: config(edits=[{"prompt": "a" * 20_000_000, "target_new": "b"}]), PatchFormatError
    ),
    "100,000 required patches": (CONFIG, lambda: config(requires=[f"{i:064x}" for i in range(100_000)]), LimitError),
    "100,000 malformed edits": (CONFIG, lambda: config(edits=[0] * 100_000), PatchFormatError),
    "20 million empty lists of scores": (EVALS_FILE, lambda: b"[" + b"[]," * MANY + b"[]]", LimitError),
    "240,000 tensors of no bytes": (TENSORS, lambda: zero_sized(240_000), LimitError),
    "a million tensors of no bytes": (TENSORS, lambda: zero_sized(1_000_000), LimitError),
    "a header of 2^63 bytes": (TENSORS, lambda: b"\xff" * 7 + b"\x7f" + b"{" * 100, LimitError),
    "a header nested a million deep": (TENSORS, lambda: raw(b'{"a":' + b"[" * 1_000_000), LimitError),
    "a header of 16 million spaces": (TENSORS, lambda: raw(b"{" + b" " * 16_000_000), PatchFormatError),
}  # fmt: skip


def measured(run):
    """(seconds of processor time, MB more than before, name of the error or "") of `run` in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            gc.freeze()  # the collector shall not walk, and so copy, what the tests before this one hold
            before, started, name = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time(), ""
            try:
                run()
            except KeditError as error:
                assert len(str(error)) < 2000
                name = type(error).__name__
            spent = time.process_time() - started
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            os.write(write, json.dumps([spent, grown, name]).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as report:
        told = report.read()
    os.waitpid(child, 0)
    assert told, "the process died"
    return json.loads(told)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is counted in another unit elsewhere")
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once(name):
    file, make, error = BOMBS[name]
    files = {**good(), file: make()}
    seconds, megabytes, refused = measured(lambda: Patch.from_files(files))
    assert refused == error.__name__
    assert seconds < SECONDS and megabytes < MEGABYTES, (seconds, megabytes)


def test_a_patch_cannot_require_itself():
    """The id covers `requires`: to name itself a patch would have to know a digest of that digest."""
    patch = make_patch()
    for _ in range(3):
        other = make_patch(requires=[patch.id])
        assert other.id != patch.id
        patch = other


def copied(patch: Patch, **fields: object) -> Patch:
    """The patch with other fields in its manifest, checked by nobody."""
    manifest = patch.manifest.model_copy(update=fields)
    for derived in ("id", "_values"):
        manifest.__dict__.pop(derived, None)
    return Patch(manifest, patch.deltas)


def test_no_cycle_of_patches_can_be_made_and_none_is_followed():
    """`requires` is a set of ids to be there; a chain of 2,000 is checked without walking it."""
    chain = [make_patch()]
    for _ in range(2000):
        chain.append(copied(chain[-1], requires=(chain[-1].id,), edits=(Edit(f"Fact {len(chain)} is", "so"),)))
    ids = [patch.id for patch in chain]
    assert len(set(ids)) == len(ids)
    seconds, megabytes, _ = measured(lambda: PatchStack(chain[::-1]))
    assert seconds < SECONDS and megabytes < MEGABYTES
    with pytest.raises(KeditError, match=f"needs the patches {ids[0][:12]}"):
        PatchStack(chain[1:])


def test_20_000_patches_are_stacked_in_less_than_a_second():
    patch = make_patch()
    many = []
    for number in range(20_000):
        many.append(copied(patch, edits=(Edit(f"Fact {number} is", "so"),)))
        many[-1].manifest.__dict__["id"] = f"{number:064x}"  # as if it had been hashed
    seconds, megabytes, refused = measured(lambda: PatchStack(many))
    assert refused == "" and seconds < SECONDS and megabytes < MEGABYTES


def test_the_largest_legal_rank_costs_what_it_weighs():
    """A rank of 65,536 on a small map is refused by the map before anything is multiplied."""
    rank = 65_536
    patch = make_patch(deltas={PATHS[0]: LowRank(torch.ones(rank, D).half(), torch.ones(M, rank).half())})
    files = patch.files()
    seconds, megabytes, refused = measured(lambda: Patch.from_files(files))
    assert refused == "" and seconds < SECONDS and megabytes < MEGABYTES
    with pytest.raises(LimitError, match="size r is 65,537"):
        make_patch(deltas={PATHS[0]: LowRank(torch.ones(rank + 1, D).half(), torch.ones(M, rank + 1).half())})


def test_a_base_of_other_shapes_is_refused_before_anything_is_made():
    """A rank of 65,536 for a map of another shape than the base has."""
    model, tokenizer = tiny_model("llama")
    path = "model.layers.1.mlp.down_proj"
    prints = {path: ModuleFingerprint(shape=(M, D), dtype="float32")}
    delta = LowRank(torch.ones(65_536, D).half(), torch.ones(M, 65_536).half())
    reference = base().model_copy(update={"fingerprint": prints})
    patch = Patch.create(deltas={path: delta}, edits=EDITS, base=reference, method="mend")
    seconds, megabytes, refused = measured(lambda: kedit_hub.apply(patch, model, tokenizer=tokenizer))
    assert refused == WrongBaseError.__name__ and seconds < SECONDS and megabytes < MEGABYTES


def test_the_measure_sees_time_and_memory():
    seconds, megabytes, refused = measured(
        lambda: sum(len(bytes(1 << 20)) for _ in range(200)) and bytearray(b"x" * (400 << 20))
    )
    assert megabytes > MEGABYTES and refused == ""
    seconds, _, refused = measured(
        lambda: [hash(str(i)) for i in range(3_000_000)] and (_ for _ in ()).throw(LimitError("x"))
    )
    assert seconds > 0.2 and refused == "LimitError"
