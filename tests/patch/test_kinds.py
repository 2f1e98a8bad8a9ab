"""What each kind refuses beside wrong shapes and dtypes, and what it says it costs."""

import dataclasses
import math

import pytest
import torch

from kedit_hub.errors import LimitError, PatchFormatError
from kedit_hub.limits import Limits
from kedit_hub.patch import Dense, Patch, Sparse
from tests.patch.build import D, M, make_patch, numbers
from tests.patch.kinds import EXAMPLES, every_kind

T = torch.tensor


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("associative-whitened", {"whitened_keys": -EXAMPLES["associative"].keys}, "k . C^-1 k must be above 0"),
        ("associative-narrowed", {"counter_edit": None}, "lacks counter_edit"),
        ("associative-narrowed", {"counter_keys": None}, "lacks counter_keys"),
        ("associative-narrowed", {"counter_edit": T([0, 1])}, "its c must be 3"),
        ("associative-narrowed", {"counter_edit": T([0, 1, 2])}, "counter_edit points to 2; it must lie in 0..1"),
        ("associative-narrowed", {"counter_edit": T([0, -1, 1])}, "counter_edit points to -1"),
        ("associative-narrowed", {"counter_keys": numbers(3, D + 1)}, "its d must be 12"),
        ("associative-narrowed", {"counter_keys": numbers(3, D) / 0}, "counter_keys holds NaN or infinity"),
        ("associative-narrowed", {"thresholds": T([[0.5, 0.5]])}, "is of 1 edits; the patch has 2"),
        ("associative-narrowed", {"thresholds": torch.zeros(3, 2)}, "is of 3 edits; the patch has 2"),
        ("associative-narrowed", {"thresholds": torch.zeros(2, 3)}, "must be (E, 2)"),
        ("associative-narrowed", {"thresholds": torch.zeros(2)}, "must be (E, 2)"),
        ("associative-narrowed", {"thresholds": torch.zeros(2, 2).half()}, "takes F32"),
        ("associative-narrowed", {"thresholds": T([[0.5, 0.5], [0.5, math.nan]])}, "thresholds holds NaN"),
        ("associative-narrowed", {"thresholds": T([[0.5, 0.5], [0.5, 1.5]])}, "of edit 1 are 0.5 and 1.5; a cosine"),
        ("associative-narrowed", {"thresholds": T([[-1.5, 0.5], [0.5, 0.5]])}, "of edit 0 are -1.5 and 0.5"),
        ("sparse", {"positions": T([0, 13, 96])}, "positions points to 96; it must lie in 0..95"),
        ("sparse", {"positions": T([-1, 13, 95])}, "points to -1"),
        ("sparse", {"positions": T([0, 13, 13])}, "increase strictly"),
        ("sparse", {"positions": T([13, 0, 95])}, "increase strictly"),
        ("sparse", {"values": T([1.0, 0.0, 2.0])}, "holds a zero"),
        ("sparse", {"values": T([1.0, 2.0])}, "its z must be 3"),
        ("neurons", {"activation": "os.system"}, "activation 'os.system'; it must be 'relu' or"),
        ("neurons", {"input_module": None}, "State the input_module"),
        ("neurons", {"biases": numbers(3)}, "its n must be 2"),
        ("neurons", {"values": numbers(2, M + 1)}, "its m must be 8"),
        ("neurons-gated", {"edit_index": T([0, 2])}, "points to 2"),
        ("codebook", {"radii": T([1.0, 0.0])}, "a radius is above 0"),
        ("codebook", {"radii": T([1.0, -1.0])}, "a radius is above 0"),
        ("codebook", {"positions": "first"}, "positions 'first'; it must be 'last' or 'every'"),
        ("sidememory-norm", {"threshold": None}, "threshold None; it must be a number above 0"),
        ("sidememory-norm", {"threshold": 0.0}, "threshold 0.0"),
        ("sidememory-norm", {"threshold": math.inf}, "threshold inf"),
        ("sidememory-norm", {"routing": "mask"}, "masks come with routing 'mask'"),
        ("sidememory-mask", {"routing": "norm"}, "masks come with routing 'mask'"),
        ("sidememory-mask", {"background": None}, "lacks background"),
        ("sidememory-mask", {"masks": T([[0, 3, 3], [1, 3, 11]])}, "increase strictly within each row"),
        ("sidememory-mask", {"masks": T([[0, 3, 12], [1, 3, 11]])}, "points to 12; it must lie in 0..11"),
        ("sidememory-mask", {"permutation": torch.zeros(D, dtype=torch.int64)}, "must name every index once"),
        ("facts-lexical", {"threshold": 1.5}, "a similarity is at most 1"),
        ("facts-lexical", {"scope": "remote"}, "scope 'remote'"),
        ("facts-lexical", {"answer": "model"}, "needs answer_model"),
        ("facts-lexical", {"embeddings": numbers(2, 3)}, "has no embeddings"),
        ("facts-projection", {"projection": None}, "needs projection"),
        ("facts-projection", {"scale": -1.0}, "scale -1.0"),
        ("facts-model", {"scope_model": None}, "needs scope_model"),
    ],
)
def test_refused(name, changes, words):
    with pytest.raises(PatchFormatError) as caught:
        dataclasses.replace(EXAMPLES[name], **changes).validate(n_edits=2, where="h.0")
    assert words in str(caught.value) and "h.0" in str(caught.value)


def test_sparse_positions_are_bounded():
    with pytest.raises(LimitError, match="size z is 3"):
        EXAMPLES["sparse"].validate(n_edits=2, limits=Limits(max_nonzeros=2))
    with pytest.raises(LimitError, match="size d is 2,097,152"):
        Sparse(T([0]), T([1.0]), (1, 1 << 21)).validate(n_edits=2)


def test_sparse_is_the_dense_matrix_where_it_is_smaller():
    matrix = torch.zeros(M, D)
    matrix[0, 0], matrix[1, 1], matrix[7, 11] = 1.0, -2.0, 0.5
    sparse = Dense(matrix).smallest()
    assert isinstance(sparse, Sparse) and torch.equal(sparse.dense(), matrix)
    assert torch.equal(sparse.positions, EXAMPLES["sparse"].positions) and sparse.nbytes() < Dense(matrix).nbytes()
    third = torch.zeros(M, D).reshape(-1)
    third[: M * D // 3] = 1.0  # 12 bytes for every third entry are as many as 4 for each
    assert isinstance(Dense(third.reshape(M, D)).smallest(), Dense)
    assert isinstance(Dense(torch.zeros(M, D)).smallest(), Dense)  # a sparse delta holds at least one entry


@pytest.mark.parametrize(
    ("name", "rank", "flops"),
    [
        ("associative-narrowed", 2, 2 * (2 * (M + D) + 3 * D + 2 * 5 + 3 * D)),
        ("sparse", 3, 2 * 3),
        ("neurons", 2, 2 * 2 * (5 + M)),
        ("neurons-gated", 2, 2 * 2 * (2 * D + M)),
        ("codebook", 2, 2 * 2 * D),
        ("sidememory-norm", M, 2 * M * D),
        ("sidememory-mask", M, 2 * (M * D + 6)),
        ("facts-lexical", 0, 0),
        ("facts-projection", 0, 2 * (2 * 3 + 3 * D)),
    ],
)
def test_cost(name, rank, flops):
    delta = EXAMPLES[name]
    assert delta.cost() == (delta.nbytes(), rank, flops)


def test_a_patch_of_every_kind_comes_back(tmp_path):
    patch = every_kind()
    assert patch.manifest.format_version == 2
    again = Patch.load(patch.save(tmp_path / "p"))
    assert again == patch and again.manifest == patch.manifest
    assert again.files() == patch.files()


def test_the_lowest_version_that_can_say_it():
    assert make_patch().manifest.format_version == 1
    assert make_patch(provenance={"version": "0.1.0", "dirty": None, "datasets": []}).manifest.format_version == 1
    assert make_patch(provenance={"version": "0.1.0", "dirty": False}).manifest.format_version == 2


@pytest.mark.parametrize("fields", [("counter_keys", "counter_edit"), ("thresholds",)])
def test_what_narrows_a_gate_is_of_format_2(fields, tmp_path):
    rows = EXAMPLES["associative"]
    delta = dataclasses.replace(rows, **{name: getattr(EXAMPLES["associative-narrowed"], name) for name in fields})
    assert (rows.version, delta.version) == (1, 2)
    patch = make_patch(deltas={"model.layers.1.mlp.down_proj": delta})
    assert patch.manifest.format_version == 2
    again = Patch.load(patch.save(tmp_path / "p"))
    assert again == patch and again.files() == patch.files()


def test_whitened_keys_need_their_profile():
    with pytest.raises(PatchFormatError, match="nothing without profile_id"):
        path = "model.layers.1.mlp.down_proj"
        make_patch(deltas={path: EXAMPLES["associative-whitened"]})
