"""kedit_hub: git for facts in language models."""

__version__ = "0.1.0"
