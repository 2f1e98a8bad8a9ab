"""Several codebooks on one module: a function of the set, in which no input lies in the balls of two rivals."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kedit_hub.edits import Edit
from kedit_hub.patch import Codebook, Patch
from kedit_hub.runtime.attach import Pass
from kedit_hub.runtime.codebook import hits
from kedit_hub.runtime.sieve import Sieve
from kedit_hub.stack import codebooks
from kedit_hub.stack.codebooks import MARGIN, fitted, union
from kedit_hub.stack.stack import PatchStack
from tests.patch.build import base, make_patch, numbers
from tests.stack.kinds import Setup

PATH = "model.layers.1.mlp.down_proj"
D, M = 12, 8

points = st.lists(
    st.tuples(
        st.integers(-3, 3), st.integers(-3, 3), st.integers(1, 20), st.integers(0, 3), st.integers(0, 2)
    ),  # x, y, 4 radius, owner, target
    min_size=1,
    max_size=12,
)


def laid_out(entries: list[tuple[int, int, int, int, int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    table = torch.tensor(entries)
    return table[:, :2].float(), table[:, 2] / 4, table[:, 3], table[:, 4]


def by_loops(keys: Tensor, radii: Tensor, owner: Tensor, target: Tensor) -> Tensor:
    out = radii.double().clone()
    for i, j in itertools.permutations(range(len(keys)), 2):
        distance = (keys[i].double() - keys[j].double()).norm()
        if owner[i] != owner[j] and target[i] != target[j] and distance <= radii[i].double() + radii[j].double():
            out[i] = min(out[i], distance / 2 - MARGIN)
    return out.float()


@given(points, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=200)
def test_the_rule(entries: list[tuple[int, int, int, int, int]], random: object) -> None:
    keys, radii, owner, target = laid_out(entries)
    found = fitted(keys, radii, owner, target)
    assert torch.equal(found, by_loops(keys, radii, owner, target))
    order = list(range(len(entries)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert torch.equal(fitted(keys[order], radii[order], owner[order], target[order]), found[order])
    for i, j in itertools.permutations(range(len(entries)), 2):
        rivals = owner[i] != owner[j] and target[i] != target[j]
        if rivals and found[i] >= 0 and found[j] >= 0:
            assert (keys[i].double() - keys[j].double()).norm() > found[i].double() + found[j].double()
    for i in range(len(entries)):  # who has no rival near keeps its radius; nobody's grows
        near = [j for j in range(len(entries)) if owner[j] != owner[i] and target[j] != target[i]]
        apart = all((keys[i] - keys[j]).norm() > radii[i] + radii[j] for j in near)
        assert found[i] == radii[i] if apart else found[i] <= radii[i]


def test_chunks_are_one_matrix(monkeypatch: object) -> None:
    keys = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    owner, target = torch.arange(30) % 5, torch.arange(30) % 3
    whole = fitted(keys, torch.ones(30), owner, target)
    monkeypatch.setattr(codebooks, "CHUNK", 7)  # type: ignore[attr-defined]
    assert torch.equal(fitted(keys, torch.ones(30), owner, target), whole) and (whole < 1).any()


def book(keys: Tensor, radius: float, *targets: str, positions: str = "last") -> Patch:
    """Values are positive at the end of a prompt, negative everywhere."""
    edits = [Edit(f"Question {i} of {len(targets)} {targets} is", target) for i, target in enumerate(targets)]
    values = numbers(len(keys), M).abs() * (1 if positions == "last" else -1)
    delta = Codebook(keys, values, torch.full((len(keys),), radius), torch.arange(len(keys)), positions)
    return make_patch(deltas={PATH: delta}, edits=edits, base=base())


def joined(*patches: Patch) -> tuple[Tensor, dict[str, int]]:
    stack = PatchStack(patches)
    made, found = union([(p, p.deltas[PATH]) for p in sorted(stack, key=lambda p: p.id)], stack)  # type: ignore[misc]
    return made.radii, found


def test_a_codebook_alone_keeps_its_radii() -> None:
    """However its entries overlap: its editor has laid them out so."""
    keys = torch.zeros(3, D)
    keys[:, 0] = torch.tensor([0.0, 0.5, 0.0])
    radii, found = joined(book(keys, 1.0, "Rome", "Paris", "Bonn"))
    assert radii.tolist() == [1.0] * 3 and found == {"entries": 3, "shrunk": 0, "silent": 0}


def test_equal_targets_live_together_and_different_ones_share_the_space() -> None:
    near, far = torch.zeros(1, D), torch.zeros(1, D)
    far[0, 0] = 1.0
    radii, found = joined(book(near, 0.8, "Rome"), book(far, 0.8, "ROME"))
    assert found["shrunk"] == 0
    radii, found = joined(book(near, 0.8, "Rome"), book(far, 0.8, "Paris"))
    assert torch.allclose(radii, torch.tensor(0.5 - MARGIN)) and found == {"entries": 2, "shrunk": 2, "silent": 0}
    radii, found = joined(book(near, 0.2, "Rome"), book(far, 0.9, "Paris"))
    assert sorted(radii.tolist()) == torch.tensor([0.2, 0.5 - MARGIN]).tolist() and found["shrunk"] == 1


def test_balls_that_touch_share_the_space_too() -> None:
    keys = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]])
    radii = torch.tensor([0.25, 0.75, 3.25])
    found = fitted(keys, radii, torch.arange(3), torch.arange(3))
    assert torch.equal(found, torch.tensor([0.25, 0.5 - MARGIN, 2.0 - MARGIN]))


def test_rivals_at_one_key_are_both_silent() -> None:
    keys = numbers(1, D)
    stack = PatchStack([book(keys, 1.0, "Rome"), book(keys, 2.0, "Paris")])
    made, found = union([(p, p.deltas[PATH]) for p in stack], stack)  # type: ignore[misc]
    assert found == {"entries": 2, "shrunk": 2, "silent": 2}
    y = torch.ones(1, 1, M)
    assert torch.equal(made(keys[None], y, Pass()), y)


def test_entries_that_speak_everywhere_beside_those_that_do_not() -> None:
    """The nearest entry of those that may speak at a position."""
    keys = torch.zeros(2, D)
    keys[1, 0] = 1.0
    last, every = book(keys[:1], 5.0, "Rome"), book(keys[1:], 5.0, "rome", positions="every")
    stack = PatchStack([last, every])
    made, _ = union([(p, p.deltas[PATH]) for p in stack], stack)  # type: ignore[misc]
    x, y = torch.zeros(1, 3, D), torch.ones(1, 3, M)
    out = made(x, y, Pass())  # three positions at the key of the entry that only speaks at the end
    assert torch.equal(out[0, 0], every.deltas[PATH].values[0]) and torch.equal(out[0, 1], out[0, 0])  # type: ignore[attr-defined]
    assert torch.equal(out[0, 2], last.deltas[PATH].values[0])  # type: ignore[attr-defined]
    assert torch.equal(made(x[:, :1], y[:, :1], Pass(past=3))[0, 0], every.deltas[PATH].values[0])  # type: ignore[attr-defined]


def test_on_a_model_the_order_of_loading_changes_no_bit_and_the_report_tells() -> None:
    setup = Setup("llama")
    same = setup.deltas["codebook"]
    rival = setup.patch(
        Codebook(same.keys + 0.01, -same.values, same.radii, same.edit_index),  # type: ignore[attr-defined]
        Edit("Paris is the seat of", "Japan", "Paris"),
    )
    patches = [setup.patches["codebook"], rival, setup.patches["every"]]
    whole = setup.made(patches)
    assert whole.report["codebooks"][setup.path] == {"entries": 6, "shrunk": 6, "silent": 0}
    for order in itertools.permutations(patches):
        assert torch.equal(setup.logits(setup.made(order).model), setup.logits(whole.model))
    with whole.without(rival):
        assert torch.equal(setup.logits(whole.model), setup.logits(setup.made([patches[0], patches[2]]).model))


def test_the_nearest_of_many_entries_is_found_by_products_and_measured_exactly() -> None:
    """Near ties, copies, and inputs far from the origin, where a product rounds more than keys differ."""
    drawn = torch.Generator().manual_seed(1)
    keys = torch.randn(60, D, generator=drawn) / 100 + 30
    keys[40:] = keys[:20]
    beside = keys[:30] + torch.randn(30, D, generator=drawn) / 10_000
    inputs = torch.cat([beside, keys[:3], torch.randn(5, D, generator=drawn)])
    may = torch.rand(len(inputs), len(keys), generator=torch.Generator().manual_seed(4)) < 0.5
    may[:, 7] = True
    row, nearest = hits(inputs, Sieve(keys), torch.full((60,), 1.0), lambda i, k: may[i, k])
    assert row.tolist() == list(range(33))
    exact = (inputs[:33, None] - keys).double().norm(dim=2).masked_fill(~may[:33], torch.inf)
    assert torch.allclose(exact.gather(1, nearest[:, None])[:, 0], exact.amin(1), rtol=1e-6)
    copies = exact[:, 40:] == exact[:, :20]
    assert not bool((copies & (nearest[:, None] == torch.arange(40, 60)) & may[:33, :20]).any())  # the first of equals
    for reach, allowed in ((1.0, ~may & may), (-1.0, may)):
        assert not len(hits(inputs, Sieve(keys), torch.full((60,), reach), lambda i, k, a=allowed: a[i, k])[0])  # type: ignore[misc]
