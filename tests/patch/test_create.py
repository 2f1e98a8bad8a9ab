"""Patch.create refuses what load would refuse, in the same words."""

import pytest
import torch

from kedit_hub.errors import LimitError, PatchFormatError
from kedit_hub.limits import Limits
from kedit_hub.patch import BaseRef, Dense
from tests.patch.build import EDITS, PATHS, base, make_patch, numbers


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"edits": ()}, "no edits"),
        ({"deltas": {}}, "changes no module"),
        ({"deltas": {"../../etc": Dense(numbers(8, 12))}}, "must be a module path"),
        ({"deltas": {"model.norm": Dense(numbers(8, 12))}}, "base.fingerprint lacks 'model.norm'"),
        ({"deltas": {PATHS[0]: Dense(numbers(8, 11))}}, "its fingerprint has another, (8, 12)"),
        ({"deltas": {PATHS[0]: Dense(numbers(8, 12) / 0)}}, "NaN or infinity"),
        ({"deltas": {PATHS[0]: Dense(numbers(8, 12).int())}}, "dtype torch.int32; dense takes F32 or F16 or BF16"),
        ({"settings": {"lr": float("nan")}}, "float values are not JSON"),
        ({"settings": {"dtype": torch.float32}}, "type dtype is not JSON"),
        ({"settings": {"nested": {"a": 1}}}, "settings.nested"),
        ({"settings": {"../x": 1}}, "must be a name"),
        ({"method": "My Method"}, "method: Value error, must be a name"),
        ({"requires": ["v1.0"]}, "requires.0"),
        ({"profile_id": "x"}, "profile_id"),
        ({"provenance": {"time": "2024-01-01"}}, "provenance.time: Extra inputs are not permitted"),
        ({"provenance": {"commit": "main"}}, "40 hex digits"),
    ],
)
def test_refused(changes, words):
    with pytest.raises(PatchFormatError) as caught:
        make_patch(**changes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id": "/home/ann/model"}, "a Hub id, owner/name or name (not a path)"),
        ({"id": "../model"}, "not a path"),
        ({"id": "a/b/c"}, "not a path"),
        ({"revision": "main"}, "a branch or tag can move"),
    ],
)
def test_base_must_be_nameable(changes, words):
    with pytest.raises(PatchFormatError) as caught:
        BaseRef(**{**dict(base()), **changes})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "limits", [Limits(max_edits=1), Limits(max_modules=2), Limits(max_settings=5), Limits(max_path_chars=9)]
)
def test_limits(limits):
    with pytest.raises(LimitError, match="at most"):
        make_patch(limits=limits)


def test_what_is_kept():
    patch = make_patch(requires=["b" * 64, "a" * 64, "b" * 64])
    assert patch.edits == EDITS
    assert patch.manifest.requires == ("a" * 64, "b" * 64)
    assert patch.manifest.settings == {
        "flag": True,
        "layers": [1, 2],
        "lr": 0.1,
        "none": None,
        "note": "é",
        "steps": 20,
    }
    assert patch.manifest.modules[PATHS[1]].layer == 1
    assert repr(patch) == f"Patch({patch.id[:12]}, memit, 2 edits, org/base)"


def test_scores_must_be_finite_json():
    patch = make_patch()
    for evals in ({"x": float("nan")}, {"x": torch.ones(1)}, ["list"], {"patch_id": "x"}):
        with pytest.raises(PatchFormatError, match="Scores"):
            patch.replace_evals(evals)
    assert patch.replace_evals({"a": (1, 2)}).evals == {"a": [1, 2]}
    assert patch.replace_evals(None).evals is None
