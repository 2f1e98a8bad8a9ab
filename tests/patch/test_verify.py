"""verify() hashes again and recognises the base, or names what is wrong."""

import pytest
from torch import nn

from kedit_hub.errors import PatchFormatError, WrongBaseError
from tests.patch.build import PATHS, Model, make_patch


def test_right_base():
    patch = make_patch()
    assert patch.verify() == {}
    assert patch.verify(Model()) == dict.fromkeys(PATHS, "exact")


def test_other_weights_are_refused_by_module_and_model():
    model = Model()
    model.get_submodule(PATHS[1]).weight.data[3, 4] += 0.125
    with pytest.raises(WrongBaseError, match=rf"{PATHS[1]}.*'org/base'.* holds other weights"):
        make_patch().verify(model)


def test_other_shape_is_refused():
    model = Model()
    model.model.layers[2].mlp.down_proj = nn.Linear(8, 12)
    with pytest.raises(
        WrongBaseError, match=r"has shape \(12, 8\); the patch was made for a base where it has \(8, 12\)"
    ):
        make_patch().verify(model)


def test_missing_module_is_refused():
    with pytest.raises(WrongBaseError, match=f"This Linear has no module '{PATHS[0]}'"):
        make_patch().verify(nn.Linear(12, 8))


def test_tensor_changed_in_memory():
    patch = make_patch()
    patch.deltas[PATHS[1]].residuals[1, 1] *= -1
    with pytest.raises(PatchFormatError, match=f"{PATHS[1]}/residuals is not what the manifest"):
        patch.verify()
