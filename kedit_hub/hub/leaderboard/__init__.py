"""A leaderboard: measured runs in a dataset repo of the Hub, ranked by whoever reads it. Law: files are only added, everything a stranger
added is checked when it is read, and what does not hold is left out by name and breaks nothing.

    submit(runs, "lab/board", key=load_key("ada.pem"), create_pr=True)
    board = rank("lab/board", base="org/model", metric="score")
    mark_verified("lab/board", runs_of_the_same_cells, key=load_key("bob.pem"))
    reverify("lab/board", "3f9c0a12", kedit_hub.benchmarking.bench, edits="test", out="again", key=load_key("bob.pem"))

    submissions/<sha256 of it>.jsonl        runs, one in a line (submission.py)
    submissions/<the same>.sig.json         whose they are: one ed25519 signature (sealed.py)
    verifications/<sha256 of it>.json       who measured a run again, signed (verification.py)
    README.md                               the card (card.py)

There is no server and no table of scores: the ranking (board.py) follows from the files alone, the same for everybody.
"""

from kedit_hub.hub.leaderboard.board import Board, Contest, Row, tables
from kedit_hub.hub.leaderboard.contents import Skipped
from kedit_hub.hub.leaderboard.repo import Marked, Submitted, mark_verified, rank, read, reverify, submit
from kedit_hub.hub.leaderboard.verification import TOLERANCE, compare

__all__ = [
    "TOLERANCE",
    "Board",
    "Contest",
    "Marked",
    "Row",
    "Skipped",
    "Submitted",
    "compare",
    "mark_verified",
    "rank",
    "read",
    "reverify",
    "submit",
    "tables",
]
