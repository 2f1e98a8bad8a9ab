"""Eight bytes of header length may begin like a pickle (80 02 to 80 05): a safetensors file of any header length is read."""

import pytest
import torch

from kedit_hub.errors import PatchFormatError
from kedit_hub.patch.safefile import read_tensors, write_tensors


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_header_lengths_that_look_like_a_pickle(length):
    def written(letters: int) -> bytes:
        names = [f"m.layers.{i}/a{'b' * (letters * (i == 0))}" for i in range(length // 80)]
        return write_tensors({name: torch.ones(1) for name in names})

    data = next(data for data in map(written, range(500)) if int.from_bytes(data[:8], "little") == length)
    assert data[0] == 0x80 and len(read_tensors(data, "x.safetensors")) == length // 80


def test_pickles_are_still_told_apart():
    with pytest.raises(PatchFormatError, match="pickle or zip"):
        read_tensors(b"\x80\x02]q\x00K\x01a.", "x.safetensors")
