"""The id is a function of everything that matters and of nothing else."""

import copy
import dataclasses

import pytest
import torch

from kedit_hub.patch import Associative, BaseRef, Dense, Patch
from kedit_hub.patch.fingerprint import fingerprint
from kedit_hub.patch.safefile import tensor_digest
from tests.patch.build import EDITS, EVALS, PATHS, Model, associative, base, make_patch, numbers

GOLDEN = "25d7bdb574498e0f01f412d6bd5beffeb3ea84197e0a06fa693a1e35631802bb"


def test_golden():
    """Patches of today keep their id for ever."""
    assert make_patch().id == GOLDEN


def only(delta) -> dict:
    return {PATHS[1]: delta}


def other_base(**changes) -> BaseRef:
    return BaseRef(**{**dict(base()), **changes})


def fingerprint_of_another_model() -> BaseRef:
    model = Model()
    model.get_submodule(PATHS[2]).weight.data[0, 0] += 1
    return other_base(fingerprint=dict(base().fingerprint) | {PATHS[2]: fingerprint(model.get_submodule(PATHS[2]))})


def replaced(**changes):
    return {"deltas": only(dataclasses.replace(associative(), **changes))}


VARIANTS = {
    "method": {"method": "rome"},
    "setting": {"settings": {"lr": 0.2}},
    "setting type": {"settings": {"lr": 1}},
    "setting type float": {"settings": {"lr": 1.0}},
    "setting type bool": {"settings": {"lr": True}},
    "fewer edits": {"edits": EDITS[:1], "deltas": only(Dense(numbers(8, 12)))},
    "order of edits": {"edits": EDITS[::-1]},
    "target": {"edits": (dataclasses.replace(EDITS[0], target="Oslo"), EDITS[1])},
    "probe": {"edits": (dataclasses.replace(EDITS[0], locality=()), EDITS[1])},
    "base id": {"base": other_base(id="org/other")},
    "base revision": {"base": other_base(revision="1" * 40)},
    "model type": {"base": other_base(model_type="gpt2")},
    "base weights": {"base": fingerprint_of_another_model()},
    "profile": {"profile_id": "a" * 64},
    "requires": {"requires": ["b" * 64]},
    "seed": {"provenance": {"version": "0.1.0", "seed": 1}},
    "version": {"provenance": {"version": "0.1.1", "seed": 0}},
    "delta kind": {"deltas": only(Dense(numbers(8, 12)))},
    "delta dtype": {"deltas": only(Dense(numbers(8, 12).half()))},
    "module": {"deltas": {PATHS[2]: associative()}},
    "rows": {"deltas": only(associative())},
    "keys": replaced(keys=numbers(2, 12) + 1),
    "residuals": replaced(residuals=numbers(2, 8) + 1),
    "edit index": replaced(edit_index=torch.tensor([1, 1])),
    "site": replaced(site="subject"),
    "gate module": replaced(gate_module=PATHS[2]),
    "no gate": replaced(gate_keys=None, gate_edit=None, gate_module=None),
}


def test_every_field_changes_the_id():
    ids = {name: make_patch(**changes).id for name, changes in VARIANTS.items()} | {"as it is": make_patch().id}
    assert len(set(ids.values())) == len(ids)


def test_what_does_not_change_the_id():
    patch = make_patch()
    assert patch.replace_evals(EVALS).id == patch.id
    assert patch.replace_evals(EVALS) == patch and hash(patch) == hash(make_patch())
    backwards = make_patch(
        deltas=dict(reversed(patch.deltas.items())), settings=dict(reversed(patch.manifest.settings.items()))
    )
    assert backwards.id == patch.id
    assert make_patch(settings={"note": "Cafe\u0301"}).id == make_patch(settings={"note": "Caf\u00e9"}).id
    assert copy.deepcopy(patch).id == patch.id


def test_tensor_digest_covers_name_dtype_shape_and_bytes():
    tensor = numbers(2, 6)
    variants = [
        tensor_digest("a", tensor),
        tensor_digest("b", tensor),
        tensor_digest("a", tensor.view(torch.int32).long()),
        tensor_digest("a", tensor.reshape(3, 4)),
        tensor_digest("a", tensor + 1),
        tensor_digest("a", tensor.half()),
    ]
    assert len(set(variants)) == len(variants)
    assert tensor_digest("a", tensor) == tensor_digest("a", tensor.T.contiguous().T)


@pytest.mark.parametrize("threads", [1, 2])
def test_id_does_not_depend_on_threads(threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert make_patch().id == GOLDEN
    finally:
        torch.set_num_threads(before)


def test_types():
    assert isinstance(make_patch(), Patch) and isinstance(make_patch().deltas[PATHS[1]], Associative)
