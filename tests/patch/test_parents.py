"""The patches a patch was made from, in its provenance."""

import pytest

from kedit_hub.errors import LimitError, PatchFormatError
from kedit_hub.limits import Limits
from kedit_hub.patch import Patch
from tests.patch.build import make_patch

ONE, TWO = "1" * 64, "2" * 64


def made(*parents: str, **more: object) -> Patch:
    return make_patch(provenance={"version": "0.1.0", "parents": parents}, **more)


def test_parents_are_of_format_two_and_their_absence_is_not() -> None:
    patch = made(ONE, TWO)
    assert patch.manifest.format_version == 2 and patch.manifest.provenance.parents == (ONE, TWO)
    assert Patch.from_files(patch.files()) == patch
    assert made().manifest.format_version == 1 and made() == make_patch(provenance={"version": "0.1.0"})


@pytest.mark.parametrize("parents", [(TWO, ONE), (ONE, ONE)])
def test_they_are_sorted_and_named_once(parents: tuple[str, str]) -> None:
    with pytest.raises(PatchFormatError, match="parents must be sorted and name every patch once"):
        made(*parents)


def test_they_are_ids_and_few() -> None:
    with pytest.raises(PatchFormatError, match=r"provenance\.parents"):
        made("main")
    with pytest.raises(LimitError, match="2 parents; at most 1"):
        made(ONE, TWO, limits=Limits(max_requires=1))
