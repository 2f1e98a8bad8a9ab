"""Making patches: one function of (base, edits, settings) per method, registered by name."""
