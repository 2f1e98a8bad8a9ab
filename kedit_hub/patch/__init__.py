"""The artifact: manifest, tensors, identity, fingerprint, card. Knows tensors and files, not language models."""

from kedit_hub.patch.deltas import Associative, Delta, Dense, LowRank
from kedit_hub.patch.fingerprint import Level, ModuleFingerprint
from kedit_hub.patch.manifest import BaseRef, Manifest
from kedit_hub.patch.patch import Patch

__all__ = ["Associative", "BaseRef", "Delta", "Dense", "Level", "LowRank", "Manifest", "ModuleFingerprint", "Patch"]
