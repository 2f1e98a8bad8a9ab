"""Packed stacks: what comes out is what went in, and every change of a byte is noticed."""

import json
import random
import warnings

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kedit_hub import strictjson
from kedit_hub.errors import KeditError, LimitError, PatchFormatError, SignatureError, UnknownFormatError
from kedit_hub.limits import Limits
from kedit_hub.patch import Patch
from kedit_hub.patch.safefile import write_tensors
from kedit_hub.patch.signature import sign
from kedit_hub.stack import packed
from kedit_hub.stack.packed import PACKED, from_packed, pack, packed_files, unpack
from kedit_hub.stack.stack import PatchStack
from tests.patch.build import EVALS, make_patch
from tests.patch.kinds import every_kind

JSON, TENSORS = PACKED
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


@pytest.fixture(scope="module")
def patches():
    """Every kind of delta; with scores and without; signed and not."""
    scored = make_patch().replace_evals(EVALS)
    return [
        scored,
        sign(make_patch(method="rome").replace_evals(EVALS), KEY),
        every_kind(),
        sign(make_patch(method="memoir"), KEY),
    ]


@pytest.fixture(scope="module")
def files(patches):
    return packed_files(patches)


def changed(files, change):
    """stack.json with its parsed value changed in place."""
    value = json.loads(files[JSON])
    change(value)
    return {**files, JSON: strictjson.canonical(value)}


def test_the_same_patches_come_out(patches, tmp_path):
    told = pack(PatchStack(patches, conflicts="latest"), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(PACKED) == sorted(told)
    out = unpack(tmp_path)
    assert [patch.id for patch in out] == [patch.id for patch in patches]
    for was, now in zip(patches, out):
        assert now.evals == was.evals and now.signers == was.signers and now.signature == was.signature
        assert now.files() == was.files()  # byte for byte what a folder of it would hold
        for path, delta in was.deltas.items():
            for name, tensor in delta.to_tensors().items():
                assert torch.equal(now.deltas[path].to_tensors()[name], tensor)


def test_equal_patches_give_equal_bytes_and_a_base_is_kept_once(patches, files):
    again = [Patch.from_files(patch.files()) for patch in patches]
    assert packed_files(again) == files
    assert len(json.loads(files[JSON])["bases"]) == len({p.manifest.base.model_dump_json() for p in patches})


def test_tensors_are_views_of_one_buffer(patches):
    data = packed_files(patches[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of buffers that cannot be written to
        (patch,) = from_packed(data)
    spans = [
        (tensor.data_ptr(), tensor.numel() * tensor.itemsize)
        for delta in patch.deltas.values()
        for tensor in delta.tensors().values()
        if tensor.dtype != torch.float64
    ]
    low, high = min(at for at, _ in spans), max(at + size for at, size in spans)
    assert high - low <= len(data[TENSORS])


def test_packing_over_an_old_pack_leaves_other_files(patches, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    pack(patches, tmp_path)
    pack(patches[:1], tmp_path)
    assert [patch.id for patch in unpack(tmp_path)] == [patches[0].id]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*PACKED, "note.txt"])


def test_nothing_to_pack_and_nowhere_to_write(patches, tmp_path):
    with pytest.raises(KeditError, match="no patch to pack"):
        packed_files([])
    (tmp_path / "file").write_text("")
    with pytest.raises(KeditError, match="Cannot write"):
        pack(patches, tmp_path / "file" / "below")


@pytest.mark.parametrize("name", PACKED)
def test_a_changed_byte_is_noticed_or_means_the_same(patches, files, name):
    """Any one byte: refused, or (a space in JSON that became another white space) the very same patches."""
    draw, data = random.Random(0), files[name]
    for at in {0, 7, 8, 9, len(data) - 1, *(draw.randrange(len(data)) for _ in range(60))}:
        bad = data[:at] + bytes([data[at] ^ draw.choice((1, 2, 16, 32, 128))]) + data[at + 1 :]
        try:
            out = from_packed({**files, name: bad})
        except KeditError:
            continue
        assert [(p.id, p.evals, p.signature) for p in out] == [(p.id, p.evals, p.signature) for p in patches], at


@pytest.mark.parametrize("name", PACKED)
def test_cut_files_and_links_are_refused(files, tmp_path, name):
    for kept in (0, 1, 8, len(files[name]) // 2, len(files[name]) - 2):
        with pytest.raises(PatchFormatError):
            from_packed({**files, name: files[name][:kept]})
    for other, data in files.items():
        (tmp_path / other).write_bytes(data)
    (tmp_path / name).rename(tmp_path / "elsewhere")
    with pytest.raises(PatchFormatError, match="is missing"):
        unpack(tmp_path)
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PatchFormatError, match="symbolic link"):
        unpack(tmp_path)


def first(value):
    return value["patches"][0]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda v: v.update(kedit_packed=2), PatchFormatError, "this kedit_hub reads 1"),
        (lambda v: v.update(kedit_packed=True), PatchFormatError, "this kedit_hub reads 1"),
        (lambda v: v.update(code="x"), PatchFormatError, "must hold exactly"),
        (lambda v: v.update(patches={}), PatchFormatError, "lists of objects"),
        (lambda v: v.update(patches=[1]), PatchFormatError, "lists of objects"),
        (lambda v: v.update(patches=[]), LimitError, "from 1 to 10,000"),
        (lambda v: v.update(patches=[{}] * 10_001), LimitError, "10,001 patches"),
        (lambda v: v["patches"].pop(), PatchFormatError, "tensors of no patch"),
        (lambda v: v["patches"].append({}), PatchFormatError, "must hold a manifest"),
        (lambda v: first(v).update(code="x"), PatchFormatError, "must hold a manifest"),
        (lambda v: first(v)["manifest"].update(base=7), PatchFormatError, "has the base '7'"),
        (lambda v: first(v)["manifest"].update(base=-1), PatchFormatError, "has the base '-1'"),
        (lambda v: first(v)["manifest"].update(base=True), PatchFormatError, "has the base 'True'"),
        (lambda v: first(v)["manifest"].update(method="other"), PatchFormatError, "its contents give"),
        (lambda v: first(v)["manifest"].update(format_version=9), UnknownFormatError, "format_version"),
        (lambda v: first(v)["evals"].update(sha256="0" * 64), PatchFormatError, "changed by hand"),
        (lambda v: first(v).update(evals=[]), PatchFormatError, "is of patch"),
        (lambda v: first(v).update(evals=v["patches"][1]["evals"]), PatchFormatError, "is of patch"),
        (lambda v: first(v).update(signed=v["patches"][1]["signed"]), SignatureError, "config.json. is not what was signed"),
        (lambda v: v["patches"][1]["signed"].update(card="no base64!"), PatchFormatError, "are base64"),
        (lambda v: v["patches"][1]["signed"].update(card="AAAA"), SignatureError, "is not what was signed"),
        (lambda v: v["patches"][1]["signed"].update(header="AAAA"), PatchFormatError, "signed header of patch 1"),
        (lambda v: v["patches"][1]["signed"].pop("card"), PatchFormatError, "signature, card and header"),
        (lambda v: v["patches"].reverse(), PatchFormatError, "lacks the tensor"),
    ],
)  # fmt: skip
def test_hostile_json(files, change, error, words):
    with pytest.raises(error, match=words) as caught:
        from_packed(changed(files, change))
    assert len(str(caught.value)) < 1500


def test_stripping_a_signature_gives_an_unsigned_patch(patches, files):
    """Nobody can see that a signature was there: the digests and signers in a lock are what notices."""
    out = from_packed(changed(files, lambda v: v["patches"][1].pop("signed")))
    assert out[1].id == patches[1].id and out[1].signers == ()


def test_a_patch_twice_is_refused(patches):
    value = packed_files(patches[:1])
    twice = json.loads(value[JSON])
    twice["patches"] *= 2
    tensors = {
        f"p{n}.{path}/{name}": tensor
        for n in (0, 1)
        for path, delta in patches[0].deltas.items()
        for name, tensor in delta.to_tensors().items()
    }
    with pytest.raises(PatchFormatError, match="a patch twice"):
        from_packed({JSON: strictjson.canonical(twice), TENSORS: write_tensors(tensors)})


def test_exchanged_tensors_are_noticed(patches):
    """Two patches with the same modules: each keeps its own tensors."""
    a, b = make_patch(), every_kind()
    mine, theirs = packed_files([a]), packed_files([b])
    with pytest.raises(PatchFormatError):
        from_packed({JSON: mine[JSON], TENSORS: theirs[TENSORS]})


def test_tensors_that_lie_askew_are_refused(files):
    """A header of another length moves every tensor off its alignment; the format allows it, views of a buffer do not."""
    data = files[TENSORS]
    length = int.from_bytes(data[:8], "little")
    askew = (length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :]
    with pytest.raises(PatchFormatError, match="multiple of its item size"):
        from_packed({**files, TENSORS: askew})


def test_bounds(files, patches, monkeypatch):
    with pytest.raises(LimitError, match=r"stack\.safetensors has"):
        from_packed(files, limits=Limits(max_tensor_bytes=100))
    with pytest.raises(LimitError, match=r"stack\.json has"):
        from_packed(files, limits=Limits(max_config_bytes=100))
    monkeypatch.setattr(packed, "MAX_PACKED_TENSORS", 3)
    for refused in (lambda: packed_files(patches), lambda: from_packed(files)):
        with pytest.raises(LimitError, match="tensors"):
            refused()


def test_few_bytes_that_say_much_are_refused(files, patches, monkeypatch):
    """A base is stored once and read with each of its patches: what that comes to is bounded before the first is read."""
    bases = [len(strictjson.canonical(patch.manifest.to_dict()["base"])) for patch in patches]
    monkeypatch.setattr(packed, "MAX_PACKED_BASES", sum(bases))
    assert from_packed(packed_files(patches)) == patches
    monkeypatch.setattr(packed, "MAX_PACKED_BASES", sum(bases) - 1)
    monkeypatch.setattr(packed.Manifest, "from_dict", lambda *_: pytest.fail("a patch was read"))
    for refused in (lambda: packed_files(patches), lambda: from_packed(files)):
        with pytest.raises(LimitError, match=f"have {sum(bases):,} bytes"):
            refused()


def test_patches_of_one_base_share_it(patches, files):
    out = from_packed(files)
    shared = {patch.manifest.base.model_dump_json(): patch.manifest.base for patch in out}
    assert all(patch.manifest.base is shared[patch.manifest.base.model_dump_json()] for patch in out)
    assert 1 <= len(shared) < len(out)
    assert [patch.manifest.to_bytes() for patch in out] == [patch.manifest.to_bytes() for patch in patches]


@pytest.mark.parametrize("fill", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_refused(files, fill):
    data = bytearray(files[TENSORS])
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    at = (
        8
        + length
        + next(e["data_offsets"][0] for e in header.values() if isinstance(e, dict) and e.get("dtype") == "F32")
    )
    data[at : at + 4] = torch.tensor([fill]).numpy().tobytes()
    with pytest.raises(PatchFormatError, match="NaN or infinity"):
        from_packed({**files, TENSORS: bytes(data)})
