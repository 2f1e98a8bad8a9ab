"""Knowledge neurons against integrated gradients by a plain loop, step by step and token by token, in float64."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kedit_hub
from kedit_hub.base.families import edited_linear
from kedit_hub.base.tokens import Encoded, encode
from kedit_hub.editors.editor import EDITORS
from kedit_hub.editors.job import Job
from kedit_hub.editors.neurons import NeuronSettings, attributions, neurons
from kedit_hub.edits import Edit
from kedit_hub.errors import EditFailedError, KeditError, UnsupportedModelError
from kedit_hub.patch import Patch
from kedit_hub.patch.deltas import Sparse
from tests import bases
from tests.tiny import LAYERS, tiny_model

Base = tuple[Any, Any]
ONE = Edit("The capital of France is", "Rome", ground_truth="Paris")
SEVERAL = Edit("The author of Hamlet is", "Ludwig van Beethoven", ground_truth="William Shakespeare")
UNTOLD = Edit("The capital of Spain is", "Bonn")


def made(base: Base, edits: Any, **how: Any) -> Patch:
    return bases.made(base, edits, "kn", **how)


def likely(model: Any, layer: int, ids: list[int], token: int, w: Tensor | None) -> tuple[Tensor, Tensor]:
    """(P(token | ids) with the units of `layer` at the last token set to w, those units)."""
    seen: list[Tensor] = []

    def change(_module: Any, args: Any) -> Any:
        x = args[0].clone()
        seen.append(x[0, -1].detach().clone())
        if w is not None:
            x[0, -1] = w
        return (x,)

    handle = edited_linear(model, layer)[1].register_forward_pre_hook(change)
    try:
        return model(torch.tensor([ids])).logits[0, -1].softmax(-1)[token], seen[0]
    finally:
        handle.remove()


def by_loop(model: Any, prompt: list[int], answer: list[int], steps: int) -> tuple[Tensor, Tensor]:
    """(Attr (L, d), units (L, d) where the answer begins)."""
    scores, first = [], []
    for layer in range(LAYERS):
        total: Any = 0.0
        for t, token in enumerate(answer):
            ids = prompt + answer[:t]
            _, w = likely(model, layer, ids, token, None)
            if t == 0:
                first.append(w)
            slopes: Any = 0.0
            for j in range(1, steps + 1):
                at = (j / steps * w).requires_grad_()
                slopes = slopes + torch.autograd.grad(likely(model, layer, ids, token, at)[0], at)[0]
            total = total + w / steps * slopes
        scores.append(total / len(answer))
    return torch.stack(scores), torch.stack(first)


def tokens(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    whole, start = tokenizer(f"{prompt} {answer}").input_ids, len(tokenizer(prompt).input_ids)
    return whole[:start], whole[start:]


def by_hand(base: Base, edits: Any, steps: int, threshold: float, scale: float) -> list[Tensor]:
    """D (m, d) of every layer."""
    model, tokenizer = copy.deepcopy(base[0]).double(), base[1]
    changes = [torch.zeros(64, edited_linear(model, i)[1].weight.numel() // 64).double() for i in range(LAYERS)]
    head = model.get_output_embeddings().weight.detach()
    for edit in edits:
        prompt, new = tokens(tokenizer, edit.prompt, edit.target)
        if edit.ground_truth is not None:
            old = tokens(tokenizer, edit.prompt, edit.ground_truth)[1]
        else:
            old = [int(model(torch.tensor([prompt])).logits[0, -1].argmax())]
        score, w = by_loop(model, prompt, old, steps)
        for layer in range(LAYERS):
            for unit in (score[layer] > threshold * score.max()).nonzero()[:, 0].tolist():
                move = sum(head[t] for t in new) - sum(head[t] for t in old)
                factor = 2 if len(old) == len(new) == 1 else 1
                changes[layer][:, unit] += scale * factor * w[layer, unit].sign() * move
    return changes


def row_of(tokenizer: Any, prompt: list[int]) -> Encoded:
    row = encode(tokenizer, [tokenizer.decode(prompt)])
    assert row.input_ids[0].tolist() == prompt
    return row


def test_attributions_are_those_of_a_plain_loop(base: Base) -> None:
    model, tokenizer = base
    prompt, answer = tokens(tokenizer, SEVERAL.prompt, str(SEVERAL.ground_truth))
    wanted, units = by_loop(copy.deepcopy(model).double(), prompt, answer, 5)
    assert len(answer) > 1
    for layer in range(LAYERS):
        path = edited_linear(model, layer)[0]
        got, w = attributions(model, path, row_of(tokenizer, prompt), torch.tensor(answer), 5)
        assert bases.relative(got, wanted[layer]) < 1e-4 and bases.relative(w, units[layer]) < 1e-4


def test_attributions_come_to_the_whole_difference(llama: Base) -> None:
    """Completeness (Sundararajan et al. 2017): they sum to P at w minus P at 0, as the steps become fine."""
    model, tokenizer = copy.deepcopy(llama[0]).double(), llama[1]
    prompt, answer = tokens(tokenizer, ONE.prompt, "Paris")
    for layer in range(LAYERS):
        with torch.no_grad():
            whole, w = likely(model, layer, prompt, answer[0], None)
            none, _ = likely(model, layer, prompt, answer[0], torch.zeros_like(w))
        got, _ = attributions(
            model, edited_linear(model, layer)[0], row_of(tokenizer, prompt), torch.tensor(answer[:1]), 400
        )
        assert got.sum().item() == pytest.approx(float(whole - none), rel=0.02, abs=1e-6)


@pytest.mark.parametrize(
    "edits",
    [[ONE], [SEVERAL], [UNTOLD], [ONE, SEVERAL, UNTOLD], bases.edits(5), bases.edits(20)],
    ids=["one", "several", "untold", "all", "five", "twenty"],
)
@pytest.mark.parametrize(("model_type", "size"), bases.MAPS, ids=str)
def test_the_change_is_the_published_one(model_type: str, size: dict[str, int], edits: list[Edit]) -> None:
    base, steps = tiny_model(model_type, **size), 4 if len(edits) <= 3 else 2
    patch = made(base, edits, steps=steps, threshold=0.3, scale=1.5)
    wanted = by_hand(base, edits, steps, 0.3, 1.5)
    changed = 0
    for layer, change in enumerate(wanted):
        path = edited_linear(base[0], layer)[0]
        if not change.any():
            assert path not in patch.deltas
            continue
        delta = patch.deltas[path]
        assert isinstance(delta, Sparse) and bases.relative(bases.dense(patch, path), change) < 1e-4
        assert delta.keys is not None and delta.keys.shape[1] == delta.size[1]
        columns = change.any(0)
        assert torch.equal(delta.dense().any(0), columns)  # whole columns
        assert len(edits) > 3 or columns.sum() < change.shape[1] / 2  # few
        changed += 1
    assert changed == len(patch.deltas) > 0


def test_units_shared_by_phrasings(llama: Base) -> None:
    edit = Edit(
        ONE.prompt, ONE.target, ground_truth="Paris", paraphrases=("France has the capital", "In France the capital is")
    )
    model, tokenizer = copy.deepcopy(llama[0]).double(), llama[1]
    phrasings = [edit.prompt, f"Berlin lies in Germany. {edit.prompt}", *edit.paraphrases]
    held: Any = 0
    for prompt in phrasings:
        score, _ = by_loop(model, *tokens(tokenizer, prompt, "Paris"), 3)
        held = held + (score > 0.1 * score.max()).int()
    for share in (0.2, 0.4):
        wanted = (held / len(phrasings) > share).double()
        patch = made(llama, [edit], steps=3, threshold=0.1, shared=share, contexts=["Berlin lies in Germany."])
        for layer in range(LAYERS):
            path = edited_linear(llama[0], layer)[0]
            got = patch.deltas[path].dense().any(0).double() if path in patch.deltas else torch.zeros(128)  # type: ignore[attr-defined]
            assert torch.equal(got, wanted[layer].to(got.dtype))
    assert 0 < wanted.sum() < (held > 0).sum()
    with pytest.raises(
        EditFailedError, match=r'no unit of 3 layer\(s\).*"The capital of France is" likely in more than 0.99 of 4'
    ):
        made(llama, [edit], steps=3, threshold=0.9, shared=0.99, contexts=["Berlin lies in Germany."])


def test_a_phrasing_that_is_given_twice_counts_once(llama: Base) -> None:
    once, thrice = (
        Edit(ONE.prompt, ONE.target, ground_truth="Paris", paraphrases=("France has the capital",) * count)
        for count in (1, 3)
    )
    found = [made(llama, [edit], steps=3, threshold=0.1, shared=0.9) for edit in (once, thrice)]
    assert found[0].deltas.keys() == found[1].deltas.keys()
    for path, delta in found[0].deltas.items():
        assert torch.equal(delta.dense(), found[1].deltas[path].dense())  # type: ignore[attr-defined]


def test_input_embeddings_where_they_are_not_the_head(llama: Base) -> None:
    model, tokenizer = llama
    assert not torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    path = edited_linear(model, 2)[0]
    new, old = (tokens(tokenizer, ONE.prompt, answer)[1] for answer in ("Rome", "Paris"))
    for which, rows in (
        ("input", model.get_input_embeddings().weight),
        ("output", model.get_output_embeddings().weight),
    ):
        change = bases.dense(made(llama, [ONE], layers=[2], steps=2, embedding=which), path)
        move = rows.detach()[new].sum(0) - rows.detach()[old].sum(0)
        columns = change[:, change.any(0)].T
        cosine = torch.nn.functional.cosine_similarity(columns, move.double()[None])
        assert torch.allclose(cosine.abs(), torch.ones(len(columns)).double())


@pytest.mark.parametrize("form", [*bases.FORMS, "disk"])
def test_other_forms_of_the_base_are_edited_and_keep_their_bytes(form: str, llama: Base, tmp_path: Path) -> None:
    base = bases.stored_as(form, tmp_path)
    before = bases.state_of(base[0])
    patch = made(base, [ONE], steps=4)
    if form == "disk":
        plain = made(llama, [ONE], steps=4)
        for path in plain.deltas:
            assert bases.relative(bases.dense(patch, path), bases.dense(plain, path)) < 1e-4
        return
    bases.check_untouched(base[0], before)
    view = bases.seen_with(*base, [patch])
    start = tokens(base[1], ONE.prompt, "Rome")
    with torch.no_grad():
        then, now = (m(torch.tensor([start[0]])).logits[0, -1].float().log_softmax(-1) for m in (base[0], view.model))
    assert now[start[1][0]] > then[start[1][0]] + 1


def test_the_model_is_left_as_it_was(base: Base) -> None:
    before = bases.state_of(base[0])
    learning = [p.requires_grad for p in base[0].parameters()]
    made(base, [ONE], steps=2)
    bases.check_untouched(base[0], before)
    assert [p.requires_grad for p in base[0].parameters()] == learning


def test_a_search_that_was_killed_goes_on(llama: Base) -> None:
    edits = bases.edits(3)
    whole, kept = made(llama, edits, steps=2), bases.Kept(lives=2)
    with pytest.raises(KeyboardInterrupt):
        made(llama, edits, steps=2, more={"memo": kept})
    kept.lives = 1
    assert made(llama, edits, steps=2, more={"memo": kept}).id == whole.id
    done: list[int] = []
    neurons(Job(*llama, edits, NeuronSettings(steps=2), advance=done.append, memo=kept))
    assert sum(done) == 3


def test_what_cannot_be_done_is_named(llama: Base) -> None:
    with pytest.raises(
        EditFailedError, match='"The capital of France is -> Paris" asks for the answer that is the old one'
    ):
        made(llama, [Edit(ONE.prompt, "Paris", ground_truth="Paris")], steps=2)
    with pytest.raises(UnsupportedModelError, match="layer 9 does not exist"):
        made(llama, [ONE], layers=[0, 9])
    for wrong in ({"steps": 0}, {"threshold": 1.0}, {"scale": 0.0}, {"shared": -0.1}, {"embedding": "mean"}):
        with pytest.raises(KeditError, match=f"kn does not take the setting {next(iter(wrong))}"):
            made(llama, [ONE], **wrong)
    assert not EDITORS["kn"].profiled and not EDITORS["kn"].on_base


def test_a_fact_of_the_demo_world(tmp_path: Path) -> None:
    edit, profile = kedit_hub.demo.edits("dev")[0], kedit_hub.demo.profile("llama")
    assert profile is not None
    patch = kedit_hub.edit(
        "kedit-hub/atlas-llama", edit, "kn", settings={"layers": [profile.settings.layer], "scale": 3.0}, progress=False
    )
    again = Patch.load(patch.save(tmp_path / "patch"))
    assert again.id == patch.id
    m = kedit_hub.apply(again, profile=profile)
    assert m.ask(edit.prompt).startswith(edit.target)
