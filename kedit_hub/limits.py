"""Every bound in one place. Law: nothing read from outside grows without one of these numbers above it.

from kedit_hub.limits import DEFAULT, Limits
Patch.load(folder, limits=Limits(max_tensor_bytes=1 << 33))      # to accept more, say so
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on what is read. Sizes in bytes, texts in Unicode code points, counts in pieces."""

    # JSON, wherever it is read
    max_json_depth: int = 32  # nested lists and objects
    max_json_digits: int = 19  # digits of one integer literal; more never fits 64 bits

    # edits
    max_records_bytes: int = 1 << 28  # one file of edit records
    max_text_chars: int = 20_000  # one prompt, target, subject, ...
    max_probes: int = 1_000  # rephrases, paraphrases, locality or portability probes of one edit, each

    # patch files
    max_config_bytes: int = 1 << 26  # config.json
    max_evals_bytes: int = 1 << 26  # evals.json
    max_tensor_bytes: int = 1 << 32  # patch.safetensors
    max_header_bytes: int = 1 << 24  # header of patch.safetensors
    max_card_bytes: int = 1 << 22  # README.md, which is read only to check a signature over it
    max_signature_bytes: int = 1 << 20  # signature.json
    max_signers: int = 16  # signatures in it

    # patch contents
    max_edits: int = 100_000
    max_modules: int = 1_024
    max_tensors: int = 8_192
    max_rows: int = 1_000_000  # stored keys of one associative delta
    max_nonzeros: int = 1 << 28  # entries of one sparse delta
    max_datasets: int = 64  # data sets named in the provenance
    max_rank: int = 65_536  # rank of one low-rank delta
    max_dim: int = 1 << 20  # one side of a weight matrix
    max_path_chars: int = 256  # one module path
    max_requires: int = 1024
    max_settings: int = 256  # hyperparameters of a method; also the entries of one list-valued hyperparameter
    max_told: int = 64  # facts, and demonstrations, put before one question
    max_abs_value: float = 1e6  # largest |x| of any stored float: beyond it a delta is poison, not knowledge


DEFAULT = Limits()

# Files of the user's own, not of the format: nobody needs to raise these.
MAX_TRUST_BYTES = 1 << 20  # a trust policy
MAX_SEEN_BYTES = 1 << 16  # what is remembered of one Hub repo
MAX_KEY_BYTES = 1 << 16  # the file of a private key
MAX_BUNDLE_BYTES = 1 << 24  # a model-signing bundle

# Stacks
MAX_LOCK_BYTES = 1 << 24  # kedit.lock
MAX_LOCK_PATCHES = 10_000  # patches a lock names, and patches in one packed stack
MAX_PACKED_TENSORS = 1 << 17  # tensors in stack.safetensors: those of many patches in one file
MAX_PACKED_BASES = (
    1 << 28
)  # bytes of the base of every patch in one: a base is stored once, and read with each of its patches
