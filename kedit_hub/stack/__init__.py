"""Composing patches: the joint solve, conflicts, the stack and the patched model."""
