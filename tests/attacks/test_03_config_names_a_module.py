"""3 · A config names a module, class or function to import (peft #3085, pyvene): every name in a patch is a key of a closed
table, a dotted path of plain identifiers, or a label that is only shown.
"""

import ast
import sys

import pytest

import kedit_hub
from kedit_hub.editors.editor import EDITORS
from kedit_hub.errors import KeditError, PatchFormatError, UnknownFormatError
from kedit_hub.patch import Patch
from kedit_hub.patch.deltas import KINDS
from tests.attacks.lint import COMPUTED, ROOT, faults, sources
from tests.attacks.tools import AT, Case, every, refuse, resealed, setting
from tests.patch.build import EDITS, PATHS, make_patch
from tests.tiny import tiny_model


def field(kind: str, name: str, value: object, words: str) -> Case:
    """A field of a module entry of format 2 that names code."""
    return Case(setting("modules", AT[kind], name, value=value), PatchFormatError, words, every)


CASES = {
    "unknown kind": Case(setting("modules", PATHS[0], "kind", value="pickle"), UnknownFormatError, "'pickle'"),
    "kind names a class": Case(
        setting("modules", PATHS[0], "kind", value="os.system"), UnknownFormatError, "'os.system'"
    ),
    "kind names a dunder": Case(
        setting("modules", PATHS[0], "kind", value="__class__"), UnknownFormatError, "'__class__'"
    ),
    "kind is a list": Case(setting("modules", PATHS[0], "kind", value=["dense"]), UnknownFormatError, "['dense']"),
    "kind is missing": Case(
        resealed(lambda config: config["modules"][PATHS[0]].pop("kind")), UnknownFormatError, "'None'"
    ),
    "module entry is a name": Case(setting("modules", PATHS[0], value="os.system"), UnknownFormatError, "'os.system'"),
    "kind of other tensors": Case(setting("modules", PATHS[0], "kind", value="dense"), PatchFormatError, "it needs"),
    "activation names a function": field("neurons", "activation", "os.system", "activation: Input should be"),
    "activation names a class of torch": field("neurons", "activation", "torch.nn.GELU", "activation: Input should be"),
    "precision names a dtype": field("associative-f16", "precision", "torch.float16", "precision: Input should be"),
    "routing names a function": field("sidememory-norm", "routing", "subprocess.run", "routing: Input should be"),
    "positions name a function": field("codebook", "positions", "builtins.eval", "positions: Input should be"),
    "scope names a class": field("facts-lexical", "scope", "transformers.AutoModel", "scope: Input should be"),
    "answer names a function": field("facts-lexical", "answer", "os.system", "answer: Input should be"),
    "site unknown": Case(setting("modules", PATHS[1], "site", value="everywhere"), PatchFormatError, "site"),
    "site missing": Case(
        resealed(lambda config: config["modules"][PATHS[1]].pop("site")), PatchFormatError, "must state"
    ),
    "site on a dense delta": Case(setting("modules", PATHS[2], "site", value="answer"), PatchFormatError, "it needs"),
    "activation on a dense delta": Case(
        setting("modules", AT["dense"], "activation", value="relu"), PatchFormatError, "it needs", every
    ),
    "dunder in gate module": Case(
        setting("modules", PATHS[1], "gate_module", value="model.__init__"), PatchFormatError, "module path"
    ),
    "dunder in input module": field("neurons", "input_module", "model.__class__.__bases__", "module path"),
    "call in input module": field("neurons", "input_module", "os.system('x')", "module path"),
    "method with a call in it": Case(setting("method", value="os.system('x')"), PatchFormatError, "method"),
    "tool with a slash in it": Case(setting("provenance", "tool", value="os/system"), PatchFormatError, "tool"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name):
    refuse(CASES[name])


@pytest.mark.parametrize("name", ["os.system", "antigravity", "torch.hub.load", "rome"])
def test_a_method_is_a_label_and_never_looked_up(name):
    before = set(sys.modules)
    patch = Patch.from_files(make_patch(method=name).files())
    assert patch.manifest.method == name and f"made with `{name}`" in patch.files()["README.md"].decode()
    assert not {module for module in set(sys.modules) - before if module.split(".")[0] in ("antigravity", "os")}


@pytest.mark.parametrize("name", ["os.system", "torch.hub.load", "__init__", "", "memit\0", "../memit"])
def test_editors_are_a_closed_table(name):
    assert name not in EDITORS
    model, tokenizer = tiny_model("llama")
    with pytest.raises(KeditError, match="method"):
        kedit_hub.edit(model, EDITS, name, tokenizer=tokenizer, profile=object())


def test_kinds_are_a_closed_table():
    with pytest.raises(TypeError):
        KINDS["more"] = object  # type: ignore[index]


# Files that look attributes up by a computed name, and whose name it is. A name out of an artifact is none of these.
COMPUTED_BY = {
    "kedit_hub/__init__.py": "a key of the table of public names",
    "kedit_hub/base/profile.py": "one of two fields of the class itself",
    "kedit_hub/commands/dafset.py": "a measure that our own table names",
    "kedit_hub/commands/look.py": "a field of a dataclass of ours",
    "kedit_hub/editors/calibrate.py": "a field of a dataclass of ours",
    "kedit_hub/editors/editor.py": "a field of the settings' own class",
    "kedit_hub/editors/presets.py": "one of three names of a width, written beside it",
    "kedit_hub/editors/locate.py": "one of the settings named beside it",
    "kedit_hub/evaluate/report/cells.py": "a part of a cell that the report asks for",
    "kedit_hub/evaluate/run.py": "one of the fields that say what was asked",
    "kedit_hub/evaluate/scores.py": "three fields of the class itself",
    "kedit_hub/index.py": "a field of the lock's own class",
    "kedit_hub/records/dafset.py": "a measure that our own table names",
    "space/measure_tab.py": "a score that the drawing names",
    "kedit_hub/hub/leaderboard/verification.py": "one of the fields that say what was asked",
    "kedit_hub/patch/deltas/base.py": "a field of the delta's own class",
    "kedit_hub/patch/deltas/memory.py": "a key of the table above it",
    "kedit_hub/patch/diff.py": "a field of a dataclass of ours",
    "kedit_hub/patch/fingerprint.py": "a field of the class itself",
    "kedit_hub/patch/manifest.py": "a field of the class itself",
}


def test_no_source_looks_up_a_name_from_a_patch():
    computing = {
        str(path.relative_to(ROOT))
        for path in sources()
        if any(fault.endswith(COMPUTED) for fault in faults(ast.parse(path.read_text("utf-8"))))
    }
    assert computing <= set(COMPUTED_BY)


@pytest.mark.parametrize(
    "source",
    [
        "getattr(torch, config['dtype'])",
        "importlib.import_module(config['module'])",
        "import_module(name)",
        "setattr(model, name, value)",
        "importlib.util.find_spec(name)",
    ],
)
def test_the_check_sees(source):
    assert faults(ast.parse(source))
