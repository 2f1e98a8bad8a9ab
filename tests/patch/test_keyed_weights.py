"""Keys of weight changes: what they add to the format, what is refused, and D x against loops."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from kedit_hub.errors import PatchFormatError
from kedit_hub.patch import Dense, LowRank, Patch, Sparse
from tests.patch.build import PATHS, D, M, make_patch, numbers
from tests.patch.kinds import EXAMPLES

KEYED = ("lowrank-keyed", "dense-keyed", "sparse-keyed")
T = torch.tensor


def matrix(delta: Any) -> list[list[float]]:
    """D (m, d), entry by entry."""
    match delta:
        case LowRank():
            a, b = delta.a.tolist(), delta.b.tolist()
            return [[sum(b[i][r] * a[r][j] for r in range(len(a))) for j in range(D)] for i in range(M)]
        case Dense():
            return [[float(entry) for entry in row] for row in delta.delta]
        case Sparse():
            found = dict(zip(delta.positions.tolist(), delta.values.tolist()))
            return [[found.get(i * D + j, 0.0) for j in range(D)] for i in range(M)]
    raise AssertionError(delta)


@pytest.mark.parametrize("name", KEYED)
def test_change_is_the_matrix_times_the_input(name: str) -> None:
    delta: Any = EXAMPLES[name]
    x = numbers(5, D, scale=0.25)
    rows = matrix(delta)
    for moved, key in zip(delta.change(x).tolist(), x.tolist(), strict=True):
        assert moved == pytest.approx([sum(w * k for w, k in zip(row, key)) for row in rows])
    assert delta.change(x).dtype == torch.float64 and delta.change(x).shape == (5, M)


@pytest.mark.parametrize("name", KEYED)
def test_keys_need_format_two_and_their_absence_does_not(name: str) -> None:
    keyed: Any = EXAMPLES[name]
    plain = replace(keyed, keys=None, key_edit=None)
    if name != "sparse-keyed":  # sparse is of format 2 by itself
        assert make_patch(deltas={PATHS[0]: plain}).manifest.format_version == 1 == plain.version
    patch = make_patch(deltas={PATHS[0]: keyed})
    assert patch.manifest.format_version == 2 == keyed.version
    assert Patch.from_files(patch.files()) == patch != make_patch(deltas={PATHS[0]: plain})


@pytest.mark.parametrize("name", KEYED)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key_edit": None}, "lacks key_edit: keys, key_edit come together"),
        ({"keys": None}, "lacks keys: keys, key_edit come together"),
        ({"keys": numbers(1, D + 1), "key_edit": T([0])}, "its d must be 12"),
        ({"keys": numbers(2, D).half(), "key_edit": T([0, 0])}, "keys has dtype torch.float16"),
        ({"keys": numbers(2, D), "key_edit": T([0, 2])}, "key_edit points to 2; it must lie in 0..1"),
        ({"keys": numbers(2, D), "key_edit": T([0])}, "its k must be 2"),
        ({"keys": numbers(18, D), "key_edit": T([0] + [1] * 17)}, "keys holds 17 keys of edit 1; at most 16 are taken"),
        ({"keys": numbers(0, D), "key_edit": torch.zeros(0, dtype=torch.int64)}, "must be (k, d)"),
    ],
)
def test_refused(name: str, changes: dict[str, Any], words: str) -> None:
    delta: Any = EXAMPLES[name]
    with pytest.raises(PatchFormatError) as caught:
        replace(delta, **changes).validate(n_edits=2, where="h.0")
    assert words in str(caught.value)


def test_the_smaller_form_keeps_the_keys() -> None:
    delta = torch.zeros(M, D)
    delta[0, 0] = 1.0
    smaller = Dense(delta, numbers(1, D), T([0])).smallest()
    assert isinstance(smaller, Sparse) and smaller.keys is not None and smaller.keys.equal(numbers(1, D))
    assert smaller.key_edit is not None and smaller.key_edit.tolist() == [0]
