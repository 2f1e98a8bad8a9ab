"""Every hostile file is refused by a typed error that says what is wrong."""

import pytest

from kedit_hub.patch import Patch
from tests.attacks.corpus import ATTACKS, good
from tests.patch.build import make_patch

GOOD = good()


def test_good_files_load():
    assert Patch.from_files(GOOD) == make_patch()


@pytest.mark.parametrize("name", ATTACKS)
def test_refused(name):
    attack, error, words = ATTACKS[name]
    with pytest.raises(error) as caught:
        Patch.from_files(attack(GOOD))
    assert type(caught.value) is error
    assert words in str(caught.value)
    assert len(str(caught.value)) < 1500
