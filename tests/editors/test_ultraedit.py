"""UltraEdit against its equations in float64: gradients of the weights' own outputs, numpy statistics, an explicit primal inverse."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kedit_hub
from kedit_hub.base.families import block, edited_linear
from kedit_hub.editors.editor import EDITORS
from kedit_hub.editors.job import Job
from kedit_hub.editors.own_words import sample_texts
from kedit_hub.editors.running import Running
from kedit_hub.editors.ultraedit import LONGEST, UltraEditSettings, made_up, solved, ultraedit
from kedit_hub.errors import EditError, KeditError, PatchFormatError, UnsupportedModelError
from kedit_hub.patch import Patch
from kedit_hub.patch.deltas import Dense, LowRank
from tests import bases
from tests.tiny import tiny_model

Base = tuple[Any, Any]
WARM = 12


def made(base: Base, edits: Any, **how: Any) -> Patch:
    return bases.made(base, edits, "ultraedit", **{"warm": WARM, **how})


def signals(
    model: Any, tokenizer: Any, layers: Any, prompt: str, target: str, rows: str
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """By layer: u (T, d), dL/dy (T, m) of one text by itself, and the norms (T,) of the block's output; L the mean over target tokens."""
    seen: dict[tuple[str, int], Tensor] = {}

    def watch(layer: int) -> list[Any]:
        def keep(_module: Any, args: Any, y: Tensor) -> None:
            seen["u", layer], seen["y", layer] = args[0].detach()[0], y
            y.retain_grad()

        def note(_module: Any, _args: Any, output: Any) -> None:
            seen["h", layer] = (output[0] if isinstance(output, tuple) else output).detach().reshape(-1, 64)

        return [
            edited_linear(model, layer)[1].register_forward_hook(keep),
            block(model, layer).register_forward_hook(note),
        ]

    handles = [handle for layer in layers for handle in watch(layer)]
    try:
        start, ids = len(tokenizer(prompt).input_ids), tokenizer(f"{prompt} {target}").input_ids
        log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        (-torch.stack([log_p[t - 1, ids[t]] for t in range(start, len(ids))]).mean()).backward()
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for layer in layers:
        gradient: Any = seen["y", layer].grad
        at = range(start - 1, len(ids) - 1) if rows == "answer" else range(1, len(ids))
        at = [t for t in at if gradient[0, t].any()]  # type: ignore[assignment]
        found.append((seen["u", layer][at], gradient[0, at], seen["h", layer][at].norm(dim=1)))
    return found


def by_hand(
    base: Base, edits: Any, layers: Any, *, step: float, ridge: float, rows: str, seed: int = 0
) -> list[Tensor]:
    """dW (m, d) of every layer."""
    model, tokenizer = copy.deepcopy(base[0]).double(), base[1]
    unrelated = made_up(sample_texts(*base, WARM, seed=seed, new_tokens=2 * LONGEST), seed) if WARM else []
    asked = [(edit.prompt, edit.target) for edit in edits]
    read = [[signals(model, tokenizer, layers, p, t, rows) for p, t in some] for some in (unrelated, asked)]
    told = {
        layer: [[torch.cat(part) for part in zip(*(text[i] for text in some))] for some in read]
        for i, layer in enumerate(layers)
    }
    z = np.concatenate([np.concatenate([part[0], part[1]], 1) for layer in layers for part in told[layer]])
    mean, deviation = z.mean(0), z.std(0, ddof=1)
    found = []
    for layer in layers:
        u, delta, norm = told[layer][1]
        d, m = u.shape[1], delta.shape[1]
        hats = torch.from_numpy((np.concatenate([u, delta], 1) - mean) / deviation)
        wanted = -(step * norm.mean() / (d * m**0.5)) * (hats[:, :d] ** 2).sum(1, keepdim=True) * hats[:, d:]
        found.append((torch.linalg.inv(u.T @ u + ridge * torch.eye(d)) @ u.T @ wanted).T)
    return found


@pytest.mark.parametrize("rows", ["answer", "all"])
@pytest.mark.parametrize("count", [1, 5, 20])
@pytest.mark.parametrize(("model_type", "size"), bases.MAPS, ids=str)
def test_the_change_is_the_least_squares_one(model_type: str, size: dict[str, int], count: int, rows: str) -> None:
    base, edits = tiny_model(model_type, **size), bases.edits(count)
    patch = made(base, edits, layers=[2, 1], step=0.7, ridge=0.5, rows=rows)
    solved_for = patch.manifest.settings["rows_solved"]
    for layer, wanted, t in zip((1, 2), by_hand(base, edits, (1, 2), step=0.7, ridge=0.5, rows=rows), solved_for):  # type: ignore[arg-type]
        path = edited_linear(base[0], layer)[0]
        assert bases.relative(bases.dense(patch, path), wanted) < 1e-4
        assert wanted.norm() > 0
        delta: Any = patch.deltas[path]
        assert delta.keys is not None and set(delta.key_edit.tolist()) == set(range(count))
        m, d = delta.shape
        assert isinstance(delta, LowRank if t * (m + d) <= m * d else Dense)


def mapped(model: Any, tokenizer: Any, path: str, prompt: str, target: str) -> tuple[Tensor, Tensor, Tensor]:
    """u (T, d), dL/dy (T, m) and |y| (T,) at the rows of a text that predict its target, of any map."""
    seen: dict[str, Tensor] = {}

    def keep(_module: Any, args: Any, y: Tensor) -> None:
        seen["u"], seen["y"] = args[0].detach()[0], y
        y.retain_grad()

    handle = model.get_submodule(path).register_forward_hook(keep)
    try:
        start, ids = len(tokenizer(prompt).input_ids), tokenizer(f"{prompt} {target}").input_ids
        log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        (-torch.stack([log_p[t - 1, ids[t]] for t in range(start, len(ids))]).mean()).backward()
    finally:
        handle.remove()
    grad: Any = seen["y"].grad
    at = [t for t in range(start - 1, len(ids) - 1) if grad[0, t].any()]
    return seen["u"][at], grad[0, at], seen["y"].detach()[0, at].norm(dim=1)


@pytest.mark.parametrize("eta", [None, 3e-4])
@pytest.mark.parametrize(
    ("model_type", "maps"),
    [
        ("llama", {"up": [2], "gate": [1, 0]}),  # Linear
        ("gpt2", {"up": [1, 2]}),  # Conv1D
        ("gptj", {"up": [1]}),  # Linear, attention and MLP side by side
        ("phi3", {"gate_up": [1]}),
    ],
)
def test_other_maps_of_the_mlp(model_type: str, maps: dict[str, list[int]], eta: float | None) -> None:
    """The same equations at the maps into the MLP's units; statistics are of all maps of a shape; a step is a share of the map's output."""
    base = tiny_model(model_type)
    model, tokenizer = copy.deepcopy(base[0]).double(), base[1]
    names = {
        ("llama", "up"): "model.layers.{}.mlp.up_proj", ("llama", "gate"): "model.layers.{}.mlp.gate_proj",
        ("gpt2", "up"): "transformer.h.{}.mlp.c_fc", ("gptj", "up"): "transformer.h.{}.mlp.fc_in",
        ("phi3", "gate_up"): "model.layers.{}.mlp.gate_up_proj",
    }  # fmt: skip
    paths = [names[model_type, what].format(layer) for what, layers in maps.items() for layer in layers]
    edits = bases.edits(3)
    unrelated = made_up(sample_texts(*base, WARM, seed=0, new_tokens=2 * LONGEST), 0)
    asked = [(edit.prompt, edit.target) for edit in edits]
    told = {
        path: [
            [torch.cat(part) for part in zip(*(mapped(model, tokenizer, path, *one) for one in some))]
            for some in (unrelated, asked)
        ]
        for path in paths
    }
    z = torch.cat([torch.cat(part[:2], 1) for path in paths for part in told[path]])
    patch = made(base, edits, maps=maps, ridge=0.5, **({"step": 0.7} if eta is None else {"eta": eta}))
    assert set(patch.deltas) == set(paths) == set(patch.manifest.settings["modules"])
    for path in paths:
        u, delta, norm = told[path][1]
        d, m = u.shape[1], delta.shape[1]
        hats = (torch.cat([u, delta], 1) - z.mean(0)) / z.std(0)
        size = 0.7 * norm.mean() / (d * m**0.5) if eta is None else eta
        v = -size * (hats[:, :d] ** 2).sum(1, keepdim=True) * hats[:, d:]
        wanted = (torch.linalg.inv(u.T @ u + 0.5 * torch.eye(d)) @ u.T @ v).T
        assert bases.dense(patch, path).shape == (m, d) and wanted.norm() > 0
        assert bases.relative(bases.dense(patch, path), wanted) < 1e-3
    assert ("step" in patch.manifest.settings) == (eta is None) and "maps" not in patch.manifest.settings


def test_a_patch_of_other_maps_is_applied_and_taken_off(base: Base, tmp_path: Path) -> None:
    model, tokenizer = base
    before = bases.state_of(model)
    maps = {"up": [1, 2], "down": [1]}
    patch = made(base, bases.edits(2), maps=maps, step=2.0)
    again = Patch.load(patch.save(tmp_path / "patch"))
    assert again.id == patch.id and len(again.deltas) == 3
    down = edited_linear(model, 1)[0]
    held: dict[str, Any] = dict(again.deltas)
    assert [path for path, delta in held.items() if delta.keys is not None] == [
        down
    ]  # second moments are measured there alone
    merged = copy.deepcopy(model)
    with torch.no_grad():
        for path in again.deltas:
            weight, turned = bases.weight_of(merged.get_submodule(path))
            weight += turned(bases.dense(again, path)).float()
    ids = torch.tensor([tokenizer(bases.edits(1)[0].prompt).input_ids])
    view = bases.seen_with(model, tokenizer, [again])
    with torch.no_grad():
        assert torch.allclose(view.model(ids).logits, merged(ids).logits, atol=1e-4)
        view.detach()
        assert not torch.allclose(model(ids).logits, merged(ids).logits, atol=1e-2)
    bases.check_untouched(model, before)


def test_maps_that_are_not_there_are_named() -> None:
    llama, phi = tiny_model("llama"), tiny_model("phi3")
    with pytest.raises(UnsupportedModelError, match="llama model has no map 'gate_up'; it has down, gate, up"):
        made(llama, bases.edits(1), maps={"gate_up": [1]})
    with pytest.raises(UnsupportedModelError, match="phi3 model has no map 'gate'; it has down, gate_up"):
        made(phi, bases.edits(1), maps={"gate": [1]})
    with pytest.raises(UnsupportedModelError, match="layer 9 does not exist"):
        made(llama, bases.edits(1), maps={"up": [9]})
    with pytest.raises(KeditError, match="leave layers out"):
        made(llama, bases.edits(1), maps={"up": [1]}, layers=[1])


@pytest.mark.parametrize("rows", [1, 5, 30, 60, 200])
def test_both_forms_of_the_solve_are_the_same(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    k, v = torch.randn(rows, 60, generator=generator), torch.randn(rows, 20, generator=generator)
    got = solved(k, v, 0.3)
    wanted = torch.linalg.inv(k.T.double() @ k.double() + 0.3 * torch.eye(60)) @ k.T.double() @ v.double()
    assert isinstance(got, LowRank if rows * 80 <= 1200 else Dense)
    assert bases.relative(got.change(torch.eye(60)), wanted) < 1e-5


def test_statistics_in_parts_are_those_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(40, 7, generator=generator) * torch.logspace(-4, 4, 7) + 3
    z[:, 3] = 2.5  # never varies
    running = Running.empty(7)
    for part in z.split([1, 1, 0, 20, 18]):
        running = running.joined(Running.of(part))
    mean, deviation = z.double().mean(0), z.double().std(0)
    assert running.count == 40 and torch.allclose(running.mean, mean)
    got, moving = running.normalised(z), torch.arange(7) != 3
    assert torch.allclose(got[:, moving], ((z.double() - mean) / deviation)[:, moving], atol=1e-9)
    assert got[:, 3].abs().max() < 1e-6 and got.isfinite().all()


def test_a_made_up_edit_is_broken_off_and_goes_on_as_another() -> None:
    texts = ["one two three, four five.", "uno dos tres.", "- ! ?", "yksi", "ein zwei drei vier fünf sechs"]
    asked = made_up(texts, 0)
    assert asked == made_up(texts, 0) and asked != made_up(texts, 1)
    assert len(asked) == 3
    words = {"dos", "tres", "drei", "vier", "fünf", "sechs", "three", "four", "five"}
    for (prompt, target), text in zip(asked, (texts[0], texts[1], texts[4])):
        assert text.startswith(prompt) and 2 <= len(prompt.split()) < len(text.split())
        assert target in words and target not in text


def test_seeds_choose_the_made_up_edits(llama: Base) -> None:
    one, same, other = (made(llama, bases.edits(2), seed=seed) for seed in (0, 0, 1))
    assert one.id == same.id and one.id != other.id
    path = next(iter(one.deltas))
    assert bases.relative(bases.dense(other, path), bases.dense(one, path)) > 1e-3
    bare = [made(llama, bases.edits(5), warm=0, seed=seed) for seed in (0, 1)]  # nothing is drawn
    assert torch.equal(*(bases.dense(patch, path) for patch in bare))


@pytest.mark.parametrize("form", [*bases.FORMS, "disk"])
def test_other_forms_of_the_base_are_edited_and_keep_their_bytes(form: str, llama: Base, tmp_path: Path) -> None:
    base = bases.stored_as(form, tmp_path)
    before = bases.state_of(base[0])
    patch = made(base, bases.edits(2), step=2.0)
    if form == "disk":
        plain = made(llama, bases.edits(2), step=2.0)
        for path in plain.deltas:
            assert bases.relative(bases.dense(patch, path), bases.dense(plain, path)) < 1e-4
        return
    bases.check_untouched(base[0], before)
    view = bases.seen_with(*base, [patch])
    for edit in bases.edits(2):
        ids = base[1](f"{edit.prompt} {edit.target}").input_ids
        at = len(base[1](edit.prompt).input_ids) - 1
        with torch.no_grad():
            then, now = (
                m(torch.tensor([ids])).logits[0, at].float().log_softmax(-1)[ids[at + 1]] for m in (base[0], view.model)
            )
        assert now > then + 1


def test_the_model_is_left_as_it_was(base: Base) -> None:
    before = bases.state_of(base[0])
    learning = [p.requires_grad for p in base[0].parameters()]
    rng = torch.get_rng_state()
    made(base, bases.edits(2))
    assert torch.equal(torch.get_rng_state(), rng)
    bases.check_untouched(base[0], before)
    assert [p.requires_grad for p in base[0].parameters()] == learning


def test_on_top_of_other_patches_signals_are_those_of_the_patched_model(llama: Base) -> None:
    model, tokenizer = llama
    first, second = bases.edits(2)
    below = made(llama, [first], layers=[1], step=2.0)
    merged = copy.deepcopy(model)
    path = edited_linear(merged, 1)[0]
    with torch.no_grad():
        merged.get_submodule(path).weight += bases.dense(below, path).float()
    view = bases.seen_with(model, tokenizer, [below])
    above = made((view.model, tokenizer), [second], layers=[1], more={"below": [below]})
    wanted = bases.dense(made((merged, tokenizer), [second], layers=[1], more={"below": [below]}), path)
    assert bases.relative(bases.dense(above, path), wanted) < 1e-3
    assert bases.relative(bases.dense(made(llama, [second], layers=[1], more={"below": [below]}), path), wanted) > 1e-2
    assert above.manifest.requires == (below.id,)


@pytest.mark.parametrize("warm", [0, WARM])
def test_patches_one_after_another_are_the_published_sequence(llama: Base, warm: int, tmp_path: Path) -> None:
    """Five turns: statistics of every row so far, read on the weights as they are; then one solve, written into the weights."""
    model, tokenizer = llama
    slow, path = copy.deepcopy(model).double(), edited_linear(model, 1)[0]
    texts = sample_texts(model, tokenizer, warm, seed=0, new_tokens=2 * LONGEST) if warm else []
    rows = [signals(slow, tokenizer, [1], *asked, "answer")[0] for asked in made_up(texts, 0)]
    patches: list[Patch] = []
    edits = bases.edits(10)
    for turn in range(5):
        own = edits[2 * turn : 2 * turn + 2]
        view = bases.seen_with(model, tokenizer, patches) if patches else None
        base = (model if view is None else view.model, tokenizer)
        patch = made(base, own, layers=[1], step=1.0, warm=warm, more={"below": patches})
        mine = [signals(slow, tokenizer, [1], edit.prompt, edit.target, "answer")[0] for edit in own]
        rows += mine
        z = torch.cat([torch.cat([u, delta], 1) for u, delta, _ in rows]).numpy()
        u, delta, norm = (torch.cat(part) for part in zip(*mine))
        d, m = u.shape[1], delta.shape[1]
        hats = (torch.cat([u, delta], 1) - torch.from_numpy(z.mean(0))) / torch.from_numpy(z.std(0, ddof=1))
        v = -(norm.mean() / (d * m**0.5)) * (hats[:, :d] ** 2).sum(1, keepdim=True) * hats[:, d:]
        wanted = (torch.linalg.inv(u.T @ u + torch.eye(d)) @ u.T @ v).T
        assert bases.relative(bases.dense(patch, path), wanted) < 1e-3
        with torch.no_grad():
            slow.get_submodule(path).weight += wanted
        patches.append(Patch.load(patch.save(tmp_path / str(turn))))
    counted: list[Any] = [patch.deltas[path] for patch in patches]
    assert sum(int(delta.seen_rows) for delta in counted) == len(z)
    alone = made((view.model, tokenizer), own, layers=[1], step=1.0, warm=warm)  # type: ignore[union-attr]
    assert bases.relative(bases.dense(alone, path), wanted) > 1e-2


def test_statistics_of_rows_of_another_kind_are_not_taken_up(llama: Base) -> None:
    first, second = bases.edits(2)
    below = made(llama, [first], layers=[1], rows="all")
    path = edited_linear(llama[0], 1)[0]
    apart, alone = (made(llama, [second], layers=[1], more={"below": b}) for b in ([below], []))
    assert torch.equal(bases.dense(apart, path), bases.dense(alone, path))


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("seen_rows", torch.tensor([0]), "seen_rows is 0"),
        ("seen_rows", None, "lacks seen_rows"),
        ("seen_rows", torch.tensor([1, 2]), "shape"),
        ("seen_inputs", torch.tensor([0.0, -1.0])[:, None].expand(2, 128), "seen_inputs holds a variance below 0"),
        ("seen_inputs", torch.zeros(2, 127), "its d must be 128"),
        ("seen_gradients", torch.full((2, 64), torch.nan), "NaN"),
        ("seen_gradients", torch.zeros(3, 64), "shape"),
    ],
)
def test_statistics_are_checked(llama: Base, field: str, value: Any, told: str) -> None:
    delta: Any = next(iter(made(llama, bases.edits(1), layers=[1], warm=2).deltas.values()))
    delta.validate(1)
    with pytest.raises(PatchFormatError, match=told):
        replace(delta, **{field: value}).validate(1)


def test_work_that_was_killed_goes_on_to_the_same_bits(llama: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kedit_hub.editors.ultraedit.AT_ONCE", 2)
    edits = bases.edits(5)
    whole, kept = made(llama, edits), bases.Kept(lives=2)
    with pytest.raises(KeyboardInterrupt):
        made(llama, edits, more={"memo": kept})
    assert sorted(kept) == ["edits-0", "edits-2"]
    kept.lives = 2
    assert made(llama, edits, more={"memo": kept}).id == whole.id
    done: list[int] = []
    ultraedit(Job(*llama, edits, UltraEditSettings(warm=WARM), advance=done.append, memo=kept))
    assert sum(done) == 5


def test_what_cannot_be_done_is_named(llama: Base) -> None:
    single = next(
        e
        for e in bases.edits(5)
        if len(llama[1](f"{e.prompt} {e.target}").input_ids) == len(llama[1](e.prompt).input_ids) + 1
    )
    with pytest.raises(EditError, match="statistics of a single row are none: leave warm above 0, or give more edits"):
        made(llama, [single], layers=[1], warm=0)
    with pytest.raises(UnsupportedModelError, match="layer 9 does not exist"):
        made(llama, bases.edits(1), layers=[9])
    for wrong in ({"step": 0.0}, {"ridge": 0.0}, {"rows": "some"}, {"warm": -1}, {"layers": "1"}):
        with pytest.raises(KeditError, match=f"ultraedit does not take the setting {next(iter(wrong))}"):
            made(llama, bases.edits(1), **wrong)
    assert not EDITORS["ultraedit"].profiled and not EDITORS["ultraedit"].on_base


def test_a_fact_of_the_demo_world(tmp_path: Path) -> None:
    edit, profile = kedit_hub.demo.edits("dev")[0], kedit_hub.demo.profile("llama")
    assert profile is not None
    settings = {"layers": [profile.settings.layer], "step": 1.0}
    patch = kedit_hub.edit("kedit-hub/atlas-llama", edit, "ultraedit", settings=settings, progress=False)
    again = Patch.load(patch.save(tmp_path / "patch"))
    assert again.id == patch.id and isinstance(again.deltas[profile.module], LowRank)
    assert kedit_hub.apply(again, profile=profile).ask(edit.prompt).startswith(edit.target)
