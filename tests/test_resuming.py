"""Pieces of work that outlive the process: found again to the bit whatever they are called and hold, and never believed when damaged."""

import pytest
import torch

from kedit_hub.editors.job import compute, states
from kedit_hub.resuming import kept_in

PIECE = {
    "change-0": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "loss": torch.tensor(float("inf")),
    "model.layers.0.mlp.down_proj/a": torch.randn(2, 2, generator=torch.Generator().manual_seed(1)).double(),
    "nothing": torch.zeros(0, 3),
    "the same": (SAME := torch.ones(2)),
    "again": SAME[:1],
    "said": torch.tensor([True, False]),
    "turned": torch.arange(6).reshape(2, 3).T,
}


def never():
    raise AssertionError("it was computed again")


def test_what_comes_back_is_what_was_computed(tmp_path):
    kept_in(tmp_path, {"n": 1})("epoch-0", lambda: PIECE)
    found = kept_in(tmp_path, {"n": 1})("epoch-0", never)
    assert found.keys() == PIECE.keys()
    for name, tensor in PIECE.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_other_work_is_not_found(tmp_path):
    kept_in(tmp_path, {"n": 1})("epoch-0", lambda: PIECE)
    for made_from, name in (({"n": 2}, "epoch-0"), ({"n": 1}, "epoch-1")):
        with pytest.raises(AssertionError, match="again"):
            kept_in(tmp_path, made_from)(name, never)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:50] + bytes([b[50] ^ 1]) + b[51:], lambda b: b""])
def test_a_damaged_piece_is_computed_anew(tmp_path, damage):
    kept_in(tmp_path, {"n": 1})("epoch-0", lambda: PIECE)
    (file,) = tmp_path.rglob("*.piece")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    other = {"loss": torch.tensor(1.0)}
    assert kept_in(tmp_path, {"n": 1})("epoch-0", lambda: other) is other
    assert torch.equal(kept_in(tmp_path, {"n": 1})("epoch-0", never)["loss"], other["loss"])


def test_work_that_fails_leaves_nothing(tmp_path):
    def fails():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept_in(tmp_path, {"n": 1})("epoch-0", fails)
    assert not list(tmp_path.rglob("*"))


def test_a_piece_can_be_asked_for_and_let_go(tmp_path):
    memo = kept_in(tmp_path, {"n": 1})
    assert not memo.holds("epoch-0")
    memo.forget("epoch-0")  # there is none
    memo("epoch-0", lambda: PIECE)
    assert memo.holds("epoch-0") and not memo.holds("epoch-1") and not kept_in(tmp_path, {"n": 2}).holds("epoch-0")
    (file,) = tmp_path.rglob("*.piece")
    file.write_bytes(file.read_bytes()[:-1])
    assert not memo.holds("epoch-0")
    memo.forget("epoch-0")
    assert not list(tmp_path.rglob("*.piece"))


def test_of_states_the_newest_is_kept(tmp_path):
    """A state holds all that the ones before it held; a memo that can let nothing go keeps them all."""
    names, memo = [f"at-{n}" for n in range(5)], kept_in(tmp_path, {"n": 1})
    worked = []

    def work(number):
        if number == 3 and len(worked) == 3:
            raise KeyboardInterrupt
        worked.append(number)
        return {"n": torch.tensor(number)}

    found = states(memo, names, work)
    assert [int(next(found)["n"]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyboardInterrupt):
        next(found)
    assert [file.name for file in tmp_path.rglob("*.piece")] == ["at-2.piece"]
    memo("at-0", lambda: PIECE)  # left behind where the process was killed between two files
    worked.append("again")
    assert [int(state["n"]) for state in states(memo, names, work)] == [2, 3, 4]
    assert worked == [0, 1, 2, "again", 3, 4] and [file.name for file in tmp_path.rglob("*.piece")] == ["at-4.piece"]
    assert [int(state["n"]) for state in states(compute, names, work)] == [0, 1, 2, 3, 4]
