"""Sharing patches: `repo` (push, pull, tag), `search` (find), `ref` (names of patches), `seen` (who signed before), `datasets`,
`leaderboard`, `localhub` (a development hub).

Nothing is imported here, so that the development hub starts without loading a tensor library.
"""
