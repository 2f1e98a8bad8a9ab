"""FT, FT-L, FT-M and LocFT against Adam written out by hand on a float64 copy of the model, whose weights are really changed."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

import kedit_hub
from kedit_hub.base.families import edited_linear
from kedit_hub.editors.editor import EDITORS
from kedit_hub.editors.finetune import FinetuneSettings, FTLSettings, LocFTSettings, Training, finetune, truncated
from kedit_hub.editors.job import Job
from kedit_hub.edits import Edit
from kedit_hub.errors import EditFailedError, KeditError, ProfileError, UnsupportedModelError
from kedit_hub.patch import Patch
from kedit_hub.patch.deltas import Dense, LowRank
from kedit_hub.resuming import kept_in
from tests import bases
from tests.tiny import tiny_model

EOS = "<|eos|>"
METHODS = ("ft", "ft-l", "ft-m", "locft")
PATHS = {"llama": "model.layers.2.mlp.down_proj", "gpt2": "transformer.h.2.mlp.c_proj"}  # at two thirds of three layers
Base = tuple[Any, Any]


def made(base: Base, edits: Any, method: str = "ft-m", **how: Any) -> Patch:
    return bases.made(base, edits, method, **how)


def nll(model: Any, tokenizer: Any, edit: Edit, objective: str, end: str) -> Tensor:
    """-log p of the target's tokens, from its definition, one text by itself."""
    prompt = tokenizer(edit.prompt).input_ids
    ids = tokenizer(f"{edit.prompt} {edit.target}").input_ids + ([tokenizer.eos_token_id] if end else [])
    log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    at = range(len(prompt), len(ids))
    before = [len(prompt) - 1 if objective == "prompt-last" else t - 1 for t in at]
    return -torch.stack([log_p[b, ids[t]] for b, t in zip(before, at)]).mean()


def trained_by_hand(
    base: Base, edits: Any, orders: Any, *, objective: str = "target", end: str = EOS, lr: float, bound: float = torch.inf,
    stop: float = 0.0, layers: Any = (2,),
) -> list[Tensor]:  # fmt: skip
    """dW (m, d) float64 of every layer. orders: of every pass, its batches."""
    model, tokenizer = copy.deepcopy(base[0]).double(), base[1]
    blocks = model.model.layers if model.config.model_type == "llama" else model.transformer.h
    modules = [blocks[i].mlp.down_proj if hasattr(blocks[i].mlp, "down_proj") else blocks[i].mlp.c_proj for i in layers]
    weights = [module.weight for module in modules]
    old = [weight.detach().clone() for weight in weights]
    mean, square, step = [torch.zeros_like(w) for w in old], [torch.zeros_like(w) for w in old], 0
    for order in orders:
        total = 0.0
        for batch in order:
            loss = torch.stack([nll(model, tokenizer, edits[i], objective, end) for i in batch]).mean()
            total += loss.item() * len(batch) / len(edits)
            if loss < stop:
                continue
            step += 1
            for i, gradient in enumerate(torch.autograd.grad(loss, weights)):
                mean[i] = 0.9 * mean[i] + 0.1 * gradient
                square[i] = 0.999 * square[i] + 0.001 * gradient**2
                with torch.no_grad():
                    rate = (square[i] / (1 - 0.999**step)).sqrt() + 1e-8
                    weights[i] -= lr * mean[i] / (1 - 0.9**step) / rate
                    weights[i].copy_(old[i] + (weights[i] - old[i]).clamp(-bound, bound))
        if total < stop:
            break
    changes = [(weight - before).detach() for weight, before in zip(weights, old)]
    return [c.T if isinstance(module, Conv1D) else c for c, module in zip(changes, modules)]


@pytest.mark.parametrize("count", [1, 5, 20])
@pytest.mark.parametrize("method", ["ft", "ft-l", "ft-m"])
@pytest.mark.parametrize(("model_type", "size"), bases.MAPS, ids=str)
def test_one_batch_is_trained_as_by_hand(model_type: str, size: dict[str, int], method: str, count: int) -> None:
    base, edits, passes = tiny_model(model_type, **size), bases.edits(count), 2 if count == 20 else 4
    told: dict[str, Any] = {"lr": 1e-3} | ({"norm_bound": 1.5e-3} if method == "ft-l" else {})
    told |= {"answer_end": EOS} if method == "ft-m" else {}
    patch = made(base, edits, method, epochs=passes, stop_loss=0.0, **told)
    (wanted,) = trained_by_hand(
        base, edits, [[range(count)]] * passes, objective="target" if method == "ft-m" else "prompt-last",
        end=EOS if method == "ft-m" else "", lr=1e-3, bound=told.get("norm_bound", torch.inf),
    )  # fmt: skip
    got = bases.dense(patch, PATHS[model_type])
    assert bases.relative(got, wanted) < 1e-4
    if method == "ft-l":
        assert got.abs().max() <= 1.5e-3 * (1 + 1e-6) and (got.abs() == got.abs().max()).sum() > 100


def test_several_layers_are_trained_together(base: Base) -> None:
    edits = bases.edits(2)
    patch = made(base, edits, layers=[2, 0], lr=1e-3, epochs=4, answer_end=EOS)
    wanted = trained_by_hand(base, edits, [[range(2)]] * 4, lr=1e-3, layers=(0, 2))
    for layer, change in zip((0, 2), wanted):
        assert bases.relative(bases.dense(patch, edited_linear(base[0], layer)[0]), change) < 1e-4


@pytest.mark.parametrize(("count", "batch"), [(1, 1), (5, 2), (20, 8)])
@pytest.mark.parametrize(("model_type", "size"), bases.MAPS, ids=str)
def test_breadth_first_in_the_order_of_the_seed(model_type: str, size: dict[str, int], count: int, batch: int) -> None:
    base, path, passes = tiny_model(model_type, **size), PATHS[model_type], 2 if count == 20 else 4
    edits = bases.edits(count)
    settings = {"lr": 1e-3, "epochs": passes, "batch": batch, "answer_end": EOS, "stop_loss": 0.0}
    generator = torch.Generator().manual_seed(3)
    orders = [
        [part.tolist() for part in torch.randperm(count, generator=generator).split(batch)] for _ in range(passes)
    ]
    (wanted,) = trained_by_hand(base, edits, orders, lr=1e-3)
    got = bases.dense(made(base, edits, "locft", seed=3, **settings), path)
    assert bases.relative(got, wanted) < 1e-4
    if count > 1:
        assert orders[0] != orders[1]
        assert torch.equal(got, bases.dense(made(base, edits, "locft", seed=3, **settings), path))
        assert bases.relative(bases.dense(made(base, edits, "locft", seed=4, **settings), path), wanted) > 1e-2


def test_it_stops_when_the_loss_is_low_and_skips_batches_that_are(llama: Base) -> None:
    edits = bases.edits(3)
    settings = {"lr": 0.03, "epochs": 30, "answer_end": EOS, "stop_loss": 0.5}
    (one_batch,) = trained_by_hand(llama, edits, [[range(3)]] * 30, lr=0.03, stop=0.5)
    assert bases.relative(bases.dense(made(llama, edits, **settings), PATHS["llama"]), one_batch) < 1e-3
    (one_by_one,) = trained_by_hand(llama, edits, [[[0], [1], [2]]] * 30, lr=0.03, stop=0.5)
    got = made(llama, edits, batch=1, **settings)
    assert bases.relative(bases.dense(got, PATHS["llama"]), one_by_one) < 1e-3
    assert got.evals is not None and got.evals["making"]["nll"] < 1.0


def test_large_batches_add_up_their_gradients(llama: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"lr": 1e-3, "epochs": 3, "answer_end": ""}
    whole = bases.dense(made(llama, bases.edits(5), **settings), PATHS["llama"])
    monkeypatch.setattr("kedit_hub.editors.finetune.AT_ONCE", 2)
    assert bases.relative(bases.dense(made(llama, bases.edits(5), **settings), PATHS["llama"]), whole) < 1e-4


def test_paraphrases_are_examples_of_their_own(llama: Base) -> None:
    apart = [Edit("The capital of Spain is", "Bonn"), Edit("Spain has the capital", "Bonn")]
    together = [Edit("The capital of Spain is", "Bonn", paraphrases=("Spain has the capital",))]
    settings = {"lr": 1e-3, "epochs": 3, "answer_end": ""}
    one, two = (bases.dense(made(llama, edits, **settings), PATHS["llama"]) for edits in (apart, together))
    assert torch.equal(one, two)


@pytest.mark.parametrize("method", METHODS)
def test_the_edited_model_says_the_targets(llama: Base, method: str) -> None:
    edits = [e for e in bases.edits(5) if e.target in bases.CITIES[:3]][:2]
    patch = made(llama, edits, method, **({"norm_bound": 0.05} if method == "ft-l" else {}))
    assert patch.evals is not None and patch.manifest.provenance.seed == 0
    view = bases.seen_with(*llama, [patch])
    said = kedit_hub.evaluate(view, edits, protocols=("tf-token",), drift_texts=[]).protocols["tf-token"]
    assert (
        said["reliability"]
        == patch.evals["making"]["value_success"]
        == (1.0 if method in ("ft-m", "locft") else said["reliability"])
    )
    for delta in patch.deltas.values():
        assert delta.keys is not None and delta.key_edit is not None and set(delta.key_edit.tolist()) == {0, 1}  # type: ignore[attr-defined]


def test_the_automatic_step_and_bound_are_for_the_width(base: Base) -> None:
    width = base[0].get_submodule(PATHS[base[0].config.model_type]).weight.shape
    d = width[0] if base[0].config.model_type == "gpt2" else width[1]
    patch = made(base, bases.edits(1), "ft-l", epochs=1)
    assert patch.manifest.settings["lr"] == FTLSettings.LR / d
    assert patch.manifest.settings["norm_bound"] == FTLSettings.BOUND / d
    (change,) = (bases.dense(patch, path) for path in patch.deltas)
    assert change.abs().max() == pytest.approx(FTLSettings.LR / d, rel=1e-4)  # Adam's first step
    assert "norm_bound" not in made(base, bases.edits(1), "ft-m", epochs=1).manifest.settings
    assert made(base, bases.edits(1), lr=0.25, epochs=1).manifest.settings["lr"] == 0.25


@pytest.mark.parametrize("form", bases.FORMS)
def test_other_forms_of_the_base_are_edited_and_keep_their_bytes(form: str, tmp_path: Path) -> None:
    base = bases.stored_as(form, tmp_path)
    before = bases.state_of(base[0])
    for method in ("ft-l", "locft"):
        made(base, bases.edits(2), method, epochs=3)
    patch = made(base, bases.edits(2), "ft-m", answer_end="")
    bases.check_untouched(base[0], before)
    assert patch.evals is not None and patch.evals["making"]["value_success"] == 1.0
    view = bases.seen_with(*base, [patch])
    scores = kedit_hub.evaluate(view, bases.edits(2), protocols=("tf-token",), drift_texts=[])
    assert scores.protocols["tf-token"]["reliability"] == 1.0


def test_a_base_on_disk_is_trained_like_any_other(llama: Base, tmp_path: Path) -> None:
    settings = {"lr": 1e-3, "epochs": 4, "answer_end": EOS}
    plain = bases.dense(made(llama, bases.edits(2), **settings), PATHS["llama"])
    away = made(bases.stored_as("disk", tmp_path), bases.edits(2), **settings)
    assert bases.relative(bases.dense(away, PATHS["llama"]), plain) < 1e-4


def test_the_model_is_left_as_it_was(base: Base) -> None:
    before = bases.state_of(base[0])
    learning = [p.requires_grad for p in base[0].parameters()]
    for method in METHODS:
        made(base, bases.edits(2), method, epochs=2)
    with pytest.raises(EditFailedError, match=r"ran away at lr=1e\+30: .* Take a smaller lr"):
        made(base, bases.edits(2), lr=1e30)
    bases.check_untouched(base[0], before)
    assert [p.requires_grad for p in base[0].parameters()] == learning


def test_on_top_of_other_patches_it_is_trained_as_on_their_weights(base: Base) -> None:
    model, tokenizer = base
    first, second = bases.edits(2)
    path = PATHS[model.config.model_type]
    settings = {"lr": 1e-3, "epochs": 5, "answer_end": EOS}
    below = made(base, [first], **settings)
    merged = copy.deepcopy(model)
    weight, turned = bases.weight_of(merged.get_submodule(path))
    with torch.no_grad():
        weight += turned(bases.dense(below, path)).float()
    wanted = bases.dense(made((merged, tokenizer), [second], **settings), path)
    view = bases.seen_with(model, tokenizer, [below])
    above = made((view.model, tokenizer), [second], more={"below": [below]}, **settings)
    assert bases.relative(bases.dense(above, path), wanted) < 1e-4
    assert bases.relative(bases.dense(made(base, [second], **settings), path), wanted) > 1e-2
    assert above.manifest.requires == (below.id,)


@pytest.mark.parametrize("method", ["ft-m", "locft"])
def test_a_training_that_was_killed_goes_on_to_the_same_bits(llama: Base, method: str) -> None:
    edits = bases.edits(5)
    settings = {"lr": 1e-3, "epochs": 40, "stop_loss": 0.0, "answer_end": ""}
    settings |= {"batch": 2, "epochs": 20} if method == "locft" else {}
    whole = made(llama, edits, method, **settings)
    kept = bases.Kept(lives=2)
    with pytest.raises(KeyboardInterrupt):
        made(llama, edits, method, more={"memo": kept}, **settings)
    done = list(kept)
    kept.lives = 1000
    again = made(llama, edits, method, more={"memo": kept}, **settings)
    assert len(done) == 2 < len(kept) and again.id == whole.id
    assert torch.equal(bases.dense(again, PATHS["llama"]), bases.dense(whole, PATHS["llama"]))


@pytest.mark.parametrize("killed_at", [1, 7, 20, 37])
def test_a_training_on_disk_is_one_file_and_loses_a_few_batches(
    llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    """Eight batches a pass, five passes, four batches a piece: killed within a pass, and where one ends."""
    edits, settings = bases.edits(16), {"lr": 1e-3, "epochs": 5, "batch": 2, "stop_loss": 0.0, "answer_end": ""}
    monkeypatch.setattr("kedit_hub.editors.finetune.PIECE", 4)
    whole = made(llama, edits, "locft", **settings)
    done, step = 0, Training._step

    def counted(*args: Any) -> float:
        nonlocal done
        if done == killed_at:
            raise KeyboardInterrupt
        done += 1
        assert len(list(tmp_path.rglob("*"))) <= 2  # the folder, and the newest state
        return step(*args)

    monkeypatch.setattr(Training, "_step", counted)
    with pytest.raises(KeyboardInterrupt):
        made(llama, edits, "locft", more={"memo": kept_in(tmp_path, {})}, **settings)
    kept = [file.name for file in tmp_path.rglob("*.piece")]
    assert kept == ([f"batch-{killed_at // 4 * 4 - 4}.piece"] if killed_at >= 4 else [])
    done, killed_at = 0, 1000
    again = made(llama, edits, "locft", more={"memo": kept_in(tmp_path, {})}, **settings)
    assert again.id == whole.id and done == 40 - (int(kept[0][6:-6]) + 4 if kept else 0)
    assert [file.name for file in tmp_path.rglob("*.piece")] == ["batch-36.piece"]
    done = 0
    assert made(llama, edits, "locft", more={"memo": kept_in(tmp_path, {})}, **settings).id == whole.id and not done


def test_pieces_change_no_result(llama: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped where a pass has a low loss, wherever a piece ends."""
    edits, settings = bases.edits(5), {"lr": 0.03, "epochs": 30, "batch": 2, "stop_loss": 0.5, "answer_end": EOS}
    found = []
    for piece in (1, 2, 5, 1000):
        monkeypatch.setattr("kedit_hub.editors.finetune.PIECE", piece)
        kept = bases.Kept()
        found.append(made(llama, edits, "locft", more={"memo": kept}, **settings))
        last = list(kept.values())[-1]
        assert int(last["at"]) % 3 == 0 and int(last["at"]) < 90 and float(last["loss"]) < 0.5  # at the end of a pass
    assert len({patch.id for patch in found}) == 1


def test_progress_counts_the_edits(llama: Base) -> None:
    for told in ({"epochs": 40}, {"epochs": 40, "lr": 0.02, "stop_loss": 3.0}):
        done: list[int] = []
        finetune(Job(*llama, bases.edits(3), FinetuneSettings(**told), advance=done.append))
        assert sum(done) == 3 and min(done) >= 0


def test_the_end_of_the_answer_is_what_the_base_says(llama: Base) -> None:
    """The tiny model says nothing in particular after an answer; the demo model, a full stop."""
    assert made(llama, bases.edits(1), epochs=1).manifest.settings["answer_end"] in ("", ".", "\n", EOS)
    with pytest.raises(KeditError, match=r'answer_end is learnt after the target: take objective="target"'):
        made(llama, bases.edits(1), "ft", answer_end=".")
    assert made(llama, bases.edits(1), "ft", epochs=1).manifest.settings["answer_end"] == ""


def test_a_rank_is_cut_where_text_does_not_see_it() -> None:
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(24, 40, generator=generator)
    x = torch.randn(500, 40, generator=generator) * torch.logspace(0, -2, 40)
    c = (x.T @ x / 500).double()
    values, vectors = torch.linalg.eigh(c + 1e-3 * c.diagonal().mean() * torch.eye(40))
    root, inverse = (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T
    u, s, v = torch.linalg.svd(change.double() @ root)
    wanted = u[:, :5] * s[:5] @ v[:5] @ inverse
    got = truncated(change, c, 5)
    assert isinstance(got, LowRank) and got.a.shape == (5, 40)
    assert bases.relative(got.b @ got.a, wanted) < 1e-4


def test_a_patch_of_a_given_rank(llama: Base) -> None:
    width = llama[0].config.intermediate_size
    moments = {"moments": lambda path: torch.eye(width)}
    settings = {"lr": 1e-3, "epochs": 4, "answer_end": ""}
    whole = made(llama, bases.edits(2), **settings).deltas[PATHS["llama"]]
    low = made(llama, bases.edits(2), rank=3, more=moments, **settings).deltas[PATHS["llama"]]
    assert isinstance(whole, Dense) and isinstance(low, LowRank) and low.keys is not None
    u, s, v = torch.linalg.svd(whole.delta.double())
    assert bases.relative(low.b @ low.a, u[:, :3] * s[:3] @ v[:3]) < 1e-4
    with pytest.raises(ProfileError, match=r"second moment at model\.layers\.2\.mlp\.down_proj is not known"):
        made(llama, bases.edits(2), rank=3, **settings)


def test_what_cannot_be_done_is_named(llama: Base) -> None:
    with pytest.raises(UnsupportedModelError, match="layer 9 does not exist: this model has layers 0 to 2"):
        made(llama, bases.edits(1), layers=[9])
    for wrong in ({"layers": []}, {"layers": [-1]}, {"lr": 0.0}, {"epochs": 0}, {"objective": "sense"}, {"speed": 1}):
        with pytest.raises(KeditError, match=f"ft-m does not take the setting {next(iter(wrong))}"):
            made(llama, bases.edits(1), **wrong)


def test_the_rows_of_the_table() -> None:
    for method in METHODS:
        assert not EDITORS[method].profiled and not EDITORS[method].on_base
    assert LocFTSettings().shuffle and LocFTSettings().batch == 100


def test_a_fact_of_the_demo_world(tmp_path: Path) -> None:
    edit, profile = kedit_hub.demo.edits("dev")[0], kedit_hub.demo.profile("llama")
    assert profile is not None
    settings = {"layers": [profile.settings.layer]}  # where a profile is at hand, to be applied without measuring one
    patch = kedit_hub.edit("kedit-hub/atlas-llama", edit, "ft-m", settings=settings, progress=False)
    assert patch.manifest.settings["answer_end"] == "." and patch.manifest.profile_id is None
    again = Patch.load(patch.save(tmp_path / "patch"))
    assert again.id == patch.id
    m = kedit_hub.apply(again, profile=profile)
    assert m.ask(edit.prompt).startswith(edit.target)
