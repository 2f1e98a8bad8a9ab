"""Sharing patches: `repo` (push, pull, tag), `search` (find), `ref` (names of patches), `localhub` (a development hub).

Nothing is imported here, so that the development hub starts without loading a tensor library.
"""
