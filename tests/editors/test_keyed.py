"""Keys for changes of weights that were made without: inputs at the prompt's and target's tokens, against a pass per edit."""

from typing import Any

import pytest
import torch

from kedit_hub.base.families import linear_shape
from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode
from kedit_hub.editors.keyed import keyed
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError, WrongBaseError
from kedit_hub.patch import Dense, LowRank, Patch, Sparse
from tests.profiles import EDITS, base_of, make_patch, patched, profile_of
from tests.tiny import tiny_model

LONG = Edit("The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is", "Bonn", "Spain")


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_every_change_of_a_weight_gets_the_inputs_of_its_own_map(model_type: str) -> None:
    model, tokenizer = tiny_model(model_type)
    profile = profile_of(model, tokenizer)
    paths = [profile.module, profile.gate_module, profile.module.replace(".1.", ".2.")]
    m, d = linear_shape(model.get_submodule(paths[0]))
    made: list[Any] = [
        LowRank(torch.ones(1, d), torch.ones(m, 1)),
        Dense(torch.ones(m, d)),
        Sparse(torch.tensor([0, 5]), torch.ones(2), (m, d), torch.ones(1, d), torch.tensor([0])),
    ]
    edits = [*EDITS, LONG]
    patch = Patch.create(deltas=dict(zip(paths, made)), edits=edits, base=base_of(model, *paths), method="ft")
    found = keyed(patch, model, tokenizer)
    assert found.manifest.provenance.parents == (patch.id,) and found.edits == patch.edits
    for path, old in zip(paths, made):
        delta: Any = found.deltas[path]
        assert type(delta) is type(old) and torch.equal(delta.change(torch.eye(d)), old.change(torch.eye(d)))
        for number, edit in enumerate(edits):
            encoded = encode(tokenizer, [edit.prompt], [edit.target])
            seen = capture(model, [path], encoded)[path][0]
            expected = seen[max(1, len(seen) - 16) :]
            assert torch.allclose(delta.keys[delta.key_edit == number], expected, atol=1e-4)
            assert edit is not LONG or len(seen) > 17
    model_ = patched(model, tokenizer, profile, [found], "joint", budget=1e6)
    assert model_.report["modules"][paths[0]]["rows"] <= len(found.deltas[paths[0]].keys)


def test_what_has_no_weights_and_another_base_are_refused() -> None:
    model, tokenizer = tiny_model("llama")
    profile = profile_of(model, tokenizer)
    rows = make_patch(model, tokenizer, profile)
    with pytest.raises(KeditError, match="holds associative: keys are given to changes of a weight"):
        keyed(rows, model, tokenizer)
    m, d = linear_shape(model.get_submodule(profile.module))
    base = base_of(model, profile.module)
    patch = Patch.create(deltas={profile.module: Dense(torch.ones(m, d))}, edits=EDITS, base=base, method="ft")
    with pytest.raises(WrongBaseError):
        keyed(patch, tiny_model("llama", seed=1)[0], tokenizer)
