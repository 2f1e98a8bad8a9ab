"""A profile with the second moment at site positions is another profile that still answers to its old name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kedit_hub import api, demo
from kedit_hub.base.families import dense_weight, edited_linear
from kedit_hub.base.profile import BaseProfile
from kedit_hub.base.signals import capture
from kedit_hub.base.tokens import encode
from kedit_hub.editors.sites import facts, with_sites
from kedit_hub.edits import Edit, Probe
from kedit_hub.errors import ProfileError
from kedit_hub.patch.patch import Patch
from tests.profiles import profile_of
from tests.tiny import tiny_model

SAMPLES = sorted(path.parent for path in (Path(__file__).parents[2] / "patches").glob("*/config.json"))
ASKED = (
    Edit(
        "The capital of France is", "Rome", "France", ground_truth="Paris",
        locality=(Probe("The capital of Spain is", "Madrid", "neighbour", "Spain"), Probe("The sky is", None, "unrelated")),
    ),
    Edit("The author of Hamlet is", "Ludwig van Beethoven", "Hamlet"),
)  # fmt: skip


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: Any) -> tuple[Any, Any, BaseProfile]:
    model, tokenizer = tiny_model(request.param)
    return model, tokenizer, profile_of(model, tokenizer)


@pytest.mark.parametrize("site", ["answer", "subject"])
def test_it_is_the_mean_over_the_sites_of_true_facts(base: tuple[Any, Any, BaseProfile], site: Any) -> None:
    model, tokenizer, profile = base
    profile = profile.replace(site=site)
    told = with_sites(model, tokenizer, profile, ASKED)
    rows = []
    for prompt, answer, subject in (
        ("The capital of France is", "Paris", "France"),
        ("The capital of Spain is", "Madrid", "Spain"),
    ):
        inputs = capture(model, [profile.module], encode(tokenizer, [f"{prompt} {answer}"]))[profile.module][0].double()
        start = len(tokenizer(prompt).input_ids)
        until = len(tokenizer(prompt.split(subject)[0] + subject).input_ids)
        rows.append(inputs[start - 1 : -1] if site == "answer" else inputs[until - 1 : until])
    keys = torch.cat(rows)
    assert told.site_moment is not None and told.settings.site_tokens == len(keys)
    assert torch.allclose(told.site_moment.double(), keys.T @ keys / len(keys), rtol=1e-4, atol=1e-8)
    weight = dense_weight(edited_linear(model, profile.layer)[1]).double()
    energy = (weight @ keys.T).square().sum().item() / len(keys)
    assert told.settings.site_energy == pytest.approx(energy, rel=1e-5)


def test_a_fact_without_a_known_answer_or_a_subject_to_stand_on_is_not_told() -> None:
    assert [(e.prompt, e.target) for e in facts(ASKED, "answer")] == [
        ("The capital of France is", "Paris"), ("The capital of Spain is", "Madrid")
    ]  # fmt: skip
    nameless = Edit("Where it lies is", "Rome", ground_truth="Paris")
    assert len(facts([nameless], "answer")) == 1 and facts([nameless], "subject") == []


def test_nothing_told_leaves_the_profile(base: tuple[Any, Any, BaseProfile]) -> None:
    assert with_sites(*base, ASKED[1:]) is base[2]


def test_it_has_its_own_id_and_answers_to_the_old_one(base: tuple[Any, Any, BaseProfile], tmp_path: Path) -> None:
    plain = base[2]
    told = with_sites(*base, ASKED)
    assert told.id != plain.id and told.ids == {told.id, plain.id} and plain.ids == {plain.id}
    assert told.bare().id == plain.id and plain.bare() is plain
    again = BaseProfile.load(told.save(tmp_path / "told"))
    assert again.id == told.id and again.ids == told.ids and torch.equal(again.site_moment, told.site_moment)
    old = json.loads((plain.save(tmp_path / "plain") / "profile.json").read_text())
    assert old["format_version"] == 1 and "site_energy" not in old and "site_tokens" not in old
    assert BaseProfile.load(tmp_path / "plain").id == plain.id


def test_a_matrix_too_many_or_too_few_is_refused(base: tuple[Any, Any, BaseProfile], tmp_path: Path) -> None:
    plain, told = base[2].save(tmp_path / "plain"), with_sites(*base, ASKED).save(tmp_path / "told")
    for tensors, settings in ((plain, told), (told, plain)):
        mixed = tmp_path / f"{tensors.name}-{settings.name}"
        mixed.mkdir()
        (mixed / "profile.safetensors").write_bytes((tensors / "profile.safetensors").read_bytes())
        (mixed / "profile.json").write_bytes((settings / "profile.json").read_bytes())
        with pytest.raises(ProfileError, match="no readable base profile"):
            BaseProfile.load(mixed)
    said = json.loads((told / "profile.json").read_text()) | {"format_version": 1}
    (told / "profile.json").write_text(json.dumps(said))
    with pytest.raises(ProfileError, match="no readable base profile"):
        BaseProfile.load(told)


@pytest.mark.parametrize("damage", ["nan", "cut", "behind", "pickle", "twice"])
def test_the_tensors_are_read_as_strictly_as_those_of_a_patch(
    base: tuple[Any, Any, BaseProfile], tmp_path: Path, damage: str
) -> None:
    folder = base[2].save(tmp_path)
    data = (folder / "profile.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size]
    damaged = {
        "nan": data[:-4] + b"\x00\x00\xc0\x7f",
        "cut": data[:-4],
        "behind": data + b"\x00",
        "pickle": b"\x80\x04K\x01.",
        "twice": data[:8] + header.replace(b"second_moment", b"gate_moment", 1).rstrip().ljust(size) + data[8 + size :],
    }[damage]
    (folder / "profile.safetensors").write_bytes(damaged)
    with pytest.raises(ProfileError, match="no readable base profile"):
        BaseProfile.load(folder)


@pytest.mark.parametrize("architecture", demo.ARCHITECTURES)
def test_the_shipped_profiles_have_it(architecture: str) -> None:
    profile = demo.profile(architecture)
    assert profile is not None and profile.site_moment is not None and profile.settings.format_version == 2
    for name in profile.ids:
        found = api.find_profile(name)
        assert found is not None and found.id == profile.id


@pytest.mark.parametrize("folder", SAMPLES, ids=lambda folder: folder.name)
def test_the_sample_patches_find_their_profile(folder: Path) -> None:
    patch = Patch.load(folder)
    if patch.manifest.profile_id is not None:
        found = api.find_profile(patch.manifest.profile_id)
        assert found is not None and patch.manifest.profile_id in found.ids
