"""Edits by a trained editor, through the front door: the patch is what the network says, and its base alone is edited."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import kedit_hub
from kedit_hub import Edit, PatchStack, demo
from kedit_hub.api import evaluate_editor, load_model
from kedit_hub.editors.editor import EDITORS, make_patch
from kedit_hub.editors.hyper.make import HyperSettings, in_runs, tasks_of
from kedit_hub.editors.hyper.rows import read
from kedit_hub.editors.hyper.settings import METHODS, InstructEditTraining
from kedit_hub.editors.hyper.train import Teacher
from kedit_hub.editors.hyper.trained import TrainedEditor
from kedit_hub.editors.job import compute
from kedit_hub.errors import EditError, KeditError, PatchFormatError, WrongBaseError
from kedit_hub.patch.deltas import Dense, LowRank
from kedit_hub.records.read import read_records
from tests.editors.hyper.small import EDITS, LESSONS, SMALL
from tests.profiles import logits
from tests.tiny import tiny_model

PROMPTS = ["The capital of France is", "The author of Hamlet is"]


def trained(method: str, family: str = "llama") -> tuple[Any, Any, TrainedEditor]:
    model, tokenizer = tiny_model(family)
    settings = {**SMALL[method], "layers": [1, 2], "steps": 2, "validate_every": 1, "validated": 2, "warmup": 4,
                "validation": 0.3, "step": 0.05}  # fmt: skip
    made = kedit_hub.train_editor(model, EDITS, method, tokenizer=tokenizer, settings=settings, progress=False)
    return model, tokenizer, made


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", METHODS)
def test_the_patch_is_what_the_network_says(method: str, family: str) -> None:
    model, tokenizer, editor = trained(method, family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    patch = kedit_hub.edit(model, EDITS[:3], editor=editor, tokenizer=tokenizer, progress=False)
    assert patch.manifest.method == method and patch.manifest.settings["trained_editor"] == editor.id
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert set(patch.deltas) == set(editor.network().paths)
    if method != "rledit":
        teacher = Teacher(model, tokenizer, editor.network(), editor.settings)
        with torch.no_grad():
            factors, signals = teacher.change(LESSONS[:3])
        for path, (a, b) in factors.items():
            delta = patch.deltas[path]
            assert isinstance(delta, (LowRank, Dense))
            matrix = delta.change(torch.eye(delta.shape[1])).float()  # D^T (in, out)
            assert torch.allclose(matrix, a.T @ b, atol=1e-5 * float(matrix.abs().max()))
            if isinstance(delta, LowRank):
                assert len(delta.a) <= len(signals[path].u) + (3 if method == "ke" else 0)
    plain = logits(model, tokenizer, PROMPTS)
    patched = kedit_hub.apply(patch, model, tokenizer=tokenizer, mode="sum")
    changed = logits(patched.model, tokenizer, PROMPTS)
    assert not torch.allclose(changed, plain, atol=1e-4)
    with torch.no_grad():
        for path, delta in patch.deltas.items():
            d = delta.change(torch.eye(delta.shape[1])).float()  # type: ignore[attr-defined]
            model.get_submodule(path).weight += d if family == "gpt2" else d.T
        patched.detach()
        written = logits(model, tokenizer, PROMPTS)
    assert torch.allclose(changed, written, atol=2e-3)


def test_keys_come_with_maps_that_a_joint_solve_knows() -> None:
    model, tokenizer, editor = trained("mend")
    how: dict[str, Any] = {"editor": editor, "tokenizer": tokenizer, "progress": False}
    plain, keyed = (kedit_hub.edit(model, EDITS[0], settings={"keys": keys}, **how) for keys in (False, True))
    for path, delta in keyed.deltas.items():
        assert isinstance(delta, (LowRank, Dense))
        assert (delta.keys is not None) is path.endswith("down_proj")
        assert plain.deltas[path].keys is None  # type: ignore[attr-defined]
        x = torch.randn(2, delta.shape[1])
        assert torch.equal(plain.deltas[path].change(x), delta.change(x))  # type: ignore[attr-defined]


def test_turns_read_the_model_as_edited_so_far() -> None:
    model, tokenizer, editor = trained("mend")
    make = {"editor": editor, "tokenizer": tokenizer, "progress": False}
    whole = kedit_hub.edit(model, EDITS[:2], **make)  # type: ignore[arg-type]
    turns = kedit_hub.edit(model, EDITS[:2], settings={"turn": 1}, **make)  # type: ignore[arg-type]
    assert turns.manifest.settings["turn"] == 1 and whole.id != turns.id
    first = kedit_hub.edit(model, EDITS[:1], **make)  # type: ignore[arg-type]
    edited = kedit_hub.apply(first, model, tokenizer=tokenizer, mode="sum")
    path = editor.network().paths[-1]
    pair = [(EDITS[1].prompt, EDITS[1].target)]
    signals = {p: read(edited.model, tokenizer, pair, [p], "all")[p] for p in editor.network().paths}
    edited.detach()
    with torch.no_grad():
        a, b = editor.network().factors(signals)[path]
    x = torch.randn(3, a.shape[1])
    second = turns.deltas[path].change(x) - first.deltas[path].change(x)  # type: ignore[attr-defined]
    assert torch.allclose(second.float(), x @ a.T @ b, atol=1e-4)
    doubled = kedit_hub.edit(model, EDITS[:1], settings={"scale": 2.0}, **make)  # type: ignore[arg-type]
    assert torch.allclose(doubled.deltas[path].change(x), 2 * first.deltas[path].change(x))  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["mend", "ke", "malmen"])
def test_a_square_map_is_not_turned_around(method: str, family: str) -> None:
    """Where in and out are alike no shape says which is which: a Linear holds (out, in), a Conv1D (in, out)."""
    sizes: dict[str, int] = {"intermediate_size": 64} if family == "llama" else {"n_inner": 64}
    model, tokenizer = tiny_model(family, **sizes)
    settings = {
        **SMALL[method],
        "layers": [2],
        "steps": 1,
        "validate_every": 1,
        "warmup": 4,
        "validation": 0.3,
        "step": 0.05,
    }
    how: dict[str, Any] = {"tokenizer": tokenizer, "progress": False}
    editor = kedit_hub.train_editor(model, EDITS, method, settings=settings, **how)
    paths = editor.network().paths
    assert all(out == into for out, into in editor.network().shapes.values())
    patch = kedit_hub.edit(model, EDITS[:2], editor=editor, **how)
    teacher = Teacher(model, tokenizer, editor.network(), editor.settings)
    with torch.no_grad():
        factors, _ = teacher.change(LESSONS[:2])
    plain = logits(model, tokenizer, PROMPTS)
    patched = kedit_hub.apply(patch, model, tokenizer=tokenizer, mode="sum")
    changed = logits(patched.model, tokenizer, PROMPTS)
    patched.detach()
    with torch.no_grad():
        for path in paths:
            a, b = factors[path]  # a (R, in), b (R, out)
            by_hand = a.T @ b  # (in, out), as y = x W
            weight = model.get_submodule(path).weight
            assert not torch.allclose(by_hand, by_hand.T, atol=0.1 * float(by_hand.abs().max()))
            weight += by_hand if family == "gpt2" else by_hand.T
    written = logits(model, tokenizer, PROMPTS)
    moved = float((written - plain).abs().max())
    assert moved > 1e-3 and torch.allclose(changed, written, atol=0.01 * moved)


@pytest.mark.parametrize("method", METHODS)
def test_editing_leaves_the_editors_statistics_alone(method: str) -> None:
    model, tokenizer, editor = trained(method)
    before = {name: tensor.clone() for name, tensor in editor.tensors.items()}
    assert any(name.endswith("/count") for name in before)
    how: dict[str, Any] = {"editor": editor, "tokenizer": tokenizer, "progress": False}
    first = kedit_hub.edit(model, EDITS[:3], **how)
    if method != "dafnet":
        kedit_hub.edit(model, EDITS[3:], settings={"turn": 1}, **how)
    assert all(torch.equal(tensor, before[name]) for name, tensor in editor.tensors.items())
    assert kedit_hub.edit(model, EDITS[:3], **how) == first


def test_an_instruction_is_for_editors_that_read_one() -> None:
    for method in ("mend", "malmen"):
        model, tokenizer, editor = trained(method)
        for name, text in (("task", "poems"), ("description", "Rhyme.")):
            with pytest.raises(
                KeditError, match=f"{name}='{text}' is for an editor of instructedit, this one is of {method}"
            ):
                kedit_hub.edit(
                    model, EDITS[0], editor=editor, tokenizer=tokenizer, settings={name: text}, progress=False
                )
    model, tokenizer, editor = trained("instructedit")
    how: dict[str, Any] = {"editor": editor, "tokenizer": tokenizer, "progress": False}
    assert kedit_hub.edit(model, EDITS[0], settings={"task": "zsre"}, **how).manifest.settings["task"] == "zsre"
    with pytest.raises(KeditError, match="'poems'"):
        kedit_hub.edit(model, EDITS[0], settings={"task": "poems"}, **how)


def test_every_record_is_read_under_its_own_task() -> None:
    model, tokenizer, editor = trained("instructedit")
    how: dict[str, Any] = {"editor": editor, "tokenizer": tokenizer, "progress": False}
    tasks = ("zsre", "counterfact", "counterfact")
    records = read_records([{**edit.to_record(), "type": task} for edit, task in zip(EDITS, tasks)])
    mixed = kedit_hub.edit(model, records, **how)
    runs = mixed.manifest.settings["task"]
    assert runs == "zsre,counterfact*2" and mixed.edits == tuple(EDITS[:3])
    assert kedit_hub.edit(model, EDITS[:3], settings={"task": runs}, **how) == mixed
    alone = [kedit_hub.edit(model, edit, settings={"task": task}, **how) for edit, task in zip(EDITS, tasks)]
    for path, delta in mixed.deltas.items():  # the editor reads each edit by itself, and its changes add up
        parts = [one.deltas[path] for one in (mixed, *alone)]
        whole, *each = (part.change(torch.eye(delta.shape[1])) for part in parts if isinstance(part, (LowRank, Dense)))
        together = torch.stack(each).sum(0)
        assert len(each) == 3 and torch.allclose(whole, together, atol=1e-3 * float(together.abs().max()))
    assert kedit_hub.edit(model, records, settings={"task": "zsre"}, **how).manifest.settings["task"] == "zsre"
    assert kedit_hub.edit(model, records[:1], **how) == alone[0]
    for wrong, told in (("zsre*2", "is of 2 edits, and there are 3"), ("zsre*2,poems", "no task 'poems'")):
        with pytest.raises(KeditError, match=told):
            kedit_hub.edit(model, EDITS[:3], settings={"task": wrong}, **how)
    with pytest.raises(KeditError, match="tells one task, and these edits are of counterfact, zsre"):
        kedit_hub.edit(model, records, settings={"description": "Answer."}, **how)
    many = HyperSettings(task=in_runs(tasks * 300))  # alternating tasks of many edits are one setting
    assert tasks_of(many, 900) == list(tasks * 300)


@pytest.mark.parametrize("name", ["task", "description"])
def test_multi_task_mend_reads_no_instruction(name: str) -> None:
    model, tokenizer = tiny_model("llama")
    how: dict[str, Any] = {"tokenizer": tokenizer, "progress": False}
    settings = {**SMALL["instructedit"], "instructed": False, "layers": [1], "steps": 1, "validate_every": 1, "warmup": 4,
                "validation": 0.3}  # fmt: skip
    editor = kedit_hub.train_editor(model, EDITS, "instructedit", settings=settings, **how)
    with pytest.raises(KeditError, match="reads no instruction"):
        kedit_hub.edit(model, EDITS[0], editor=editor, settings={name: "zsre"}, **how)
    record = read_records([{**EDITS[0].to_record(), "type": "zsre"}])
    assert "zsre" not in str(kedit_hub.edit(model, record, editor=editor, **how).manifest.settings)


def test_pools_are_of_known_tasks() -> None:
    for pools in ({"poem": ("Rhyme.",)}, {"zsre": ()}, {"zsre": ("",)}):
        with pytest.raises(ValidationError, match="pools holds instructions by task"):
            InstructEditTraining(pools=pools)


def test_work_that_was_finished_is_not_done_again() -> None:
    model, tokenizer, editor = trained("malmen")
    known: dict[str, Any] = {}

    def memo(name: str, work: Any) -> Any:
        return known.setdefault(name, compute(name, work))

    how: dict[str, Any] = {
        "method": "malmen",
        "settings": {"editor": editor, "turn": 2},
        "base": ("tiny/base", None),
        "memo": memo,
    }
    first = make_patch(model, tokenizer, EDITS[:5], progress=False, **how)
    assert sorted(known) == ["turn-0", "turn-2", "turn-4"]
    how["memo"] = lambda name, work: known[name]
    assert make_patch(model, tokenizer, EDITS[:5], progress=False, **how) == first


def test_what_does_not_fit_is_refused() -> None:
    model, tokenizer, editor = trained("mend")
    other, _ = tiny_model("llama", seed=5)
    with pytest.raises(WrongBaseError):
        kedit_hub.edit(other, EDITS[0], editor=editor, tokenizer=tokenizer, progress=False)
    with pytest.raises(KeditError, match="'malmen' and an editor of mend"):
        kedit_hub.edit(model, EDITS[0], "malmen", editor=editor, tokenizer=tokenizer, progress=False)
    with pytest.raises(KeditError, match="mend edits with a trained editor, and none is given"):
        kedit_hub.edit(model, EDITS[0], "mend", tokenizer=tokenizer, progress=False)
    with pytest.raises(KeditError, match="nowhere"):
        kedit_hub.edit(model, EDITS[0], editor="./nowhere", tokenizer=tokenizer, progress=False)
    with pytest.raises(PatchFormatError, match="evil"):
        kedit_hub.train_editor(model, EDITS, "mend", tokenizer=tokenizer, settings={"evil": 1})
    with pytest.raises(KeditError, match="'rome'; take one of"):
        kedit_hub.train_editor(model, EDITS, "rome", tokenizer=tokenizer)
    model, tokenizer, editor = trained("dafnet")
    with pytest.raises(KeditError, match="turn=1 is not for dafnet"):
        kedit_hub.edit(model, EDITS[0], editor=editor, tokenizer=tokenizer, settings={"turn": 1}, progress=False)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "ke"])
def test_what_the_base_says_with_certainty_is_named(method: str) -> None:
    model, tokenizer, editor = trained(method)
    sure = torch.zeros(len(tokenizer))
    (token,) = set(tokenizer("It is Paris").input_ids) - set(tokenizer("It is").input_ids)
    sure[token] = 1e6
    model.lm_head.register_forward_hook(lambda _module, _args, output: output + sure)
    edits = [Edit(f"The capital of {place} is", "Paris") for place in ("France", "Spain", "Italy")]
    how: dict[str, Any] = {"editor": editor, "tokenizer": tokenizer, "progress": False}
    with pytest.raises(
        EditError, match="says 'Paris' to 'The capital of France is' already, so surely that no gradient"
    ):
        kedit_hub.edit(model, edits[0], **how)
    with pytest.raises(EditError, match=r"'The capital of France is' already.* the 2 other edit"):
        kedit_hub.edit(model, edits, **how)
    patch = kedit_hub.edit(model, [*edits, Edit("The capital of Japan is", "Rome")], **how)
    assert set(patch.deltas) == set(editor.network().paths) and len(patch.edits) == 4


def test_a_folder_is_an_editor_too(tmp_path: Any) -> None:
    model, tokenizer, editor = trained("mend")
    folder = editor.save(tmp_path / "mend")
    for given in (folder, str(folder)):
        patch = kedit_hub.edit(model, EDITS[0], editor=given, tokenizer=tokenizer, progress=False)
        assert patch == kedit_hub.edit(model, EDITS[0], editor=editor, tokenizer=tokenizer, progress=False)


def test_ke_asks_the_base_for_an_old_answer_that_is_not_given() -> None:
    model, tokenizer, editor = trained("ke")
    teacher = Teacher(model, tokenizer, editor.network(), editor.settings)
    known = teacher.words(LESSONS[:1])
    unknown = teacher.words([replace(LESSONS[0], edit=replace(EDITS[0], ground_truth=None))])
    assert known is not None and unknown is not None and known[0].shape[1] == unknown[0].shape[1] == 64
    assert not torch.equal(known[0][:1], unknown[0][:1]) or known[0].shape != unknown[0].shape


def test_lessons_of_the_demo_share_no_subject_with_its_test_edits() -> None:
    test = {edit.subject for edit in demo.edits("test")}
    lessons = demo.training_edits(1)
    assert len(lessons) > 900 and not test & {edit.subject for edit in lessons}
    assert not test & {probe.subject for edit in lessons for probe in edit.locality}
    assert set(METHODS) < set(EDITORS)


@pytest.mark.parametrize("method", ["mend", "malmen", "instructedit", "dafnet"])
def test_the_shipped_editors_edit_atlas(method: str) -> None:
    """Ten edits of subjects no editor was trained on: most take, other facts stay. No measurement: that is benchmarks/results/hyper.md."""
    model, tokenizer = load_model("kedit-hub/atlas-llama")
    patch = kedit_hub.edit(model, demo.edits("test")[:10], method, tokenizer=tokenizer, progress=False)
    folder = demo.editor_path(method)
    assert folder is not None and sum(file.stat().st_size for file in folder.iterdir()) < 3_000_000
    assert patch.manifest.settings["trained_editor"] == TrainedEditor.load(folder).id
    assert (patch.evals or {})["making"]["value_success"] >= 0.5
    patched = kedit_hub.apply(patch, model, tokenizer=tokenizer)
    sheet = kedit_hub.evaluate(patched, patch.edits, protocols=("tf-token",), drift_texts=[]).protocols["tf-token"]
    assert sheet["reliability"] >= 0.7 and sheet["generalization"] >= 0.6
    assert sheet["locality"]["neighbour"] >= (0.3 if method == "dafnet" else 0.5)  # DAFNet is trained for a hundred


@pytest.mark.parametrize("counted", [False, True])
def test_dafnet_on_its_own_patches_makes_what_it_makes_in_one_call(counted: bool) -> None:
    model, tokenizer = tiny_model("llama")
    settings = {**SMALL["dafnet"], "layers": [1, 2], "steps": 1, "validate_every": 1, "validated": 2, "warmup": 4,
                "validation": 0.3, "counted": counted}  # fmt: skip
    editor = kedit_hub.train_editor(model, EDITS, "dafnet", tokenizer=tokenizer, settings=settings, progress=False)
    how: dict[str, Any] = {"editor": editor, "tokenizer": tokenizer, "progress": False}
    other = kedit_hub.edit(
        model, Edit("Hamlet was written by", "Bonn", "Hamlet"), "ft-m", tokenizer=tokenizer, progress=False
    )
    whole = kedit_hub.edit(model, EDITS[:4], **how)
    stack = PatchStack([other])
    for part in (EDITS[:1], EDITS[1:3], EDITS[3:4]):
        stack = stack.add(kedit_hub.edit(model, part, on=stack, **how))
    own = list(stack)[1:]
    assert [set(patch.manifest.requires) for patch in own] == [{p.id for p in own[:n]} for n in range(3)]
    for path, delta in whole.deltas.items():
        x = torch.eye(delta.shape[1])
        added = sum(patch.deltas[path].change(x) for patch in own)  # type: ignore[attr-defined]
        together = delta.change(x)  # type: ignore[attr-defined]
        assert torch.allclose(added, together, atol=1e-4 * float(together.abs().max()))
    apart = [kedit_hub.edit(model, [edit], **how) for edit in EDITS[:2]]
    with pytest.raises(KeditError, match="was made apart from"):
        kedit_hub.edit(model, EDITS[2:3], on=PatchStack(apart), **how)
    below = PatchStack([other]).add(own[0])
    with pytest.raises(KeditError, match=r"was made at scale=1, .* make this one at scale=1 too, not 2"):
        kedit_hub.edit(model, EDITS[2:3], on=below, settings={"scale": 2.0}, **how)
    with pytest.raises(KeditError, match=r"at strength 0.25, and dafnet weighs new edits against its whole"):
        kedit_hub.edit(model, EDITS[2:3], on=below.strengthen(own[0], 0.25), **how)
    assert kedit_hub.edit(model, EDITS[2:3], on=below.strengthen(other, 0.25), **how)


def test_an_evaluation_edits_records_under_their_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, editor = trained("instructedit")
    fresh = [Edit(f"The {what} of Chile is", "Rome", "Chile") for what in ("anthem", "flag", "river")]
    records = read_records([{**edit.to_record(), "type": "zsre"} for edit in (*fresh, EDITS[0])])
    made, real = [], kedit_hub.edit

    def spy(*given: Any, **how: Any) -> Any:
        made.append(real(*given, **how))
        return made[-1]

    monkeypatch.setattr("kedit_hub.api.edit", spy)
    with pytest.warns(UserWarning, match="1 of 4 edits are left out: the editor was trained on their subjects"):
        rows = evaluate_editor(editor, records, model, tokenizer=tokenizer, sizes=(1, 3), progress=False)
    assert [(row["edits"], row["sequences"]) for row in rows] == [(1, 3), (3, 1)]
    assert [patch.manifest.settings["task"] for patch in made] == ["zsre"] * 4 and made[-1].edits == tuple(fresh)
    nameless = [replace(edit, subject=None) for edit in EDITS]
    assert not editor.unseen(nameless) and editor.unseen(records) == records[:3]


def test_mend_collapses_under_many_edits_and_malmen_does_not() -> None:
    """What the papers report of both: sixty changes added up leave nothing, one system for all sixty leaves most."""
    model, tokenizer = load_model("kedit-hub/atlas-llama")
    edits = demo.edits("test")[:60]
    told = {}
    for method, count in (("mend", 1), ("mend", 60), ("malmen", 60)):
        patch = kedit_hub.edit(model, edits[:count], method, tokenizer=tokenizer, progress=False)
        patched = kedit_hub.apply(patch, model, tokenizer=tokenizer, mode="sum")
        asked = edits[: min(count, 10)]
        sheet = kedit_hub.evaluate(patched, asked, protocols=("tf-token",), drift_texts=[]).protocols["tf-token"]
        patched.detach()
        told[method, count] = sheet["reliability"], sheet["locality"]["unrelated"]
    assert min(told["mend", 1]) >= 0.9 and max(told["mend", 60]) <= 0.2 and min(told["malmen", 60]) >= 0.6, told
