"""9 · Identity collision (vLLM #30931, #42125: adapters cached by name): one identity for two contents, or two for one.

The id covers every field and, through its digest, every tensor; a tensor's digest covers its name, dtype, shape and bytes.
Everything that is cached is cached under a digest of all that decides it.
"""

import dataclasses

import pytest
import torch

from kedit_hub.errors import PatchFormatError
from kedit_hub.hub.repo import pull, push
from kedit_hub.patch import Dense, Patch
from kedit_hub.patch.safefile import tensor_digest
from kedit_hub.stack.stack import PatchStack
from tests.attacks.tools import (
    CONFIG,
    DENSE,
    TENSORS,
    Case,
    every,
    first_value,
    forged,
    good,
    header,
    put,
    refuse,
    resealed,
    setting,
    text,
)  # fmt: skip
from tests.patch.build import EVALS, PATHS, D, M, base, make_patch, numbers
from tests.space.tiny import make_workshop, save_base


def swap(a: str, b: str):
    """Two tensors of one size change places in the file."""

    def change(entries):
        entries[a]["data_offsets"], entries[b]["data_offsets"] = entries[b]["data_offsets"], entries[a]["data_offsets"]

    return header(change)


KEYS, CONTEXT = f"{PATHS[1]}/residuals", f"{PATHS[1]}/base_outputs"


def exchanged(config):
    """The digests of two tensors of one dtype and shape change places: each is right, under the other's name."""
    tensors = config["modules"][PATHS[1]]["tensors"]
    tensors["residuals"], tensors["base_outputs"] = tensors["base_outputs"], tensors["residuals"]


CASES = {
    "not resealed": Case(text(CONFIG, '"Rome"', '"Oslo"'), PatchFormatError, "damaged or changed by hand"),
    "id of another patch": Case(text(CONFIG, '"id": "', '"id": "0'), PatchFormatError, "damaged or changed by hand"),
    "no id": Case(put(CONFIG, b'{"format_version": 1}'), PatchFormatError, "not a valid manifest"),
    "id in capitals": Case(
        put(CONFIG, lambda data: data.replace(make_patch().id.encode(), make_patch().id.upper().encode())),
        PatchFormatError,
        "damaged or changed by hand",
    ),
    "another value": Case(first_value(3.0), PatchFormatError, "is not what the manifest"),
    "tensors of another patch": Case(
        put(TENSORS, lambda _: make_patch(deltas={PATHS[2]: Dense(numbers(M, D))}).files()[TENSORS]),
        PatchFormatError,
        "disagree on which tensors",
    ),
    "two names exchanged": Case(resealed(exchanged), PatchFormatError, "is not what the manifest"),
    "digest of another tensor": Case(
        setting("modules", PATHS[2], "tensors", "delta", "sha256", value="0" * 64),
        PatchFormatError,
        f"tensor {DENSE} is not what the manifest",
    ),
    "digest in capitals": Case(
        resealed(
            lambda config: config["modules"][PATHS[2]]["tensors"]["delta"].update(
                sha256=config["modules"][PATHS[2]]["tensors"]["delta"]["sha256"].upper()
            )
        ),
        PatchFormatError,
        "sha256",
    ),
    "dtype of another tensor": Case(
        setting("modules", PATHS[2], "tensors", "delta", "dtype", value="F16"),
        PatchFormatError,
        "is not what the manifest",
    ),
    "shape of another tensor": Case(
        setting("modules", PATHS[2], "tensors", "delta", "shape", value=[D, M]),
        PatchFormatError,
        "is not what the manifest",
    ),
    "bytes of another dtype": Case(
        header(lambda entries: entries[DENSE].update(dtype="F16")), PatchFormatError, "is not what the manifest"
    ),
    "bytes of another shape": Case(
        header(lambda entries: entries[DENSE].update(shape=[D, M])), PatchFormatError, "is not what the manifest"
    ),
    "module of another shape": Case(
        setting("modules", PATHS[2], "shape", value=[D, M]), PatchFormatError, "its fingerprint has another"
    ),
    "negative shape of a module": Case(
        setting("modules", PATHS[2], "shape", value=[-M, D]), PatchFormatError, "greater than"
    ),
    "module in another layer": Case(
        setting("modules", PATHS[2], "layer", value=0), PatchFormatError, "said to be in layer 0"
    ),
    "tensor too many": Case(
        setting("modules", PATHS[2], "tensors", "more", value={"dtype": "F32", "shape": [1], "sha256": "0" * 64}),
        PatchFormatError,
        "disagree on which tensors",
    ),
    "tensor too few": Case(forged(PATHS[1], base_outputs=None), PatchFormatError, "it needs"),
    "tensor that nobody lists": Case(
        header(lambda entries: entries.update({f"{PATHS[2]}/more": entries.pop(DENSE)})),
        PatchFormatError,
        "disagree on which tensors",
    ),
    "time of day": Case(setting("provenance", "time", value="2024-01-01"), PatchFormatError, "provenance.time"),
    "requires by name": Case(setting("requires", value=["user/patch"]), PatchFormatError, "requires.0"),
    "requires unsorted": Case(setting("requires", value=["b" * 64, "a" * 64]), PatchFormatError, "sorted"),
    "requires one twice": Case(setting("requires", value=["a" * 64, "a" * 64]), PatchFormatError, "sorted"),
    "field at its default": Case(setting("requires", value=[]), PatchFormatError, "changed by hand"),
    "null in place of nothing": Case(setting("profile_id", value=None), PatchFormatError, "changed by hand"),
    "edit in another form": Case(setting("edits", 0, "paraphrases", value=[]), PatchFormatError, "changed by hand"),
    "environment that is empty": Case(
        setting("provenance", "environment", value={}), PatchFormatError, "changed by hand", every
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name):
    refuse(CASES[name])


def test_a_digest_covers_where_one_part_ends():
    """Bytes that read the same when name, dtype, shape and data are run together have different digests."""
    a, b = torch.zeros(1, 12), torch.zeros(11, 2)
    assert tensor_digest("x", a) != tensor_digest("x", b[:6].reshape(12, 1)) != tensor_digest("x1", b)
    assert len({tensor_digest(name, numbers(*shape)) for name in ("t", "t1") for shape in ((12,), (1, 2), (2, 1))}) == 6


def test_same_name_other_bytes(tmp_path):
    """Over the same folder, other patches one after the other: each load gives what lies there now."""
    ids = []
    for method in ("rome", "memit", "rome"):
        make_patch(method=method).save(tmp_path / "p")
        ids.append(Patch.load(tmp_path / "p").id)
    assert ids[0] == ids[2] != ids[1]


def test_same_name_other_bytes_on_the_hub(hub, ada, tmp_path):
    there = {"endpoint": hub.endpoint, "token": False, "cache_dir": tmp_path / "cache"}
    commits = []
    for method in ("rome", "memit"):
        made = make_patch(method=method)
        commits.append(push(made, "ada/tower", endpoint=hub.endpoint, token=ada.token).commit)
        assert pull("ada/tower", **there).id == made.id
    assert [pull(f"ada/tower@{commit}", **there).manifest.method for commit in commits] == ["rome", "memit"]


def test_same_bytes_other_name(tmp_path):
    one, two = (Patch.load(make_patch().save(tmp_path / name)) for name in ("one", "two"))
    assert one == two and hash(one) == hash(two) and len(PatchStack([one, two])) == 1


def test_a_stack_does_not_take_a_patch_for_its_namesake(tmp_path):
    """Two patches that share everything a person would look at: edits, base, method, module."""
    one = make_patch()
    two = make_patch(deltas={**one.deltas, PATHS[2]: Dense(numbers(M, D).bfloat16() * 2)})
    assert len(PatchStack([one, two])) == 2 and one.id != two.id


def test_warm_views_of_the_page_are_kept_by_content(tmp_path):
    workshop = make_workshop(save_base(tmp_path))
    loaded = workshop.load(next(iter(workshop.bases)))
    one, other = workshop.samples[:2]
    again = dataclasses.replace(one, patch=Patch.from_files(one.patch.files()), where="elsewhere")
    with loaded.lock:
        first = workshop.patched(loaded, [one])
        assert workshop.patched(loaded, [again]) is first
        assert workshop.patched(loaded, [dataclasses.replace(other, where=one.where)]) is not first
        assert workshop.patched(loaded, [one, other]) is not workshop.patched(loaded, [other, one])


def test_an_object_that_was_changed_in_memory_is_noticed():
    patch = Patch.from_files(good())
    patch.deltas[PATHS[2]].delta[0, 0] += 1
    with pytest.raises(PatchFormatError, match="is not what the manifest"):
        patch.verify()
    with pytest.raises(PatchFormatError, match="is not what the manifest"):
        patch.files()


def test_scores_are_no_part_of_the_identity_but_name_it():
    assert make_patch().replace_evals(EVALS).id == make_patch().id == make_patch(base=base()).id
