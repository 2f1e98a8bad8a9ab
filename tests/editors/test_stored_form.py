"""Rows stored in half the space, or with what solving needs beside them: other bytes, the same edit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kedit_hub.base.profile import BaseProfile
from kedit_hub.editors.editor import make_patch
from kedit_hub.errors import KeditError
from kedit_hub.evaluate.suites import evaluate
from kedit_hub.patch import Associative, Patch
from kedit_hub.patch.deltas.half import decode, encode
from kedit_hub.patch.patch import TENSORS
from tests.profiles import EDITS, patched, profile_of
from tests.tiny import tiny_model

Base = tuple[Any, Any, BaseProfile]
FORMS = [{"precision": "f16"}, {"portable": True}, {"precision": "f16", "portable": True}]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest) -> Base:
    model, tokenizer = tiny_model(request.param)
    return model, tokenizer, profile_of(model, tokenizer)


def edit(base: Base, **settings: Any) -> Patch:
    model, tokenizer, profile = base
    settings = {"value": {"steps": 30, "lr": 0.3, "clamp": 3.0}, **settings}
    return make_patch(model, tokenizer, EDITS, profile, settings=settings, base=("tiny/base", None), progress=False)


def rows_of(patch: Patch, base: Base) -> Associative:
    delta = patch.deltas[base[2].module]
    assert isinstance(delta, Associative)
    return delta


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["gated", "joint"])
def test_every_form_is_read_back_and_says_the_same(base: Base, tmp_path: Path, form: dict[str, Any], mode: str) -> None:
    plain, made = edit(base), edit(base, **form)
    assert made.id != plain.id
    read = Patch.load(made.save(tmp_path / "p"))
    assert read.id == made.id
    for name, tensor in rows_of(made, base).tensors().items():
        assert rows_of(read, base).tensors()[name].equal(tensor), name
    sheets = [
        evaluate(patched(*base, [p], mode), EDITS, protocols=["tf-token"], drift_texts=[]).to_dict()
        for p in (plain, read)
    ]
    assert sheets[0]["protocols"] == sheets[1]["protocols"]
    if mode == "gated":
        assert sheets[0]["protocols"]["tf-token"]["reliability"] == 1.0


def test_the_forms_asked_for_by_name_are_the_default(base: Base) -> None:
    assert edit(base, precision="f32", portable=False).id == edit(base).id
    assert not {"precision", "portable"} & set(edit(base, precision="f16").manifest.settings)


def test_f16_takes_half_the_bytes(base: Base) -> None:
    plain, half = (edit(base, precision=p) for p in ("f32", "f16"))
    assert len(half.files()[TENSORS]) < 0.56 * len(plain.files()[TENSORS])
    for name in ("keys", "residuals", "base_outputs", "context_keys", "gate_keys"):
        tensor = rows_of(plain, base).tensors()[name]
        assert rows_of(half, base).tensors()[name].equal(decode(*encode(tensor), name)), name


@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_whitened_keys_solve_the_ridged_system_of_the_keys_that_are_stored(base: Base, precision: str) -> None:
    c0 = base[2].second_moment.double()
    ridged = c0 + 1e-3 * torch.trace(c0) / len(c0) * torch.eye(len(c0))
    delta = rows_of(edit(base, precision=precision, portable=True), base)
    assert delta.whitened_keys is not None and delta.whitened_keys.dtype == torch.float32
    expected = torch.linalg.solve(ridged, delta.keys.double().T).T
    assert (delta.whitened_keys - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("wrong", [{"precision": "f8"}, {"portable": "yes"}])
def test_other_forms_are_refused(base: Base, wrong: dict[str, Any]) -> None:
    with pytest.raises(KeditError, match=next(iter(wrong.values()))):
        edit(base, **wrong)
