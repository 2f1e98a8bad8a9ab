"""Weights written layer by layer against a slow reference: texts one by one, unpadded, the weights of a copy really changed, every change
by the formula its paper prints, in float64 and with a plain inverse."""

import copy
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from kedit_hub.base.families import block_path, edited_linear
from kedit_hub.base.moments import second_moments
from kedit_hub.base.profile import BaseProfile, ValueSettings
from kedit_hub.base.signals import capture
from kedit_hub.editors.editor import make_patch
from kedit_hub.editors.rows import context_rows
from kedit_hub.editors.values import optimise_values
from kedit_hub.edits import Edit
from kedit_hub.errors import EditFailedError, KeditError
from kedit_hub.patch import Dense, LowRank, Patch
from kedit_hub.resuming import kept_in
from tests import bases
from tests.profiles import EDITS, logits, patched, profile_of, texts
from tests.tiny import tiny_model

VALUE = ValueSettings(steps=2, lr=0.8, clamp=2.0)  # Adam blows up rounding: few steps, or nothing could be compared
SUBJECT_EDITS = (
    Edit("The capital of France", "Rome", "France", paraphrases=("In France",)),
    Edit("The mother tongue of Marie Curie", "Paris", "Marie Curie"),
    Edit("The author of Hamlet", "Bonn", "Hamlet"),
)
RIDGE = 1e-3  # rho of the second moment, relative to its mean eigenvalue


@dataclass(eq=False)
class Base:
    model: Any
    tokenizer: Any
    profile: BaseProfile
    moments: dict[str, Tensor]


def base_of(model_type: str, **size: int) -> Base:
    model, tokenizer = tiny_model(model_type, **size)
    paths = [edited_linear(model, i)[0] for i in range(2)]
    moments, _ = second_moments(model, tokenizer, texts(), paths)
    contexts = ("Rome lies in Italy.", "They speak of Berlin.")
    return Base(model, tokenizer, profile_of(model, tokenizer, layer=1, contexts=contexts), moments)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest) -> Base:
    return base_of(request.param)


@pytest.fixture(scope="module", params=bases.MAPS, ids=str)
def any_map(request: pytest.FixtureRequest) -> Base:
    model_type, size = request.param
    return base_of(model_type, **size)


def made(base: Base, method: str, edits: Any, site: Any, below: Any = (), memo: Any = None, **settings: Any) -> Patch:
    settings = {"value": {**VALUE.model_dump(), "kl": 0.0, "eased": False}, "failed": "drop", **settings}
    return make_patch(
        base.model, base.tokenizer, edits, base.profile.replace(site=site), method=method, settings=settings,
        base=("tiny/base", None), below=below, moments=lambda path: base.moments[path], progress=False,
        **({} if memo is None else {"memo": memo}),
    )  # fmt: skip


def matrix(delta: Any) -> Tensor:
    return delta.delta.double() if isinstance(delta, Dense) else delta.b.double() @ delta.a.double()


class Seen(Exception):
    """The layers above need not run."""


@cache
def read_untouched(base: Base, site: Any) -> dict[Any, Tensor]:
    """What was read of the model as it came, for all who ask that again."""
    return {}


class Slow:
    """The same by hand on a float64 copy of the model whose weights are changed for real."""

    def __init__(self, base: Base, site: Any):
        self.model, self.base, self.site = copy.deepcopy(base.model).double(), base, site
        self.profile = base.profile.replace(site=site)
        self.before = {path: self._weight(path).clone() for path in base.moments}
        self.known = read_untouched(base, site)

    def _weight(self, path: str) -> Tensor:
        module = self.model.get_submodule(path)
        return module.weight.T if isinstance(module, Conv1D) else module.weight

    def change(self, path: str) -> Tensor:
        return self._weight(path) - self.before[path]

    def write(self, path: str, delta: Tensor) -> None:
        with torch.no_grad():
            self._weight(path).add_(delta)
        self.known = {}

    def values(self, edits: Any, layer: int, attention: bool, value: ValueSettings = VALUE) -> list[Any]:
        """By edit: (S, m) values that the optimiser finds on the model as it is, in float32 and one batch; it has a test of its own."""
        model = copy.deepcopy(self.model).float()
        rows = context_rows(self.base.tokenizer, edits, self.profile.settings.contexts, self.site)
        whole, under = block_path(model, layer), block_path(model, layer - 1) if layer else None
        seen = capture(model, [p for p in (whole, under) if p], rows.encoded, outputs=True)
        below = None if not attention else seen[under] if under else torch.zeros_like(seen[whole])
        values = optimise_values(model, layer, rows, seen[whole], value, answer_site=self.site == "answer", below=below)
        counts = (rows.sites[rows.bare] >= 0).sum(1).tolist()
        told = zip(values.delta, counts, values.success.tolist())
        return [delta[:sites].double() if success else None for delta, sites, success in told]

    def read(self, text: str, prompt: str, edit: Edit, path: str, output: bool) -> Tensor:
        """(S, width) at the edit's sites in one text."""
        asked = (text, prompt, edit.subject, path, output)
        if asked not in self.known:
            self.known[asked] = self._read(text, prompt, edit, self.model.get_submodule(path), output)
        return self.known[asked]

    def _read(self, text: str, prompt: str, edit: Edit, module: Any, output: bool) -> Tensor:
        seen: list[Tensor] = []

        def keep(_module: Any, args: Any, out: Any) -> None:
            seen.append((out[0] if isinstance(out, tuple) else out)[0] if output else args[0][0])
            raise Seen

        handle = module.register_forward_hook(keep)
        with torch.no_grad(), suppress(Seen):
            self.model(torch.tensor([self.base.tokenizer(text).input_ids]))
        handle.remove()
        if self.site == "subject":
            cut = prompt.find(str(edit.subject)) + len(str(edit.subject))
            at = [len(self.base.tokenizer(prompt[:cut]).input_ids) - 1]
        else:
            start = len(self.base.tokenizer(prompt).input_ids) - 1
            at = list(range(start, len(self.base.tokenizer(text).input_ids) - 1))
        return seen[0][at]

    def prompts(self, edit: Edit) -> list[str]:
        contexts = [f"{c} {edit.prompt}" for c in self.profile.settings.contexts]
        return [p for p in [edit.prompt, *contexts, *edit.paraphrases] if self.site == "answer" or edit.subject in p]

    def key(self, edit: Edit, path: str, bare_weight: float | None) -> Tensor:
        """(S, d) mean over contexts."""
        keys = [self.read(f"{p} {edit.target}", p, edit, path, False) for p in self.prompts(edit)]
        if bare_weight is None:
            return torch.stack(keys).mean(0)
        return bare_weight * keys[0] + (1 - bare_weight) * torch.stack(keys[1:]).mean(0)

    def standing(self, edit: Edit, layer: int, attention: bool) -> Tensor:
        path = edited_linear(self.model, layer)[0] if attention else block_path(self.model, layer)
        return self.read(f"{edit.prompt} {edit.target}", edit.prompt, edit, path, True)

    def c0(self, path: str) -> Tensor:
        c0 = self.base.moments[path].double()
        return c0 + RIDGE * c0.diagonal().mean() * torch.eye(len(c0), dtype=torch.float64)


def lam_of(keys: Tensor, s: Tensor) -> float:
    """g / (lam + g) = .95 of the median key."""
    own = (keys * (keys @ s)).sum(1)
    return own.median().item() * 0.05 / 0.95


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """(E, S, m) of every time that an editor has values optimised, as soon as they are."""
    seen: list[Tensor] = []

    def noted(*args: Any, **more: Any) -> Any:
        values = optimise_values(*args, **more)
        seen.append(values.delta.double())
        return values

    monkeypatch.setattr("kedit_hub.editors.spread.optimise_values", noted)
    return seen


def agreed(found: Tensor, own: Sequence[Tensor]) -> list[Tensor]:
    """By edit: (S, m) of the values (E, S, m) that an editor found, which are our own but for rounding.

    Adam's first step is the sign of the gradient: a number whose gradient is next to nothing goes where rounding sends it, and which
    processor it is decides. So one edit may have such numbers, and formulas are compared on the values that the editor had.
    """
    values = [delta[: len(value)] for delta, value in zip(found, own, strict=True)]
    off = [((value - wanted).norm() / wanted.norm()).item() for value, wanted in zip(values, own)]
    assert max(off) < 0.3 and sum(one > 1e-4 for one in off) <= 1
    return values


def close(found: Tensor, wanted: Tensor) -> None:
    assert wanted.norm() > 0
    assert ((found - wanted).norm() / wanted.norm()).item() < 1e-4


TWO = {"layers": [0, 1]}
CASES: list[tuple[str, Any, dict[str, Any]]] = [
    ("emmet", "answer", {}),
    ("emmet", "subject", {}),
    ("memit-spread", "subject", TWO),
    ("pmet", "answer", {}),
    ("pmet", "answer", TWO),
    ("pmet-spread", "subject", TWO),
    ("alphaedit", "answer", {}),
    ("alphaedit", "answer", TWO),
    ("alphaedit-spread", "subject", TWO),
]
ANSWERS = (("capital", "Rome"), ("language", "German"), ("author", "Ludwig van Beethoven"), ("city", "Paris"))
NAMES = (
    "France", "Spain", "Italy", "Japan", "Hamlet", "Switzerland", "Brazil", "Germany", "Zürich", "Madrid", "French", "Darrieux",
    "Beethoven", "Japanese", "Eiffel", "Curie", "Shakespeare", "Marie", "Paulo", "Berlin",
)  # fmt: skip


def many(site: str) -> list[Edit]:
    """Twenty edits whose values all take, with more rows (of answers) than fit into the factors of a square map.

    At the subject a value of VALUE gets one token said and no second one; and subjects are all different, since edits of one, made one
    after the other, tear at the same key until the model is worn out.
    """
    if site == "answer":
        return [Edit(f"The {what} of {name} is", answer, name) for what, answer in ANSWERS for name in NAMES[:5]]
    first = Edit("The city of France", "Rome", "France", paraphrases=("In France",))
    return [first, *(Edit(f"The city of {name}", bases.CITIES[i % 3], name) for i, name in enumerate(NAMES[1:], 1))]


@cache
def untouched_values(base: Base, site: str, layer: int, attention: bool) -> list[Any]:
    """Of `many`, on the model as it came."""
    return Slow(base, site).values(many(site), layer, attention)


@pytest.mark.parametrize("count", [1, 5, 20])
@pytest.mark.parametrize(("method", "site", "settings"), CASES, ids=str)
def test_changes_are_those_of_the_published_formulas(
    any_map: Base, method: str, site: Any, settings: dict[str, Any], count: int, found: list[Tensor]
) -> None:
    base, edits = any_map, many(site)[:count]
    layers = settings.get("layers", [1])
    attention = root = method.startswith("pmet")
    bare_weight = None if method == "emmet" else 0.5
    slow = Slow(base, site)
    patch = made(base, method, edits, site, **(settings | ({"null_rank": 0.5} if "alpha" in method else {})))
    values = agreed(found[0], untouched_values(base, site, layers[-1], attention)[:count])
    targets = [slow.standing(edit, layers[-1], attention) + value for edit, value in zip(edits, values)]
    assert patch.edits == tuple(edits)
    for i, layer in enumerate(layers):
        path = edited_linear(slow.model, layer)[0]
        k = torch.cat([slow.key(edit, path, bare_weight) for edit in edits])  # (n, d)
        missing = torch.cat([t - slow.standing(edit, layers[-1], attention) for edit, t in zip(edits, targets)])
        left = len(layers) - i
        r = missing / (left**0.5 if root else left)
        c0 = slow.c0(path)
        if "alpha" in method:
            delta = alphaedit(base, path, k, r)
        elif method == "emmet":
            s = torch.linalg.inv(lam_of(k, torch.linalg.inv(c0)) * c0)
            delta = r.T @ torch.linalg.inv(k @ s @ k.T + 0.1 * torch.eye(len(k))) @ k @ s  # EMMET, with its ridge of .1
        else:
            delta = memit(c0, k, r)
        told: Any = patch.deltas[path]
        close(matrix(told), delta)
        assert torch.allclose(told.keys.double(), k, atol=1e-4)
        m, d = delta.shape
        assert isinstance(told, LowRank if len(k) * (m + d) <= m * d else Dense)  # whichever is fewer numbers
        slow.write(path, delta)


def memit(c0: Tensor, k: Tensor, r: Tensor) -> Tensor:
    """(m, d) of keys (n, d) and what is missing (n, m): MEMIT, eq. 14."""
    return r.T @ k @ torch.linalg.inv(lam_of(k, torch.linalg.inv(c0)) * c0 + k.T @ k)


def alphaedit(base: Base, path: str, k: Tensor, r: Tensor) -> Tensor:
    """The same: AlphaEdit, eq. 13, on half of the dimensions."""
    vectors = torch.linalg.eigh(base.moments[path].double())[1]
    p = vectors[:, : len(vectors) // 2] @ vectors[:, : len(vectors) // 2].T
    l2 = lam_of(k, p)  # of P / L2: the published L2, whatever the scale
    return (torch.linalg.inv(p @ k.T @ k + l2 * torch.eye(len(p))) @ p @ k.T @ r).T


@pytest.mark.parametrize("method", ["rome-published", "r-rome"])
def test_one_edit_after_the_other(any_map: Base, method: str, found: list[Tensor]) -> None:
    base, edits = any_map, many("subject")[::-1]  # in this order no u . k of a bare prompt comes near zero
    slow, path = Slow(base, "subject"), base.profile.module
    s = torch.linalg.inv(slow.c0(path))
    # no value goes on once its target is said: surer ones wear the model out before the twentieth
    enough = VALUE.model_copy(update={"stop_nll": 1e6})
    value = {**enough.model_dump(), "kl": 0.0, "eased": False}
    patches = {count: made(base, method, edits[:count], "subject", value=value) for count in (20, 5, 1)}
    values, own = torch.cat(found[:20]), []
    for count, edit in enumerate(edits, 1):
        own += slow.values([edit], 1, False, enough)
        mean = slow.key(edit, path, None)[0]
        bare = slow.read(f"{edit.prompt} {edit.target}", edit.prompt, edit, path, False)[0]
        met = bare if method == "rome-published" else mean
        u = s @ mean  # ROME, eq. 2: the change is (v* - W k) u^T / (u . k)
        slow.write(path, torch.outer(values[count - 1, 0], u) / (u @ met))
        if patch := patches.get(count):
            assert patch.edits == tuple(edits[:count])
            close(matrix(patch.deltas[path]), slow.change(path))
    agreed(values, own)


@pytest.mark.parametrize("count", [1, 5, 20])
@pytest.mark.parametrize("method", ["memit-blue", "alphaedit-blue"])
def test_blue_writes_two_layers_with_a_value_for_each(
    any_map: Base, method: str, count: int, found: list[Tensor]
) -> None:
    base, edits = any_map, many("subject")[:count]
    slow, null = Slow(base, "subject"), method == "alphaedit-blue"
    patch = made(base, method, edits, "subject", **TWO, **({"null_rank": 0.5} if null else {}))
    assert patch.edits == tuple(edits)
    for layer in (0, 1):
        path = edited_linear(slow.model, layer)[0]
        values = slow.values(edits, 1, False) if layer else untouched_values(base, "subject", 0, False)[:count]
        k = torch.cat([slow.key(edit, path, 0.5) for edit in edits])
        r = torch.cat(agreed(found[layer], values))
        delta = alphaedit(base, path, k, r) if null else memit(slow.c0(path), k, r)
        close(matrix(patch.deltas[path]), delta)
        slow.write(path, delta)


def test_keys_of_the_patches_below_must_not_move(base: Base) -> None:
    first = made(base, "alphaedit", EDITS[:2], "answer", null_rank=0.5)
    with_history, without = (
        made(base, "alphaedit", EDITS[2:], "answer", below=[first], null_rank=0.5, history=history)
        for history in (True, False)
    )
    path = base.profile.module
    kept = first.deltas[path]
    assert isinstance(kept, LowRank) and kept.keys is not None and with_history.manifest.requires == (first.id,)
    past = kept.keys.double()
    held, free = (matrix(patch.deltas[path]) for patch in (with_history, without))
    assert (held @ past.T).norm() < 0.5 * (free @ past.T).norm()
    slow = Slow(base, "answer")
    k = torch.cat([slow.key(edit, path, 0.5) for edit in EDITS[2:]])
    r = torch.cat(slow.values(EDITS[2:], 1, False))
    vectors = torch.linalg.eigh(base.profile.second_moment.double())[1][:, : k.shape[1] // 2]
    p = vectors @ vectors.T
    system = p @ (k.T @ k + past.T @ past) + lam_of(k, p) * torch.eye(len(p))
    close(held, (torch.linalg.inv(system) @ p @ k.T @ r).T)  # AlphaEdit, eq. 14, with K_p


def test_keys_that_must_not_move_take_no_room(base: Base) -> None:
    """Twenty edits below, and rows that ask for nothing: the factors are of the rank of those that ask."""
    below = made(base, "alphaedit", many("answer"), "answer", null_rank=0.5)
    path, edits = base.profile.module, EDITS[2:3]
    patch = made(base, "alphaedit", edits, "answer", below=[below], null_rank=0.5)
    (values,) = Slow(base, "answer").values(edits, 1, False)
    delta = patch.deltas[path]
    assert isinstance(delta, LowRank) and below.deltas[path].keys is not None  # type: ignore[attr-defined]
    assert len(delta.a) == delta.b.shape[1] == int(values.any(1).sum())
    assert torch.linalg.matrix_rank(matrix(delta), rtol=1e-5) == len(delta.a)


def test_a_killed_run_goes_on_bit_for_bit(base: Base, tmp_path: Any) -> None:
    class Killed(Exception):
        pass

    count = 0

    def dies(name: str, work: Any) -> Any:
        nonlocal count
        if count == 2:
            raise Killed
        count += 1
        return kept_in(tmp_path, {"n": 1})(name, work)

    with pytest.raises(Killed):
        made(base, "emmet", EDITS, "answer", memo=dies, at_once=1)
    asked: list[str] = []

    def goes_on(name: str, work: Any) -> Any:
        def noted() -> Any:
            asked.append(name)
            return work()

        return kept_in(tmp_path, {"n": 1})(name, noted)

    again = made(base, "emmet", EDITS, "answer", memo=goes_on, at_once=1)
    assert asked == ["edits-2", "edits-3"]
    assert again.id == made(base, "emmet", EDITS, "answer", at_once=1).id


@pytest.mark.parametrize(
    ("method", "settings", "pieces"),
    [
        ("emmet", {}, 4),
        ("pmet", {}, 4),
        ("alphaedit", {"null_rank": 0.5, **TWO}, 4),
        ("alphaedit", {"null_rank": 0.5, "split": "whole", **TWO}, 8),  # BLUE: a value for each of two layers
    ],
)
def test_a_run_that_was_killed_among_its_values_loses_one_batch(
    base: Base, tmp_path: Any, method: str, settings: Any, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimised: list[int] = []

    def counted(*args: Any, **more: Any) -> Any:
        if len(optimised) == killed_at:
            raise KeyboardInterrupt
        optimised.append(args[2].edits)
        return optimise_values(*args, **more)

    monkeypatch.setattr("kedit_hub.editors.spread.optimise_values", counted)
    killed_at = pieces - 1
    with pytest.raises(KeyboardInterrupt):
        made(base, method, EDITS, "answer", memo=kept_in(tmp_path, {}), batch_edits=1, **settings)
    assert len(list(tmp_path.rglob("*.piece"))) == len(optimised) == pieces - 1
    killed_at = 1000
    again = made(base, method, EDITS, "answer", memo=kept_in(tmp_path, {}), batch_edits=1, **settings)
    assert optimised == [1] * pieces  # none was found twice
    assert again.id == made(base, method, EDITS, "answer", batch_edits=1, **settings).id
    optimised.clear()
    assert made(base, method, EDITS, "answer", memo=kept_in(tmp_path, {}), batch_edits=1, **settings).id == again.id
    assert not optimised


def told(patch: Patch) -> dict[str, Any]:
    assert patch.evals is not None
    return patch.evals["making"]


@pytest.mark.parametrize("method", ["emmet", "pmet", "alphaedit"])
def test_what_came_of_the_edits_is_asked_of_the_changed_model(base: Base, method: str) -> None:
    patch = made(base, method, EDITS, "answer", **({"null_rank": 0.5} if method == "alphaedit" else {}))
    slow = Slow(base, "answer")
    for path, delta in patch.deltas.items():
        slow.write(path, matrix(delta))
    unsaid, losses = [], []
    for edit in patch.edits:
        ids = torch.tensor([base.tokenizer(f"{edit.prompt} {edit.target}").input_ids])
        known = len(base.tokenizer(edit.prompt).input_ids)
        with torch.no_grad():
            log_p = slow.model(ids).logits[0].log_softmax(-1)[known - 1 : -1]
        losses.append(-log_p[torch.arange(len(log_p)), ids[0, known:]].mean().item())
        if not torch.equal(log_p.argmax(-1), ids[0, known:]):
            unsaid.append(edit.prompt)
    found = told(patch)
    assert found["unsaid"] == unsaid and found["said"] == pytest.approx(1 - len(unsaid) / len(patch.edits))
    assert found["said_nll"] == pytest.approx(sum(losses) / len(losses), rel=1e-3)


@pytest.mark.parametrize("bad", [0, 1])
def test_of_two_values_the_worse_is_told(base: Base, bad: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """BLUE has one at its first layer and one at its last."""

    def worse_at_one(model: Any, layer: int, *args: Any, **more: Any) -> Any:
        values = optimise_values(model, layer, *args, **more)
        if layer != bad:
            return replace(
                values, unfinished=torch.zeros_like(values.unfinished), contexts=torch.ones(1), nll=torch.zeros(1)
            )
        ends = torch.ones(1, dtype=torch.bool)
        return replace(
            values,
            nll=torch.full((1,), 7.5),
            contexts=torch.tensor([0.25]),
            norm=torch.full((1,), 9.0),
            clamped=ends,
            unfinished=ends,
        )

    monkeypatch.setattr("kedit_hub.editors.spread.optimise_values", worse_at_one)
    found = told(made(base, "emmet", EDITS[:1], "answer", split="whole", **TWO))
    assert (found["nll"], found["value_norm"], found["context_success"]) == (7.5, 9.0, 0.25)
    assert found["not_converged"] == [EDITS[0].prompt]
    assert found["unconverged"] == [
        {
            "prompt": EDITS[0].prompt,
            "value_norm": 9.0,
            "nll": 7.5,
            "contexts": 0.25,
            "at_clamp": True,
            "out_of_steps": True,
        }
    ]


def test_what_solving_again_takes_is_recorded(base: Base) -> None:
    keyed = made(base, "alphaedit", EDITS[:2], "answer", null_rank=0.5, **TWO)
    said: Any = keyed.manifest.settings
    slow = Slow(base, "answer")
    assert said["contexts"] == list(base.profile.settings.contexts) and said["alone_fit"] == 0.95
    assert said["null_share"] == [0.5, 0.5]
    c0 = base.moments[edited_linear(base.model, 0)[0]].double()
    vectors = torch.linalg.eigh(c0)[1][:, : len(c0) // 2]
    k = torch.cat([slow.key(edit, edited_linear(slow.model, 0)[0], 0.5) for edit in EDITS[:2]])
    mean = c0.diagonal().mean() * (1 + RIDGE)  # S is of this scale, see kedit_hub.stack.preconditioner
    assert len(said["lam_used"]) == 2
    assert said["lam_used"][0] == pytest.approx(lam_of(k, vectors @ vectors.T / mean), rel=1e-4)
    given = made(base, "emmet", EDITS[:2], "answer", lam=3.0).manifest.settings
    assert given["lam_used"] == [3.0] and not {"alone_fit", "null_share"} & set(given)
    alone, bare = (
        made(base, method, SUBJECT_EDITS, "subject") for method in ("r-rome", "rome-published")
    )  # one after the other: a lam each, and none at all
    one_each: Any = alone.manifest.settings["lam_used"]
    assert len(set(one_each)) == len(alone.edits) and "lam_used" not in bare.manifest.settings


def test_published_values_of_rome_are_bounded_by_what_the_map_says(base: Base) -> None:
    value = {"steps": 20, "lr": 50.0, "clamp": 3.0, "absolute": True, "kl": 0.0, "stop_nll": 0.0}
    edit, slow = SUBJECT_EDITS[0], Slow(base, "subject")
    of_map, of_block = (slow.standing(edit, 1, attention)[0].norm().item() for attention in (True, False))
    for method, unit in (("r-rome", of_map), ("memit-spread", of_block)):
        patch = make_patch(
            base.model, base.tokenizer, [edit], base.profile.replace(site="subject"), method=method, base=("tiny/base", None),
            settings={"value": value, "layers": [1]}, moments=lambda path: base.moments[path], progress=False,
        )  # fmt: skip
        assert told(patch)["value_norm"] == pytest.approx(3.0 * unit / of_block, rel=1e-3)
    assert not 0.9 < of_map / of_block < 1.1


def test_a_change_that_would_turn_the_map_around_is_not_written(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    from kedit_hub.editors import spread as module

    monkeypatch.setattr(module, "first_read", lambda slot, rows: torch.zeros(len(slot.edit), 1, dtype=torch.bool))
    mean = module.Slots.mean
    monkeypatch.setattr(module.Slots, "mean", lambda slot, x: -mean(slot, x))  # contexts that point the other way
    with pytest.raises(KeditError, match=r"divides by k \. u at .* not positive.*cosine -.*r-rome"):
        made(base, "rome-published", SUBJECT_EDITS[:1], "subject", failed="raise")
    with pytest.raises(KeditError, match="did not take"):
        made(base, "rome-published", SUBJECT_EDITS, "subject")
    monkeypatch.undo()
    monkeypatch.setattr(module, "RUNAWAY", 1e-3)
    with pytest.raises(
        KeditError, match=r'"The capital of France -> Rome" at .* typical singular values.*value\.clamp'
    ):
        made(base, "r-rome", SUBJECT_EDITS, "subject", failed="raise")
    sizes: list[float] = []
    refused = module._refused

    def second_of_three(job: Any, path: str, b: Tensor, edits: Any) -> None:
        sizes.append(b.norm().item() / base.model.get_submodule(path).weight.norm().item() * 8)  # sqrt of 64 outputs
        monkeypatch.setattr(module, "RUNAWAY", 1e-3 if edits[0] == SUBJECT_EDITS[1] else sizes[-1] * (1 + 1e-4))
        refused(job, path, b, edits)

    monkeypatch.setattr(module, "_refused", second_of_three)
    patch = made(base, "r-rome", SUBJECT_EDITS, "subject", value={**VALUE.model_dump(), "steps": 20, "kl": 0.0})
    assert len(sizes) == 3 and patch.edits == (SUBJECT_EDITS[0], SUBJECT_EDITS[2])
    assert told(patch)["dropped"] == [SUBJECT_EDITS[1].prompt]


@pytest.mark.parametrize("method", ["rome-published", "r-rome"])
def test_a_key_at_the_first_token_is_left_to_the_contexts(base: Base, method: str) -> None:
    """No tokenizer here puts a BOS token before a text, and this subject is one token."""
    assert len(base.tokenizer("Daniel").input_ids) == 1
    slow, path = Slow(base, "subject"), base.profile.module
    edit, enough = Edit("Daniel", "Bonn", "Daniel"), VALUE.model_copy(update={"steps": 20})
    (value,) = slow.values([edit], 1, False, enough)
    prefixed = [slow.read(f"{p} {edit.target}", p, edit, path, False)[0] for p in slow.prompts(edit)[1:]]
    mean = torch.stack(prefixed).mean(0)
    u = torch.linalg.inv(slow.c0(path)) @ mean
    patch = made(base, method, [edit], "subject", value={**enough.model_dump(), "kl": 0.0})
    close(matrix(patch.deltas[path]), torch.outer(value[0], u) / (u @ mean))


def test_the_model_is_left_as_it_was(base: Base) -> None:
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    made(base, "pmet", EDITS[:2], "answer", **TWO)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.model.state_dict().items())
    hooks = [h for m in base.model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    assert not hooks and not any("forward" in vars(m) for m in base.model.modules())


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_alphaedit_with_the_numbers_as_published(model_type: str) -> None:
    """dW^T = (P K K^T + L2 I)^-1 P K R^T, P of the eigenvalues below tau (Fang et al. 2025): no unit of our own in between."""
    model, tokenizer = tiny_model(model_type)
    profile = profile_of(model, tokenizer, layer=1)
    base = Base(model, tokenizer, profile, {profile.module: profile.second_moment.double()})
    slow, edits = Slow(base, "answer"), many("answer")[:4]
    told = [(e, v) for e, v in zip(edits, slow.values(edits, 1, False)) if v is not None]
    values, vectors = torch.linalg.eigh(base.moments[profile.module])
    tau = float(values[len(values) // 2 : len(values) // 2 + 2].mean())
    p = vectors[:, values < tau] @ vectors[:, values < tau].T
    k = torch.cat([slow.key(edit, profile.module, 0.5) for edit, _ in told])
    r = torch.cat([value for _, value in told])
    for l2 in (0.1, 10.0):
        patch = made(base, "alphaedit", edits, "answer", null_threshold=tau, l2=l2)
        delta = (torch.linalg.inv(p @ k.T @ k + l2 * torch.eye(len(p))) @ p @ k.T @ r).T
        close(matrix(patch.deltas[profile.module]), delta)
        assert (patch.manifest.settings["l2"], patch.manifest.settings["null_threshold"]) == (l2, tau)


def test_what_a_patch_does_is_what_was_written(base: Base) -> None:
    patch = made(base, "emmet", EDITS[:2], "answer")
    slow = Slow(base, "answer")
    for path, delta in patch.deltas.items():
        slow.write(path, matrix(delta))
    m = patched(base.model, base.tokenizer, base.profile, [patch])
    got, wanted = (logits(model, base.tokenizer, [edit.prompt for edit in EDITS]) for model in (m.model, slow.model))
    assert torch.allclose(got.double(), wanted, atol=1e-4)


def test_what_cannot_be_is_refused(base: Base) -> None:
    for settings, said in (
        ({"layers": [1, 0]}, "ascending"),
        ({"layers": [0, 9]}, "from 0 to 2"),
        ({"keys": "bare"}, "at_once=1"),
        ({"null_rank": 0.001}, "is empty"),
        ({"value": {"kl": 0.1}}, "subject site"),
        ({"omega": -1.0}, "omega=-1.0"),
    ):
        with pytest.raises(KeditError, match=said):
            made(base, "alphaedit", EDITS[:1], "answer", **settings)
    with pytest.raises(EditFailedError, match="did not take at layers 1"):
        made(base, "emmet", EDITS[:1], "answer", failed="raise", value={"steps": 1, "lr": 1e-6})
