"""What an export says it lost: README.md and kedit_export.json hold the scores of both forms, measured or not."""

import json
from pathlib import Path

import pytest
import torch

import kedit_hub
from kedit_hub import strictjson
from kedit_hub.api import ASKED, load_model
from kedit_hub.errors import KeditError
from kedit_hub.stack.export import export
from tests.stack.test_export import Setup, weight_patches

PATCHES = Path(__file__).resolve().parents[2] / "patches"


def read(folder: Path) -> dict:
    data = (folder / "kedit_export.json").read_bytes()
    told = strictjson.loads(data, what="kedit_export.json", max_bytes=1 << 20)
    assert data == strictjson.pretty(told)
    return told


@pytest.fixture(scope="module")
def llama() -> Setup:
    return Setup("llama")


def test_the_record_holds_the_numbers_of_the_solve(llama: Setup, tmp_path: Path) -> None:
    patched = llama.patched(weight_patches(llama))
    told = read(export(patched, tmp_path / "lora"))
    assert [patch["id"] for patch in told["patches"]] == sorted(patched.stack.ids)
    assert (told["format"], told["mode"], told["quantization"], told["measured"]) == ("peft", "joint", None, None)
    found, solved = told["modules"][llama.profile.module], patched.report["modules"][llama.profile.module]
    assert found["rank"] == found["rows"] == 7
    for name in ("fit_mean", "fit_min", "drift_predicted"):
        assert found[name] == solved[name]
    ranks = {module["rank"] for module in told["modules"].values()}
    assert ranks == {2, 3, 7} and told["settings"]["mode"] == "joint"


def test_the_card_says_nothing_that_the_record_does_not_hold(llama: Setup, tmp_path: Path) -> None:
    from kedit_hub.stack.exported import card

    for form in ("peft", "serving", "merged"):
        folder = export(llama.patched(), tmp_path / form, form)
        text = (folder / "README.md").read_text()
        assert text == card(read(folder))
        assert not any(word in text for edit in llama.patched().stack.edits for word in (edit.prompt, edit.subject))


def test_an_export_measures_the_gate_against_what_leaves(tmp_path: Path) -> None:
    """Fifty real edits: behind the gate they answer and disturb nothing, the joint form costs something, and the card says how much."""
    folder = kedit_hub.export(PATCHES / "fifty-facts", tmp_path / "lora")
    measured = read(folder)["measured"]
    assert (measured["edits"], measured["of"], measured["leaves"]) == (50, 50, "joint")
    assert list(measured["forms"]) == ["gated", "joint"]
    model, tokenizer = load_model("kedit-hub/atlas-llama")
    told_by_base: dict = {}
    for mode, scores in measured["forms"].items():
        pm = kedit_hub.apply(PATCHES / "fifty-facts", model, tokenizer=tokenizer, mode=mode)
        sheet = kedit_hub.evaluate(pm, list(pm.stack.edits), protocols=("tf-token",), told_by_base=told_by_base)
        again = sheet.protocols["tf-token"]
        assert scores["reliability"] == pytest.approx(again["reliability"])
        assert scores["locality"] == pytest.approx(again["locality"]) and scores["kl"] == pytest.approx(
            sheet.drift["kl"], abs=1e-6
        )
    assert measured["forms"]["gated"]["reliability"] >= measured["forms"]["joint"]["reliability"]
    text = (folder / "README.md").read_text()
    assert "all of its 50 edits were asked" in text and "`joint`, these files" in text
    assert f"{measured['forms']['joint']['generalization']:.3f}" in text


def test_which_edits_are_asked_is_a_function_of_the_set(
    llama: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kedit_hub.api.ASKED", 2)
    asked: list[list[str]] = []

    def listening(model, edits, **how):
        asked.append([edit.prompt for edit in edits])
        return kedit_hub.evaluate(model, edits, **how)

    monkeypatch.setattr("kedit_hub.api.evaluate", listening)
    first = llama.patched()
    kedit_hub.export(first, tmp_path / "a")
    llama.patches.reverse()
    kedit_hub.export(llama.patched(), tmp_path / "b")
    llama.patches.reverse()
    assert len({tuple(prompts) for prompts in asked}) == 1 and len(asked) == 4 and len(asked[0]) == 2
    assert read(tmp_path / "a")["measured"] | {"of": 4} == read(tmp_path / "b")["measured"]
    assert "2 of its 4 edits were asked" in (tmp_path / "a" / "README.md").read_text() and ASKED == 64
    assert not (llama.logits(llama.patched().model) - llama.logits(first.model)).any()  # measuring left nothing behind


def test_measuring_can_be_left_out_and_a_stack_without_rows_has_one_form(llama: Setup, tmp_path: Path) -> None:
    kedit_hub.export(llama.patched(), tmp_path / "quiet", measure=False)
    assert read(tmp_path / "quiet")["measured"] is None
    assert "What it answers" not in (tmp_path / "quiet" / "README.md").read_text()
    low = weight_patches(llama)
    folder = kedit_hub.export([low], tmp_path / "low", model=llama.model, tokenizer=llama.tokenizer)
    assert list(read(folder)["measured"]["forms"]) == ["joint"] and json.loads(
        (folder / "adapter_config.json").read_text()
    )


def test_only_a_merged_model_is_quantized(llama: Setup, tmp_path: Path) -> None:
    with pytest.raises(KeditError, match=r"'nf4' with format='peft'.*format=\"merged\""):
        export(llama.patched(), tmp_path / "x", quantization="nf4")
    with pytest.raises(KeditError, match="'int3'"):
        export(llama.patched(), tmp_path / "x", "merged", quantization="int3")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir()) and torch.is_grad_enabled()
