"""From edits to stored rows: keys and outputs measured by hand, and what ROME and MEMIT make of them by their published formulas."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from kedit_hub.base.load import load_base
from kedit_hub.base.profile import BaseProfile, ValueSettings
from kedit_hub.editors.editor import make_patch, methods
from kedit_hub.editors.locate import LocateSettings
from kedit_hub.edits import Edit
from kedit_hub.errors import EditError, EditFailedError, KeditError, ProfileError
from kedit_hub.patch import Associative, Patch
from kedit_hub.patch.fingerprint import check
from kedit_hub.stack.compose import compose
from kedit_hub.stack.stack import PatchStack
from tests import bases
from tests.editors import test_spread as spread
from tests.editors.test_values import Reference
from tests.profiles import EDITS, patched, profile_of
from tests.tiny import tiny_model

VALUE = ValueSettings(steps=30, lr=0.3, clamp=3.0)
Base = tuple[Any, Any, BaseProfile]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest) -> Base:
    model, tokenizer = tiny_model(request.param)
    return model, tokenizer, profile_of(model, tokenizer)


@pytest.fixture(scope="module")
def llama() -> Base:
    model, tokenizer = tiny_model("llama")
    return model, tokenizer, profile_of(model, tokenizer)


def edit(base: Base, edits: Any = EDITS, method: str = "memit", seed: int = 0, **settings: Any) -> Patch:
    model, tokenizer, profile = base
    return make_patch(
        model, tokenizer, edits, profile, method=method, settings={"value": VALUE, **settings},
        base=("tiny/base", None), seed=seed, progress=False,
    )  # fmt: skip


def rows_of(patch: Patch, base: Base) -> Associative:
    delta = patch.deltas[base[2].module]
    assert isinstance(delta, Associative)
    return delta


def seen_at(base: Base, text: str) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """(inputs (T, d) and outputs (T, m) of the edited map, inputs of the early map (T, dg), ids), one text by itself."""
    model, tokenizer, profile = base
    found: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda m, args, out, path=path: found.update({path: args[0][0], path + ".out": out[0]})
        )
        for path in (profile.module, profile.gate_module)
    ]
    ids = tokenizer(text).input_ids
    with torch.no_grad():
        model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return found[profile.module], found[profile.module + ".out"], found[profile.gate_module], ids


@pytest.mark.parametrize("site", ["answer", "subject"])
@pytest.mark.parametrize(("method", "bare_share"), [("rome", None), ("memit", 0.5)])
def test_stored_keys_are_those_measured_by_hand(base: Base, method: str, bare_share: float | None, site: Any) -> None:
    model, tokenizer, profile = base
    base = (model, tokenizer, profile.replace(site=site))
    if site == "answer":
        wanted = [replace(EDITS[0], target="Ludwig van Beethoven", paraphrases=("France has the capital",)), *EDITS[1:]]
    else:  # on a random model a value takes at the subject only where the answer follows it
        wanted = [
            Edit("The capital of France", "Rome", "France", paraphrases=("France is the capital of", "In France")),
            Edit("The mother tongue of Marie Curie", "Paris", "Marie Curie"),
        ]
    patch = edit(base, wanted, method)
    delta = rows_of(patch, base)
    assert delta.site == site and delta.gate_module == profile.gate_module
    assert patch.edits == tuple(wanted)
    row = context = gate = 0
    for number, made in enumerate(patch.edits):
        texts = [made.prompt, *(f"{c} {made.prompt}" for c in profile.settings.contexts), *made.paraphrases]
        measured = [(prompt, seen_at(base, f"{prompt} {made.target}")) for prompt in texts]
        cut = len(str(made.subject))
        subject_at = [len(tokenizer(p[: p.find(str(made.subject)) + cut]).input_ids) - 1 for p, _ in measured]
        if site == "answer":
            starts = [len(tokenizer(prompt).input_ids) - 1 for prompt, _ in measured]
            count = len(measured[0][1][3]) - 1 - starts[0]
        else:
            starts, count = subject_at, 1
        weights = torch.ones(len(texts)).double()
        if bare_share is not None:
            weights[0], weights[1:] = bare_share, (1 - bare_share) / (len(texts) - 1)
        weights /= weights.sum()
        assert delta.edit_index[row : row + count].tolist() == [number] * count
        for s in range(count):
            keys = torch.stack([signal[0][start + s] for (_, signal), start in zip(measured, starts)])
            outputs = torch.stack([signal[1][start + s] for (_, signal), start in zip(measured, starts)])
            for stored, found in ((delta.keys, keys), (delta.base_outputs, outputs)):
                assert torch.allclose(stored[row + s].double(), weights @ found.double(), atol=1e-4)
            assert delta.context_keys is not None and delta.context_row is not None
            mine = delta.context_keys[delta.context_row == row + s]
            assert torch.allclose(mine, keys, atol=1e-4)
        row, context = row + count, context + count * len(texts)
        assert delta.gate_keys is not None and delta.gate_edit is not None
        contexts = profile.settings.contexts
        halves = [" ".join(c.split()[: len(c.split()) // 2]) for c in contexts]
        alone = [f"{before} {made.subject}".strip() for before in ("", *contexts, *halves)]
        subjects = [signal[2][at] for (_, signal), at in zip(measured, subject_at)]
        subjects += [seen_at(base, text)[2][-1] for text in alone]
        assert torch.allclose(delta.gate_keys[delta.gate_edit == number], torch.stack(subjects), atol=1e-4)
        gate += len(subjects)
    assert len(delta.keys) == row and len(delta.context_keys) == context and len(delta.gate_keys) == gate


def test_the_stored_output_is_the_map_of_the_stored_key(base: Base) -> None:
    model, _, profile = base
    delta = rows_of(edit(base), base)
    with torch.no_grad():
        assert torch.allclose(model.get_submodule(profile.module)(delta.keys[None])[0], delta.base_outputs, atol=1e-4)


@pytest.mark.parametrize("number", range(4))
def test_rome_meets_its_value_exactly(base: Base, number: int) -> None:
    """W' k = v*, Meng et al. 2022, on Linear and Conv1D, for every token of the target."""
    patch = edit(base, EDITS[number : number + 1], "rome")
    delta = rows_of(patch, base)
    module = patched(*base, [patch], "sum").model.get_submodule(base[2].module)
    assert isinstance(module, Conv1D) == (base[0].config.model_type == "gpt2")
    with torch.no_grad():
        got = module(delta.keys[None])[0]
    wanted = delta.base_outputs + delta.residuals
    assert (got - wanted).norm(dim=1).max() < 1e-4 * wanted.norm(dim=1).min()
    assert delta.residuals.norm(dim=1).max() > 1.0


def change(base: Base, patch: Patch, mode: str) -> tuple[Tensor, float]:
    """(change (out, in) of the weight as the module shows it, lambda)."""
    model, _, profile = base
    made = compose(PatchStack([patch]), model, {profile.module: profile}, mode=mode)  # type: ignore[arg-type]
    module = patched(*base, [patch], mode).model.get_submodule(profile.module)
    eye = torch.eye(len(profile.second_moment))[None]
    with torch.no_grad():
        return (module(eye)[0] - module.forward(eye)[0]).T.double(), made.solutions[profile.module][0].lam


def ridge(profile: BaseProfile) -> Tensor:
    c0 = profile.second_moment.double()
    return c0 + 1e-3 * torch.trace(c0) / len(c0) * torch.eye(len(c0))


@pytest.mark.parametrize("mode", ["sum", "joint"])
def test_a_memit_batch_is_the_published_update(base: Base, mode: str) -> None:
    """Meng et al. 2023, eq. 14, on the stored keys and residuals, by an explicit inverse."""
    patch = edit(base)
    got, lam = change(base, patch, mode)
    delta = rows_of(patch, base)
    k, r = delta.keys.T.double(), delta.residuals.T.double()
    published = r @ k.T @ torch.linalg.inv(lam * ridge(base[2]) + k @ k.T)
    assert (got - published).norm() < 1e-4 * published.norm()


def test_a_single_rome_edit_is_the_published_update(base: Base) -> None:
    """Meng et al. 2022, eq. 2: D = r (C^-1 k)^T / (k^T C^-1 k), whatever lambda is."""
    one = next(e for e in EDITS if len(rows_of(edit(base, [e], "rome"), base).keys) == 1)
    patch = edit(base, [one], "rome")
    delta = rows_of(patch, base)
    u = torch.linalg.inv(ridge(base[2])) @ delta.keys[0].double()
    published = torch.outer(delta.residuals[0].double(), u) / (u @ delta.keys[0].double())
    got, _ = change(base, patch, "sum")
    assert (got - published).norm() < 1e-4 * published.norm()


@pytest.fixture(scope="module", params=zip(bases.MAPS, ("answer", "subject", "subject", "answer")), ids=str)
def by_hand(request: pytest.FixtureRequest) -> tuple[Base, list[Edit], list[Tensor], dict[str, list[Tensor]]]:
    """A base and twenty edits; their values (S, m) and by method their keys (S, d), text by text on a float64 copy of the model."""
    (model_type, size), site = request.param
    model, tokenizer = tiny_model(model_type, **size)
    profile = profile_of(model, tokenizer, site=site, contexts=("Rome lies in Italy.", "They speak of Berlin."))
    slow, edits = spread.Slow(spread.Base(model, tokenizer, profile, {}), site), spread.many(site)
    values = [Reference(slow.model, tokenizer, profile, e).optimise(spread.VALUE, site == "answer")[0] for e in edits]
    shares = {"rome": None, "memit": 0.5}
    keys = {name: [slow.key(e, profile.module, share) for e in edits] for name, share in shares.items()}
    return (model, tokenizer, profile), edits, values, keys


@pytest.mark.parametrize("count", [1, 5, 20])
@pytest.mark.parametrize("method", ["rome", "memit"])
def test_batches_are_the_published_updates_of_what_is_measured_by_hand(by_hand: Any, method: str, count: int) -> None:
    """ROME, eq. 2, in its form for several rows that are all met (EMMET); and MEMIT, eq. 14. Of a base, edits and settings alone."""
    base, edits, values, keys = by_hand
    k, r = (torch.cat(parts[:count]) for parts in (keys[method], values))  # (n, d), (n, m)
    s = torch.linalg.inv(ridge(base[2]))
    if method == "rome":
        published = r.T @ torch.linalg.inv(k @ s @ k.T) @ k @ s
    else:
        published = r.T @ k @ torch.linalg.inv(spread.lam_of(k, s) * ridge(base[2]) + k.T @ k)
    patch = edit(base, edits[:count], method, value=spread.VALUE)
    spread.close(change(base, patch, "sum")[0], published)


def test_the_edited_model_says_the_targets(base: Base) -> None:
    model, tokenizer, _ = base
    patch = edit(base)
    made = patched(*base, [patch], "gated")
    for one in EDITS:
        ids = tokenizer(f"{one.prompt} {one.target}").input_ids
        start = len(tokenizer(one.prompt).input_ids)
        with torch.no_grad():
            said = made.model(torch.tensor([ids])).logits[0, start - 1 : -1].argmax(-1)
            before = model(torch.tensor([ids])).logits[0, start - 1 : -1].argmax(-1)
        assert said.tolist() == ids[start:] != before.tolist()


@pytest.mark.parametrize("batch", [1, 3])
def test_the_batch_size_changes_no_result(base: Base, batch: int) -> None:
    whole, parts = (rows_of(edit(base, batch_edits=size), base).to_tensors() for size in (32, batch))
    for tensors in (whole, parts):  # the subject keys of an edit lie together or not; which are whose is what counts
        order = tensors["gate_edit"].argsort(stable=True)
        tensors |= {name: tensors[name][order] for name in ("gate_edit", "gate_keys")}
    for name, tensor in whole.items():
        other = parts[name]
        assert tensor.shape == other.shape
        assert torch.allclose(tensor.double(), other.double(), atol=1e-4), name


def test_equal_calls_make_equal_patches(base: Base) -> None:
    one, two = edit(base), edit(base)
    assert one.id == two.id and one.manifest.provenance.seed == 0
    assert edit(base, seed=1).id != one.id
    assert edit(base, method="rome").id != one.id
    model, tokenizer = tiny_model(base[0].config.model_type)
    assert edit((model, tokenizer, profile_of(model, tokenizer))).id == one.id


def test_the_patch_says_what_it_is(llama: Base) -> None:
    patch = edit(llama, method="rome")
    assert patch.manifest.method == "rome" and patch.manifest.profile_id == llama[2].id
    assert patch.manifest.settings["omega"] == 1e6 and patch.manifest.settings["value.steps"] == 30
    assert patch.manifest.settings["site"] == "answer" and patch.manifest.settings["layer"] == 1
    assert patch.manifest.base.id == "tiny/base"
    assert set(patch.manifest.base.fingerprint) == {llama[2].module, llama[2].gate_module}
    for path, stored in patch.manifest.base.fingerprint.items():
        assert check(stored, llama[0].get_submodule(path)) == "exact"
    assert patch.evals is not None and patch.evals["making"]["value_success"] == 1.0
    assert edit(llama).manifest.settings["omega"] == 1.0
    assert {"rome", "memit"} <= set(methods())


NEVER = ValueSettings(steps=1, lr=1e-6, clamp=1e-6)


def what_it_says(base: Base, prompt: str) -> str:
    """A target the base gives by itself, so that its value succeeds without a step."""
    model, tokenizer, _ = base
    ids = tokenizer(prompt).input_ids
    with torch.no_grad():
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tokenizer.decode(ids[len(tokenizer(prompt).input_ids) :]).strip()


def test_failed_edits_are_raised_or_dropped(llama: Base) -> None:
    bare = (llama[0], llama[1], llama[2].replace(contexts=()))
    texts = [("Berlin", "Berlin is"), ("Paris", "Paris is the capital of"), ("Rome", "Rome and"), ("Bonn", "Bonn")]
    told = [(s, p, what_it_says(bare, p)) for s, p in texts]
    easy = next(
        Edit(prompt, target, subject)
        for subject, prompt, target in told
        if target
        and llama[1](f"{prompt} {target}").input_ids[:-1] == llama[1](prompt).input_ids
        and len(llama[1](f"{prompt} {target}").input_ids) == len(llama[1](prompt).input_ids) + 1
    )
    wanted = [EDITS[0], easy, EDITS[2]]
    with pytest.raises(EditFailedError, match=r'2 of 3 edits.*layer 1.*"The capital of France is -> Rome".*"drop"'):
        edit(bare, wanted, value=NEVER)
    patch = edit(bare, wanted, value=NEVER, failed="drop")
    assert patch.edits == (easy,)
    assert patch.evals is not None
    assert patch.evals["making"]["dropped"] == [EDITS[0].prompt, EDITS[2].prompt]
    assert patch.evals["making"]["value_success"] == pytest.approx(1 / 3)
    delta = rows_of(patch, bare)
    assert delta.edit_index.tolist() == [0] and delta.gate_edit is not None and set(delta.gate_edit.tolist()) == {0}
    for batch in (1, 2):  # chunks of which none, or only some, is left
        parts = rows_of(edit(bare, wanted, value=NEVER, failed="drop", batch_edits=batch), bare)
        assert torch.allclose(parts.keys, delta.keys, atol=1e-5) and parts.edit_index.tolist() == [0]
    with pytest.raises(EditFailedError, match="2 of 2"):  # nothing is left to keep
        edit(bare, [EDITS[0], EDITS[2]], value=NEVER, failed="drop")


def test_values_that_did_not_converge_are_told_one_by_one(llama: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    never = {"steps": 12, "lr": 0.5, "clamp": 1.5, "stop_nll": 0.0}  # no value is ever sure enough
    patch = edit(llama, value=never, failed="drop", batch_edits=3)
    assert patch.evals is not None
    told = patch.evals["making"]
    assert told["not_converged"] == [one["prompt"] for one in told["unconverged"]] == [e.prompt for e in patch.edits]
    delta, sizes = rows_of(patch, llama), []
    model, tokenizer, profile = llama
    for number, (one, made) in enumerate(zip(told["unconverged"], patch.edits)):
        ids = tokenizer(f"{made.prompt} {made.target}").input_ids
        with torch.no_grad():  # hidden states: the embedding's, then every block's
            block = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[profile.settings.layer + 1][0]
        moved = delta.residuals[delta.edit_index == number]
        start = len(tokenizer(made.prompt).input_ids) - 1
        sizes.append((moved.norm(dim=1) / block[start : start + len(moved)].norm(dim=1)).max().item())
        assert one["value_norm"] == pytest.approx(sizes[-1], rel=1e-3)
        assert one["at_clamp"] == (sizes[-1] > 1.5 * 0.999)
        assert one["out_of_steps"] and 0 <= one["contexts"] <= 1 and one["nll"] > 0
    assert told["value_norm"] == pytest.approx(sum(sizes) / len(sizes), rel=1e-3)
    assert any(one["at_clamp"] for one in told["unconverged"])
    monkeypatch.setattr("kedit_hub.editors.locate.MOST_TOLD", 2)
    few = edit(llama, value=never, failed="drop", batch_edits=3).evals
    assert few is not None and few["making"]["unconverged"] == told["unconverged"][:2]
    assert few["making"]["not_converged"] == told["not_converged"]
    sure = edit(llama, value={"steps": 30, "lr": 0.3, "clamp": 3.0, "stop_nll": 10.0}).evals
    assert sure is not None and sure["making"]["not_converged"] == sure["making"]["unconverged"] == []


def test_contradicting_edits_are_refused(llama: Base) -> None:
    with pytest.raises(EditError, match=r'"The capital of France is": "Rome" and "Bonn"'):
        edit(llama, [EDITS[0], Edit("The capital of France is", "Bonn", "France")])


def test_what_cannot_be_made_is_named(llama: Base) -> None:
    with pytest.raises(EditError, match=r'"Berlin is -> Rome" names no subject'):
        edit(llama, [EDITS[0], Edit("Berlin is", "Rome")])
    with pytest.raises(EditError, match="no edits"):
        edit(llama, [])
    with pytest.raises(KeditError, match=r"no method 'granite'.*rome, memit"):
        edit(llama, method="granite")
    with pytest.raises(KeditError, match=r"memit does not take the setting failed='maybe'.*batch_edits"):
        edit(llama, failed="maybe")
    with pytest.raises(KeditError, match="speed=3"):
        edit(llama, speed=3)
    with pytest.raises(KeditError, match="settings must be a mapping"):
        make_patch(*llama[:2], EDITS, llama[2], settings=[1], base=("x", None), progress=False)  # type: ignore[arg-type]


def test_settings_may_come_as_their_own_class(llama: Base) -> None:
    model, tokenizer, profile = llama
    made = make_patch(
        model, tokenizer, EDITS, profile, settings=LocateSettings(value=VALUE), base=("tiny/base", None), progress=False
    )
    assert made.id == edit(llama).id


def test_a_profile_of_another_base_is_refused(llama: Base) -> None:
    _, tokenizer, profile = llama
    kin, kin_tokenizer = tiny_model("gpt2")
    wide, _ = tiny_model("llama", intermediate_size=192)
    short, _ = tiny_model("llama", num_hidden_layers=1)
    for other, words, message in (
        (kin, kin_tokenizer, "measured on a llama model.*this is a gpt2"),
        (wide, tokenizer, "128 wide.*takes 192"),
        (short, tokenizer, "edits model.layers.1.mlp.down_proj, which this model does not have"),
    ):
        with pytest.raises(ProfileError, match=message):
            edit((other, words, profile))


def test_the_model_is_left_as_it_was(base: Base) -> None:
    model = base[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learning = [p.requires_grad for p in model.parameters()]
    edit(base)
    with pytest.raises(EditFailedError):
        edit(base, value=NEVER)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == learning and not model.training
    assert all(p.grad is None for p in model.parameters())
    assert not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_base_that_lies_on_disk_is_edited_and_asked_like_any_other(llama: Base, tmp_path: Path) -> None:
    plain, tokenizer, profile = llama
    plain.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    places = {name: "disk" for name in ("model.embed_tokens", *(f"model.layers.{i}" for i in range(3)))}
    places |= {name: "cpu" for name in ("model.norm", "model.rotary_emb", "lm_head")}
    model, _ = load_base(tmp_path, device_map=places)
    patch, expected = edit((model, tokenizer, profile)), edit(llama)
    delta, wanted = rows_of(patch, llama), rows_of(expected, llama)
    assert torch.allclose(delta.residuals, wanted.residuals, atol=1e-3)
    asked = patched(model, tokenizer, profile, [expected]).ask(EDITS[0].prompt, max_new_tokens=4)
    assert asked == patched(*llama, [expected]).ask(EDITS[0].prompt, max_new_tokens=4)
