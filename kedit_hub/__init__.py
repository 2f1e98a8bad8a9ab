"""kedit_hub: git for facts in language models.

    import kedit_hub

    m = kedit_hub.apply("user/patch-id")
    m.ask("The capital of France is")

An edit to a language model is a small versioned patch: tensors, metadata, scores. Patches are made (`edit`), measured (`evaluate`),
shared (`push`, `pull`), and stacked on a full or quantized base (`apply`), where any one can be taken out again without a trace.
"""

__version__ = "0.1.0"

from kedit_hub import demo
from kedit_hub.api import apply, build_profile, edit
from kedit_hub.base.profile import BaseProfile
from kedit_hub.editors.editor import methods
from kedit_hub.edits import Edit, Probe, read_edits
from kedit_hub.errors import KeditError
from kedit_hub.evaluate.suites import evaluate  # the function; the package's modules are imported by their full names
from kedit_hub.hub.repo import pull, push
from kedit_hub.patch.patch import Patch

# export
from kedit_hub.stack.patched import PatchedModel
from kedit_hub.stack.stack import PatchStack

__all__ = [
    "BaseProfile",
    "Edit",
    "KeditError",
    "Patch",
    "PatchStack",
    "PatchedModel",
    "Probe",
    "apply",
    "build_profile",
    "demo",
    "edit",
    "evaluate",

    "methods",
    "pull",
    "push",
    "read_edits",
]
