"""The edits that did not take, and what is said of them. Law: none is left out silently, and a patch of none is not made."""

from collections.abc import Iterable, Sequence
from typing import Literal

from kedit_hub.edits import Edit
from kedit_hub.errors import EditFailedError


def untaken(
    edits: Sequence[Edit], took: Iterable[bool], failed: Literal["raise", "drop"], where: str, why: str
) -> list[Edit]:
    """The edits that did not take (E,). EditFailedError names them where they are not to be dropped, or are all.

    where: "with WISE at layer 3". why: what was tried, and the remedy.
    """
    lost = [edit for edit, good in zip(edits, took) if not good]
    if lost and (failed == "raise" or len(lost) == len(edits)):
        shown = "; ".join(f'"{edit.prompt} -> {edit.target}"' for edit in lost[:5]) + ("; ..." if len(lost) > 5 else "")
        raise EditFailedError(f"{len(lost)} of {len(edits)} edits did not take {where}: {shown}. {why}")
    return lost
