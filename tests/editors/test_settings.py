"""What nobody names of a method's settings stays as the method has it, else as the profile says; lists of JSON are taken; what cannot be
is refused before anything is done, by its name."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import kedit_hub
from kedit_hub.base.profile import ValueSettings
from kedit_hub.editors.editor import EDITORS, _settings, make_patch
from kedit_hub.editors.finetune import FinetuneSettings, FTLSettings
from kedit_hub.editors.locate import LocateSettings
from kedit_hub.editors.memory.grace import GraceSettings
from kedit_hub.editors.presets import CLASSIC_MEMIT, CLASSIC_ROME
from kedit_hub.editors.spread import SpreadSettings
from kedit_hub.editors.ultraedit import UltraEditSettings
from kedit_hub.edits import Edit, Probe
from kedit_hub.errors import EditError, KeditError
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


@pytest.mark.parametrize("method", EDITORS)
def test_an_object_says_no_more_than_it_was_given(base, method: str) -> None:
    """The defaults of a class are nobody's wish: an empty object is no settings at all."""
    model, profile = base
    kind = EDITORS[method].settings
    assert _settings(EDITORS[method], method, kind(), model, profile) == _settings(
        EDITORS[method], method, None, model, profile
    )


def _words(prompt: str) -> list[str]:
    return [prompt]


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("alphaedit", SpreadSettings(lam=3.0)),
        ("alphaedit-spread", SpreadSettings(null_rank=0.5, value=ValueSettings(steps=7, kl=0.0))),
        ("rome-classic", LocateSettings(value=ValueSettings(steps=7))),
        ("grace", GraceSettings(value=ValueSettings(steps=7))),
        ("ft-l", FTLSettings(lr=0.1)),
        ("ultraedit", UltraEditSettings(maps={"up": (1,)})),
        ("memit", LocateSettings(company=(Edit("The capital of France is", "Rome", "France"),))),
        ("memit", LocateSettings(paraphraser=_words, caller_paraphrases=1)),
    ],
)
def test_an_object_and_a_mapping_say_the_same(base, method: str, given: BaseModel) -> None:
    model, profile = base
    told = {name: getattr(given, name) for name in given.model_fields_set}
    if isinstance(told.get("value"), ValueSettings):
        told["value"] = {name: getattr(told["value"], name) for name in told["value"].model_fields_set}
    found: Any = _settings(EDITORS[method], method, given, model, profile)
    assert found == _settings(EDITORS[method], method, told, model, profile)
    assert found != _settings(EDITORS[method], method, None, model, profile)
    assert all(getattr(found, name) == given_ for name, given_ in told.items() if name != "value")


def test_an_object_of_another_method_is_refused(base) -> None:
    model, profile = base
    for method, given in (
        ("memit", SpreadSettings()),
        ("ft-m", FTLSettings()),
        ("ft", FinetuneSettings()),
        ("rome", 3),
    ):
        with pytest.raises(KeditError, match=f"must be a mapping or {EDITORS[method].settings.__name__}, not"):
            _settings(EDITORS[method], method, given, model, profile)  # type: ignore[arg-type]


def test_an_object_is_kept_in_a_folder_of_work(tmp_path: Path) -> None:
    base = tiny_model("llama")
    profile = profile_of(*base)
    edit = Edit("The capital of France is", "Rome", "France")
    made = [
        kedit_hub.edit(
            base[0],
            edit,
            "alphaedit",
            tokenizer=base[1],
            profile=profile,
            settings=settings,
            work=tmp_path,
            progress=False,
        ).manifest.settings
        for settings in (
            SpreadSettings(null_rank=0.5, failed="drop", value=ValueSettings(steps=60, lr=0.5)),
            {"null_rank": 0.5, "failed": "drop", "value": {"steps": 60, "lr": 0.5}},
        )
    ]
    assert made[0] == made[1]
    assert (made[0]["preconditioner"], made[0]["history"]) == ("null-space", True)
    assert len(list(tmp_path.rglob("*.piece"))) == 1  # found again


NAMES = (
    "lam",
    "l2",
    "null_threshold",
    "step",
    "eta",
    "ridge",
    "scale",
    "norm_bound",
    "lr",
    "stop_loss",
    "radius",
    "routing",
    "beta",
)
NUMBERS = [
    (method, name) for method, editor in EDITORS.items() for name in NAMES if name in editor.settings.model_fields
]


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize(("method", "name"), NUMBERS)
def test_a_number_that_is_none_is_refused_at_once(base, method: str, name: str, number: float) -> None:
    with pytest.raises(KeditError, match=f"{method} does not take the setting {name}={number!r}: .*it takes"):
        _settings(EDITORS[method], method, {name: number}, *base)


@pytest.mark.parametrize("name", ["lr", "clamp", "weight_decay", "kl", "anchor", "stop_nll"])
def test_a_value_setting_that_is_no_number_is_refused_at_once(base, name: str) -> None:
    with pytest.raises(KeditError, match=rf"memit does not take the setting value\.{name}=inf: .*finite"):
        _settings(EDITORS["memit"], "memit", {"value": {name: float("inf")}}, *base)


def test_an_infinite_omega_is_an_equality(base) -> None:
    assert _settings(EDITORS["emmet"], "emmet", {"omega": float("inf")}, *base).omega == float("inf")
    with pytest.raises(KeditError, match="omega=nan"):
        _settings(EDITORS["emmet"], "emmet", {"omega": float("nan")}, *base)


@pytest.mark.parametrize(
    ("method", "asked", "said"),
    [
        ("ft-m", {"lr": 0.0}, r"the setting lr=0.0: Input should be greater than 0 or Input should be 'auto'; it takes"),
        ("ft-l", {"norm_bound": -1.0}, r"the setting norm_bound=-1.0: Input should be greater than 0 or"),
        ("ft-l", {"norm_bound": "big"}, r"the setting norm_bound='big': Input should be a valid number or Input should be 'auto'"),
        ("memit-spread", {"layers": 2}, r"the setting layers=2: write layers=\[2\]$"),
        ("ft", {"layers": 2}, r"the setting layers=2: write layers=\[2\]$"),
        ("ft", {"layers": [-2]}, r"the setting layers\.0=-2: Input should be greater"),
        ("kn", {"contexts": "So."}, r"the setting contexts='So.': write contexts=\['So.'\]$"),
        ("ultraedit", {"maps": {"up": 2}}, r"the setting maps\.up=2: write maps\.up=\[2\]$"),
        ("ultraedit", {"maps": {"c_fc": [2]}}, r"the setting maps\.c_fc='c_fc': Input should be 'down', 'up'"),
        ("ultraedit", {"step": 1.0, "eta": 1e-6}, "ultraedit does not take these settings together: eta is given in place of step"),
        ("ft", {"answer_end": "."}, "ft does not take these settings together: answer_end is learnt"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_as_it_was_written(base, method: str, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(KeditError, match=said):
        _settings(EDITORS[method], method, asked, *base)


@pytest.mark.parametrize(
    ("method", "asked", "said"),
    [
        ("memit-spread", {"null_rank": 0.5}, 'null_rank=0.5 says where .*preconditioner="second-moment" has none'),
        ("emmet", {"null_threshold": 0.5, "preconditioner": "identity"}, 'null_threshold=0.5 .*="identity" has none'),
        ("alphaedit", {"null_rank": 0.5, "null_threshold": 0.1}, "null_rank=0.5 and null_threshold=0.1 both say"),
        ("alphaedit", {"l2": 1.0, "lam": 0.1}, "l2=1 and lam=0.1 are one thing"),
        ("memit-spread", {"l2": 1.0}, '"second-moment" takes lam'),
        ("rome-published", {"omega": 1.0}, "meets a value exactly, which omega=1 is not"),
        ("rome-published", {"history": True}, "set history=false"),
        ("alphaedit", {"keys": "bare", "at_once": 1, "layers": [1]}, "set history=false"),
    ],
)
def test_what_would_have_no_effect_is_refused(method: str, asked: dict[str, Any], said: str) -> None:
    model, tokenizer = tiny_model("llama")
    profile = profile_of(model, tokenizer, site="subject")
    edit = Edit("The capital of France is", "Rome", "France")
    with pytest.raises(KeditError, match=said):
        make_patch(model, tokenizer, [edit], profile, method=method, settings=asked, base=("t/b", None), progress=False)


CAPITAL = {"subject": "France", "relation": "capital"}
NANTES = Edit("The capital of France is", "Nantes", **CAPITAL)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Edit("The capital city of France is", "Oslo", **CAPITAL), 'one question, "The capital of France is" and "The capital city of'),
        (Edit("the capital of  France is", "Oslo"), "one question"),
        (Edit("The capital of France is", "Oslo"), 'different answers to "The capital of France is": "Nantes" and "Oslo"'),
        (
            Edit("L'Hexagone is ruled from", "Oslo", "L'Hexagone", relation="capital",
                 portability=(Probe("France is ruled from", "Oslo", "alias", subject="France"),)),
            "one question",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["memit", "alphaedit", "ft"])
def test_edits_of_one_patch_may_not_contradict_each_other(base, method: str, other: Edit, said: str) -> None:
    model, profile = base
    tokenizer = tiny_model("llama")[1]
    with pytest.raises(EditError, match=said):
        make_patch(model, tokenizer, [NANTES, other], profile, method=method, base=("tiny/base", None), progress=False)


def test_edits_that_agree_are_one_patch(base) -> None:
    model, profile = base
    same = [
        NANTES,
        Edit("The capital city of France is", "nantes", **CAPITAL),
        Edit("The river of France is", "Oslo", "France"),
    ]
    made = make_patch(
        model,
        tiny_model("llama")[1],
        same,
        profile,
        method="ft",
        settings={"epochs": 1},
        base=("tiny/base", None),
        progress=False,
    )
    assert len(made.edits) == 3
