"""`kedit_hub.edit` through the front door: on a stack, killed and called again, on fewer bits, and refused before the work is done."""

from contextlib import suppress

import pytest
import torch

import kedit_hub
from kedit_hub import Edit, PatchStack, demo
from kedit_hub.api import load_model
from kedit_hub.editors.editor import EDITORS
from kedit_hub.errors import ConflictError, EditFailedError, KeditError
from kedit_hub.evaluate.protocols import teacher_forced
from kedit_hub.limits import Limits

FRANCE = Edit("The capital of France is", "Nantes", subject="France", relation="capital")
JAPAN = Edit("The capital of Japan is", "Oslo", subject="Japan", relation="capital")
AGAINST = Edit("The capital of France is", "Marseille", subject="France", relation="capital")


@pytest.fixture(scope="module")
def atlas():
    return load_model("kedit-hub/atlas-llama")


def says(patched, edit):
    return all(
        answer.predicted == answer.labels
        for answer in teacher_forced(patched.model, patched.tokenizer, [(edit.prompt, edit.target)])
    )


def make(atlas, edits, method="alphaedit", **more):
    model, tokenizer = atlas
    return kedit_hub.edit(model, edits, method, tokenizer=tokenizer, progress=False, **more)


def test_rows_of_the_base_stand_alone_and_written_weights_on_the_stack(atlas):
    first = make(atlas, FRANCE)
    rows, written = (make(atlas, JAPAN, method, on=PatchStack([first])) for method in ("memit", "alphaedit"))
    assert rows.manifest.requires == () and rows.id == make(atlas, JAPAN, "memit").id
    assert written.manifest.requires == (first.id,)
    both = kedit_hub.apply([first, written], *atlas[:1], tokenizer=atlas[1])
    assert says(both, FRANCE) and says(both, JAPAN)
    with pytest.raises(kedit_hub.KeditError, match="build on"):
        kedit_hub.apply([written], atlas[0], tokenizer=atlas[1])
    live = kedit_hub.apply([first], atlas[0], tokenizer=atlas[1])
    for model in (live, atlas[0]):  # a patched model stands for its base, and may be what the patch stands on
        again = kedit_hub.edit(model, JAPAN, "alphaedit", tokenizer=atlas[1], on=live, progress=False)
        assert again.manifest.requires == (first.id,)
        path = next(iter(written.deltas))
        change = [patch.deltas[path].b @ patch.deltas[path].a for patch in (again, written)]
        assert torch.allclose(*change, atol=1e-3 * change[1].norm().item())


def test_a_contradiction_is_seen_before_the_work_is_done(atlas):
    first = make(atlas, FRANCE)
    started = []
    with pytest.raises(ConflictError, match='to be made says "Marseille"'):
        make(atlas, AGAINST, on=PatchStack([first]), settings={"paraphraser": started.append})
    assert not started
    assert make(atlas, AGAINST, on=PatchStack([first], conflicts="latest")).edits == (AGAINST,)


def test_work_is_kept_and_found_again(atlas, tmp_path):
    edits = demo.edits("dev")[:2]
    how = {"settings": {"batch_edits": 1, "failed": "drop", "value": {"steps": 12}}, "work": tmp_path}
    first = make(atlas, edits, "memit", **how)
    kept = sorted(tmp_path.rglob("*.piece"))
    assert [file.name for file in kept] == ["edits-0.piece", "edits-1.piece"]
    stamp = kept[0].stat().st_mtime_ns
    kept[1].write_bytes(kept[1].read_bytes()[:100])  # a damaged piece is made anew
    assert make(atlas, edits, "memit", **how).id == first.id == make(atlas, edits, "memit", settings=how["settings"]).id
    assert kept[0].stat().st_mtime_ns == stamp and kept[1].stat().st_size > 100
    make(atlas, edits[:1], "memit", **how)
    assert len(list(tmp_path.rglob("*.piece"))) == 3  # other edits, other pieces


def test_work_is_found_again_under_what_the_error_advises(atlas, tmp_path):
    edits = [*demo.edits("dev")[:1], Edit("The capital of France is", "Zzyzx Qwrt Vbnm Kxq Jwv", subject="France")]
    how = {"batch_edits": 1, "value": {"steps": 8}}
    with pytest.raises(EditFailedError, match='"failed": "drop"'):
        make(atlas, edits, "memit", settings=how, work=tmp_path)
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.piece")}
    assert len(stamps) == 2
    made = make(atlas, edits, "memit", settings={**how, "failed": "drop", "precision": "f16"}, work=tmp_path)
    assert made.edits == tuple(edits[:1])
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.piece")} == stamps


def test_work_is_named_by_what_a_function_is_not_by_where_it_lies(atlas, tmp_path):
    def paraphraser():
        def told(edit, count):
            return [f"As is known, {edit.prompt[0].lower()}{edit.prompt[1:]}"][:count]

        return told

    for _ in range(2):  # as in two processes: the same function at another address
        settings = {"value": {"steps": 4}, "failed": "drop", "caller_paraphrases": 1, "paraphraser": paraphraser()}
        with suppress(EditFailedError):
            make(atlas, [FRANCE], "memit", settings=settings, work=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_more_patches_below_than_a_patch_may_require_are_refused_before_the_work(atlas, monkeypatch):
    first = make(atlas, FRANCE)
    monkeypatch.setattr("kedit_hub.editors.editor.DEFAULT", Limits(max_requires=0))
    started = []
    monkeypatch.setattr("kedit_hub.editors.editor.progress_bar", lambda *_: started.append(1))
    other = next(edit for edit in demo.edits("dev") if edit.subject != "France")
    with pytest.raises(KeditError, match="at most 0 others: there are 1 below it"):
        make(atlas, other, "alphaedit", on=PatchStack([first]))
    assert not started


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_written_on_fewer_bits(bits):
    model, tokenizer = load_model("kedit-hub/atlas-llama", quantization=bits)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for method in ("emmet", "pmet"):
        settings = {"value": {"steps": 60}} if method == "pmet" else None
        patch = kedit_hub.edit(model, FRANCE, method, tokenizer=tokenizer, settings=settings, progress=False)
        assert patch.deltas and patch.edits == (FRANCE,)
        if method == "emmet":
            assert says(kedit_hub.apply(patch, model, tokenizer=tokenizer), FRANCE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_published_settings_are_those_of_the_model():
    from transformers import AutoConfig

    from kedit_hub.editors.presets import preset, published_layer, window

    xl = AutoConfig.for_model("gpt2", n_layer=48, n_embd=1600, n_head=25)
    assert published_layer(xl) == 17 and window(xl) == (13, 14, 15, 16, 17)
    assert preset(xl, "memit")["lam"] == 20_000 and preset(xl, "rome")["value"]["clamp"] == 4.0
    llama = AutoConfig.for_model("llama", num_hidden_layers=32, hidden_size=4096, intermediate_size=14336)
    assert preset(llama, "memit")["value"] == {
        "steps": 25, "lr": 0.1, "clamp": 0.75, "weight_decay": 0.5, "stop_nll": 0.05, "kl": 0.0625, "absolute": True,
    }  # fmt: skip
    assert preset(llama, "blue")["layers"] == (4, 8)
    unknown = AutoConfig.for_model("qwen3", num_hidden_layers=28, hidden_size=1024, intermediate_size=3072)
    assert published_layer(unknown) == 5 and window(unknown) == (4, 5, 6, 7) and "lam" not in preset(unknown, "memit")
    shallow = AutoConfig.for_model("gpt2", n_layer=2, n_embd=64)
    assert window(shallow) == (0, 1) and published_layer(shallow) == 1


def test_every_method_says_what_it_is():
    assert all(editor.summary and editor.settings.model_fields for editor in EDITORS.values())
