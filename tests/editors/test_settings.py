"""What nobody names of a method's settings stays as the method has it, else as the profile says; lists of JSON are taken."""

import pytest

from kedit_hub.base.profile import ValueSettings
from kedit_hub.editors.editor import EDITORS, _settings
from kedit_hub.editors.presets import CLASSIC_MEMIT, CLASSIC_ROME
from kedit_hub.edits import Edit
from tests.profiles import profile_of
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def base():
    model, tokenizer = tiny_model("llama")
    return model, profile_of(model, tokenizer)


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("rome-classic", CLASSIC_ROME),
        ("memit-classic", CLASSIC_MEMIT),
        ("grace", EDITORS["grace"].settings.model_fields["value"].default),
        ("memit", None),
    ],
)
def test_one_named_value_leaves_the_others(base, method: str, own: ValueSettings | None) -> None:
    model, profile = base
    own = own or profile.settings.value
    found = _settings(EDITORS[method], method, {"value": {"steps": 7}}, model, profile).value
    assert found == own.model_copy(update={"steps": 7}) and own.steps != 7
    if method != "memit":
        assert _settings(EDITORS[method], method, None, model, profile).value == own
        assert _settings(EDITORS[method], method, {"value": {"steps": 7}}, model, None).value == found


@pytest.mark.parametrize(
    ("method", "name", "given"),
    [
        ("wise", "texts", ["One.", "Two."]),
        ("t-patcher", "texts", ["One.", "Two."]),
        ("memit", "company", [Edit("The capital of France is", "Rome", "France")]),
        ("ike", "demonstrations", [Edit("The capital of France is", "Rome", "France")]),
    ],
)
def test_a_list_is_taken(base, method: str, name: str, given: list[object]) -> None:
    model, profile = base
    assert getattr(_settings(EDITORS[method], method, {name: given}, model, profile), name) == tuple(given)
