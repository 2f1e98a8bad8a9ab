"""`kedit_hub.export` takes what `kedit_hub.apply` takes: the base is found as it is there."""

import json
from pathlib import Path

import kedit_hub

PATCHES = Path(__file__).resolve().parents[2] / "patches"


def test_patches_without_a_model_are_exported_on_the_base_they_name(tmp_path: Path) -> None:
    patch = kedit_hub.Patch.load(PATCHES / "hamlet-is-a-novel")
    named = kedit_hub.export(PATCHES / "hamlet-is-a-novel", tmp_path / "by-folder")
    given = kedit_hub.export(kedit_hub.PatchStack([patch]), tmp_path / "by-stack", format="peft")
    config = json.loads((named / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "kedit-hub/atlas-llama"
    weights = "adapter_model.safetensors"
    assert (named / weights).read_bytes() == (given / weights).read_bytes()
