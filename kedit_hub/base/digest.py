"""What tells one base from all others, whatever it is called: a digest of every weight, for the names of what is kept of it."""

from hashlib import sha256

from torch import nn

from kedit_hub.base.families import quantization_of
from kedit_hub.patch.fingerprint import fingerprint, onloaded
from kedit_hub.patch.safefile import raw


def base_digest(model: nn.Module) -> str:
    """64 hex digits over all parameters as they lie in memory (offloaded ones are brought in), and over the scales of quantized maps.

    About half a second of CPU time for a gigabyte. A fused edit, another dtype or another quantization gives another digest.
    """
    digest = sha256(str(model.config.model_type).encode())  # type: ignore[union-attr]
    for path, module in model.named_modules():
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        with onloaded(module):
            for name, parameter in module.named_parameters(recurse=False):
                digest.update(f"\n{path}.{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
                if not parameter.is_meta:
                    digest.update(raw(parameter.data))
        if quantization_of(module) is not None:
            digest.update(fingerprint(module).model_dump_json().encode())
    return digest.hexdigest()
