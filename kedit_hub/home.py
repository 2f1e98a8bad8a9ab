"""Where kedit_hub keeps what it has measured and remembered between runs."""

import os
from pathlib import Path


def home() -> Path:
    """$KEDIT_HOME, or ~/.cache/kedit_hub."""
    return Path(os.environ.get("KEDIT_HOME") or Path.home() / ".cache" / "kedit_hub")
