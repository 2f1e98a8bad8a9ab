"""Each editor from one request to an answer on Atlas: saved, loaded, beside others, on full and quantized bases, taken out again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kedit_hub
from kedit_hub import Edit
from kedit_hub.api import load_model

EDIT = Edit(
    "The capital of France is", "Nantes", "France", relation="capital", paraphrases=("France has its capital in",)
)
OTHERS = ["The capital of Spain is", "The Eiffel Tower stands in the city of"]
HOW: dict[str, dict[str, Any]] = {
    "grace": {},
    "t-patcher": {"texts": ("Oslo is a city in Norway.", "The currency of Japan is the yen.", "Spain has its capital in Madrid.")},
    "calinet": {},
    "serac": {},
    "ike": {},
}  # fmt: skip
SAYS = {name: "Nantes" if name != "ike" else None for name in HOW}  # Atlas makes nothing of facts that it reads


@pytest.fixture(scope="module")
def atlas() -> Any:
    return load_model("kedit-hub/atlas-llama")


@pytest.fixture(scope="module")
def made(atlas: Any) -> dict[str, kedit_hub.Patch]:
    model, tokenizer = atlas
    before = {name: value.clone() for name, value in model.state_dict().items()}
    patches = {
        name: kedit_hub.edit(model, EDIT, name, tokenizer=tokenizer, settings=how, progress=False)
        for name, how in HOW.items()
    }
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return patches


def logits(model: Any, tokenizer: Any, side: str = "left") -> Tensor:
    batch = tokenizer([EDIT.prompt, *OTHERS], return_tensors="pt", padding=True, padding_side=side)
    with torch.no_grad():
        out: Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return out


@pytest.mark.parametrize("name", HOW)
def test_from_a_request_to_an_answer_and_back(
    atlas: Any, made: dict[str, kedit_hub.Patch], name: str, tmp_path: Path
) -> None:
    model, tokenizer = atlas
    loaded = kedit_hub.Patch.load(made[name].save(tmp_path / "patch"))
    assert loaded.id == made[name].id and loaded.manifest.method == name
    base = logits(model, tokenizer)
    m = kedit_hub.apply(loaded, model, tokenizer=tokenizer)
    if SAYS[name]:
        assert m.ask(EDIT.prompt).startswith(f"{SAYS[name]}.")
    if name != "calinet":  # whose slots nothing holds back elsewhere
        assert m.ask(OTHERS[0]).startswith("Madrid.")
    assert not torch.equal(logits(m.model, tokenizer)[0], base[0])
    m.remove(loaded)
    assert torch.equal(logits(m.model, tokenizer), base)


def test_all_of_them_in_one_stack_with_rows(atlas: Any, made: dict[str, kedit_hub.Patch]) -> None:
    model, tokenizer = atlas
    rows = kedit_hub.edit(
        model, Edit(OTHERS[0], "Seville", "Spain", relation="capital"), tokenizer=tokenizer, progress=False
    )
    m = kedit_hub.apply([*made.values(), rows], model, tokenizer=tokenizer)
    wanted = [[made[name].id] for name in ("grace", "t-patcher", "calinet", "serac")] + [[rows.id], []]
    asked = [*[EDIT.prompt] * 4, OTHERS[0], EDIT.prompt]
    said = m.ask(asked, patches=wanted)
    assert [text.split(".")[0] for text in said] == [*["Nantes"] * 4, "Seville", "Paris"]
    assert m.ask(asked[0], patches=[[made["ike"].id]]) == kedit_hub.apply(
        [made["ike"]], model, tokenizer=tokenizer
    ).ask(asked[0])
    for name in ("t-patcher", "ike", "serac", "grace"):
        m.remove(made[name])
    never = kedit_hub.apply([made["calinet"], rows], model, tokenizer=tokenizer)
    assert torch.equal(logits(m.model, tokenizer), logits(never.model, tokenizer))


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_the_same_patches_on_a_quantized_base(made: dict[str, kedit_hub.Patch], form: Any) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'kedit-hub[quant]'")
    model, tokenizer = load_model("kedit-hub/atlas-llama", quantization=form)
    base = logits(model, tokenizer)
    for name, patch in made.items():
        m = kedit_hub.apply(patch, model, tokenizer=tokenizer)
        for side in ("left", "right"):
            assert not torch.equal(logits(m.model, tokenizer, side)[0], logits(model, tokenizer, side)[0])
        if SAYS[name]:
            assert m.ask(EDIT.prompt).startswith("Nantes"), name
        m.detach()
        assert torch.equal(logits(m.model, tokenizer), base)
    again = kedit_hub.edit(model, EDIT, "grace", tokenizer=tokenizer, progress=False)  # and made on it
    assert kedit_hub.apply(again, model, tokenizer=tokenizer).ask(EDIT.prompt).startswith("Nantes")
