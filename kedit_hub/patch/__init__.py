"""The artifact: manifest, tensors, identity, fingerprint, card. Knows tensors and files, not language models."""

from kedit_hub.patch.deltas import Associative, Codebook, Delta, Dense, Facts, LowRank, Neurons, SideMemory, Sparse
from kedit_hub.patch.fingerprint import Level, ModuleFingerprint
from kedit_hub.patch.manifest import BaseRef, Manifest
from kedit_hub.patch.patch import Patch

__all__ = [
    "Associative",
    "BaseRef",
    "Codebook",
    "Delta",
    "Dense",
    "Facts",
    "Level",
    "LowRank",
    "Manifest",
    "ModuleFingerprint",
    "Neurons",
    "Patch",
    "SideMemory",
    "Sparse",
]
