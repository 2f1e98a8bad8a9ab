"""The kinds of change a patch can make to one linear map W (m, d): x (d) -> W x (m). Law: a closed set, checked as one.

associative   rows (k_i, r_i): "at key k_i the output shall move by r_i"   (ROME, MEMIT, AlphaEdit, ...)
lowrank       b @ a                                                         (MEND, DAFNet, LoRA)
dense         one matrix                                                    (fine-tuning)
sparse        one matrix of which most entries are 0                        (masked fine-tuning, KN)
neurons       more units of a feed-forward block                            (T-Patcher, CaliNET)
codebook      outputs replaced near stored inputs                           (GRACE)
sidememory    a second weight, routed to                                    (WISE, MEMOIR)
facts         the edits in words, with a scope                              (SERAC, IKE)
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from kedit_hub.errors import UnknownFormatError
from kedit_hub.patch.deltas.associative import Associative
from kedit_hub.patch.deltas.base import Cost, Delta, Spec
from kedit_hub.patch.deltas.memory import Codebook, Facts, Neurons, SideMemory
from kedit_hub.patch.deltas.weights import Dense, LowRank, Sparse

__all__ = [
    "KINDS",
    "Associative",
    "Codebook",
    "Cost",
    "Delta",
    "Dense",
    "Facts",
    "LowRank",
    "Neurons",
    "SideMemory",
    "Sparse",
    "Spec",
    "from_tensors",
    "kind",
]

KINDS: Mapping[str, type[Delta]] = MappingProxyType(
    {cls.kind: cls for cls in (Associative, LowRank, Dense, Sparse, Neurons, Codebook, SideMemory, Facts)}
)


def kind(name: Any, where: str) -> type[Delta]:
    """The class of a delta kind. Raises UnknownFormatError for a name outside KINDS."""
    if not isinstance(name, str) or name not in KINDS:
        raise UnknownFormatError(
            f"{where} has the delta kind {str(name)[:60]!r}; this version of kedit_hub knows {', '.join(KINDS)}. "
            "Update kedit_hub, or check where the patch comes from."
        )
    return KINDS[name]


def from_tensors(
    name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], where: str, shape: tuple[int, int]
) -> Delta:
    """Build a delta of kind `name`. Tensors and meta must be exactly those the kind knows; shape: (m, d) as stated."""
    return kind(name, where).read(tensors, meta, shape, where)
