"""kedit_hub: git for facts in language models.

    import kedit_hub

    m = kedit_hub.apply("user/patch-id")
    m.ask("The capital of France is")

An edit to a language model is a small versioned patch: tensors, metadata, scores. Patches are made (`edit`), measured (`evaluate`),
shared (`push`, `pull`), and stacked on a full or quantized base (`apply`), where any one can be taken out again without a trace.
Names are loaded when they are first used, so that a command that needs no model starts at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kedit_hub import demo, evaluate
    from kedit_hub.api import apply, build_profile, edit, export, find_instructions, train_editor
    from kedit_hub.base.profile import BaseProfile
    from kedit_hub.benchmarking import bench
    from kedit_hub.editors.editor import methods
    from kedit_hub.editors.hyper.trained import TrainedEditor
    from kedit_hub.edits import Edit, Probe, read_edits
    from kedit_hub.errors import KeditError
    from kedit_hub.evaluate.screen import screen
    from kedit_hub.hub.repo import pull, push
    from kedit_hub.patch.diff import diff
    from kedit_hub.patch.patch import Patch
    from kedit_hub.stack.patched import PatchedModel
    from kedit_hub.stack.stack import PatchStack
    from kedit_hub.verification import verify

_HOMES = {
    "BaseProfile": "kedit_hub.base.profile",
    "Edit": "kedit_hub.edits",
    "KeditError": "kedit_hub.errors",
    "Patch": "kedit_hub.patch.patch",
    "PatchStack": "kedit_hub.stack.stack",
    "PatchedModel": "kedit_hub.stack.patched",
    "Probe": "kedit_hub.edits",
    "TrainedEditor": "kedit_hub.editors.hyper.trained",
    "apply": "kedit_hub.api",
    "bench": "kedit_hub.benchmarking",
    "build_profile": "kedit_hub.api",
    "diff": "kedit_hub.patch.diff",
    "edit": "kedit_hub.api",
    "export": "kedit_hub.api",
    "find_instructions": "kedit_hub.api",
    "methods": "kedit_hub.editors.editor",
    "pull": "kedit_hub.hub.repo",
    "push": "kedit_hub.hub.repo",
    "read_edits": "kedit_hub.edits",
    "screen": "kedit_hub.evaluate.screen",
    "train_editor": "kedit_hub.api",
    "verify": "kedit_hub.verification",
}

__all__ = [
    "BaseProfile",
    "Edit",
    "KeditError",
    "Patch",
    "PatchStack",
    "PatchedModel",
    "Probe",
    "TrainedEditor",
    "apply",
    "bench",
    "build_profile",
    "demo",
    "diff",
    "edit",
    "evaluate",
    "export",
    "find_instructions",
    "methods",
    "pull",
    "push",
    "read_edits",
    "screen",
    "train_editor",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in ("demo", "evaluate"):  # packages; `evaluate` can be called
        return import_module(f"kedit_hub.{name}")
    if name not in _HOMES:
        raise AttributeError(f"kedit_hub has no {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
