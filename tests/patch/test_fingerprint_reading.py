"""What is read of a weight: once, in small pieces, and only the evidence that decides. The digests are those of the format."""

import base64
import hashlib
import warnings
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers.pytorch_utils import Conv1D

from kedit_hub.api import load_model
from kedit_hub.errors import PatchFormatError, WrongBaseError
from kedit_hub.patch import BaseRef, Patch
from kedit_hub.patch import fingerprint as module
from kedit_hub.patch.fingerprint import (
    CHUNK,
    DTYPES,
    Matrix,
    ModuleFingerprint,
    check,
    check_matrix,
    fingerprint,
    fingerprint_matrix,
)
from tests.patch.build import PATHS, Model

REPO = Path(__file__).resolve().parents[2]
SHAPES = [(1, 1), (1, 64), (3, 70), (65, 63), (96, 160), (700, 257), (1, 200_000), (200_001, 3), (1000, 512)]


def weight(shape, dtype=torch.float32):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.05).to(dtype)


def linear(values):
    made = nn.Linear(values.shape[1], values.shape[0], bias=False, dtype=values.dtype)
    made.weight.data = values
    return made


def conv1d(values):
    made = Conv1D(*values.shape)
    made.weight.data = values.T.contiguous()
    return made


def sha(tensor):
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def written_out(w):
    """The definition, on whole copies. w (out, in)."""
    name = next((name for name, dtype in DTYPES.items() if dtype == w.dtype), "float32")
    w = w.to(DTYPES[name])
    flat = w.abs().reshape(-1)
    padded = torch.cat([flat, flat.new_zeros(-len(flat) % 64)])
    rows, blocks = w.abs().amax(1).float(), padded.reshape(-1, 64).amax(1).float()

    def sample(maxima):
        return base64.b64encode(maxima[:: -(-len(maxima) // 1024)].contiguous().numpy().tobytes()).decode()

    return ModuleFingerprint(
        shape=tuple(w.shape),
        dtype=name,
        values={name: sha(w.to(dtype)) for name, dtype in DTYPES.items()},
        rows={name: sha(rows.to(dtype).half()) for name, dtype in DTYPES.items()},
        blocks={name: sha(blocks.to(dtype)) for name, dtype in DTYPES.items()},
        row_sample=sample(rows),
        block_sample=sample(blocks),
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES.values(), torch.float64], ids=str)
def test_pieces_give_the_digests_of_the_whole(shape, dtype):
    w = weight(shape, dtype)
    assert fingerprint(linear(w)) == fingerprint(conv1d(w)) == written_out(w)


def test_fingerprints_of_released_patches_still_hold():
    golden = Patch.load(REPO / "tests" / "golden" / "format-1" / "three-kinds")
    assert {path: fingerprint(Model().get_submodule(path)) for path in PATHS} == golden.manifest.base.fingerprint
    models = {}
    for folder in sorted(path.parent for path in (REPO / "patches").glob("*/config.json")):
        patch = Patch.load(folder)
        name = patch.manifest.base.id
        model = models.setdefault(name, load_model(name)[0] if name not in models else None)
        assert set(patch.verify(model).values()) == {"exact"}, folder
        for path, stored in patch.manifest.base.fingerprint.items():
            assert fingerprint(model.get_submodule(path)) == stored, folder
    assert len(models) == 2


# --- reading ------------------------------------------------------------------------------------------------------


class Counting:
    """A matrix that remembers which rows were asked for."""

    def __init__(self, values):
        self.asked = []
        self.matrix = Matrix(tuple(values.shape), values.dtype, self.rows)
        self.values = values

    def rows(self, begin, end):
        self.asked.append((begin, end))
        return self.values[begin:end]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_row_is_read_once_in_small_pieces(shape):
    seen = Counting(weight(shape))
    fingerprint_matrix(seen.matrix, path="w")
    assert [begin for begin, _ in seen.asked] == [0, *(end for _, end in seen.asked[:-1])]
    assert seen.asked[-1][1] == shape[0]
    assert max(end - begin for begin, end in seen.asked) * shape[1] <= max(CHUNK, 64 * shape[1])


def test_values_decide_alone(monkeypatch):
    w = weight((700, 257))
    made = fingerprint(linear(w))
    monkeypatch.setattr(module, "_maxima_of", None)  # maxima would be an error now
    seen = Counting(w)
    assert check_matrix(made, seen.matrix, path="w", model="m") == "exact"
    assert sum(end - begin for begin, end in seen.asked) == 700
    with pytest.raises(WrongBaseError):
        check_matrix(made, Counting(-w).matrix, path="w", model="m")


def test_half_precisions_that_do_not_meet_are_read_twice():
    made = fingerprint(linear(weight((700, 257), torch.bfloat16)))
    seen = Counting(weight((700, 257), torch.float16))
    assert check_matrix(made, seen.matrix, path="w", model="m") == "quantized"
    assert sum(end - begin for begin, end in seen.asked) == 2 * 700


def test_nothing_is_read_for_another_shape():
    seen = Counting(weight((8, 64)))
    with pytest.raises(WrongBaseError, match="has shape"):
        check_matrix(fingerprint(linear(weight((64, 8)))), seen.matrix, path="w", model="m")
    assert not seen.asked


@pytest.mark.parametrize("make", [linear, conv1d])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_no_copy_of_the_weight_is_made(make, dtype):
    """8 M elements: a float32 copy would take 32 MB, the largest tensor made on the way takes half a megabyte."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            shared = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
            for tensor in made if isinstance(made, tuple | list) else [made]:
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in shared:
                    Largest.bytes = max(Largest.bytes, tensor.untyped_storage().nbytes())
            return made

    live = make(torch.ones(2048, 4096, dtype=dtype))
    made = fingerprint(live)
    with Largest():
        fingerprint(live)
        check(made, live)
    assert 4 * CHUNK <= Largest.bytes < 2 * 4 * CHUNK


# --- fingerprints from strangers ----------------------------------------------------------------------------------


def changed(**parts):
    return ModuleFingerprint(**{**fingerprint(linear(weight((96, 160)))).model_dump(), **parts})


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"values": {"float32": "0" * 64}}, "values must have a digest for each"),
        ({"rows": {"float16": "0" * 64, "bfloat16": "0" * 64}}, "rows must have a digest for each"),
        ({"blocks": {"float32": "0" * 64}}, "blocks must have a digest for each"),
        ({"row_sample": base64.b64encode(bytes(4 * 95)).decode()}, "row_sample must hold 96 float32 numbers"),
        ({"block_sample": base64.b64encode(bytes(4 * 241)).decode()}, "block_sample must hold 240 float32 numbers"),
        ({"row_sample": "AAAAA"}, "row_sample must hold 96 float32 numbers"),
        ({"row_sample": "A" * 511 + "="}, "row_sample must hold 96 float32 numbers"),
    ],
)
def test_incomplete_evidence_is_refused(parts, said):
    with pytest.raises(ValidationError, match=said):
        changed(**parts)
    record = {**changed().model_dump(), **parts}
    with pytest.raises(PatchFormatError, match=said):
        BaseRef(id="org/base", model_type="llama", fingerprint={"model.layers.0.mlp.down_proj": record})


def test_nan_is_near_to_nothing():
    nan = base64.b64encode(torch.full((240,), torch.nan).numpy().tobytes()).decode()
    for made in (
        changed(values={}, blocks={}, block_sample=nan),
        changed(values={}, blocks=dict.fromkeys(DTYPES, "0" * 64), dtype="bfloat16", block_sample=nan),
    ):
        with pytest.raises(WrongBaseError):
            check(made, linear(weight((96, 160), torch.float16)))


def test_evidence_may_be_absent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check(changed(rows={}, row_sample=None, block_sample=None), linear(weight((96, 160)))) == "exact"
