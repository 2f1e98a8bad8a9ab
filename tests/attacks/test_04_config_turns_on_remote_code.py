"""4 · A config turns on remote code (peft #2888, CVE-2026-22807, CVE-2026-4944, CVE-2026-4372, CVE-2026-5843).

Of a patch: the schema is closed at every depth, so a field that another library would obey is an error. Of a base: it is
loaded with trust_remote_code=False and use_safetensors=True, whatever its files say.
"""

import contextlib
import json
import socket
import tomllib
from pathlib import Path

import pytest

from kedit_hub.base.load import load_base
from kedit_hub.errors import KeditError, PatchFormatError, UnknownFormatError, UnsupportedModelError
from tests.attacks.lint import ROOT
from tests.attacks.tools import AT, CONFIG, Case, every, put, refuse, setting
from tests.patch.build import PATHS
from tests.tiny import tiny_model

EVIL = {"AutoModelForCausalLM": "modeling_evil.Evil"}


def unknown(name: str, value: object, *where: str | int) -> Case:
    """A field that is not of the schema, at some depth of a patch of format 2."""
    return Case(setting(*where, name, value=value), PatchFormatError, name, every)


CASES = {
    "auto_map": Case(setting("auto_map", value=EVIL), PatchFormatError, "auto_map: Extra inputs"),
    "trust_remote_code": unknown("trust_remote_code", True),
    "trust_remote_code of the base": unknown("trust_remote_code", True, "base"),
    "attention kernel of the base": unknown("_attn_implementation_internal", "evil/kernel", "base"),
    "model file": unknown("model_file", "evil.py"),
    "tokenizer arguments": unknown("tokenizer_kwargs", {"trust_remote_code": True}),
    "chat template": unknown("chat_template", "{{ cycler.__init__.__globals__.os.system('x') }}"),
    "custom pipelines": unknown("custom_pipelines", {"x": {"impl": "evil.Pipe"}}),
    "quantization config": unknown("quantization_config", {"quant_method": "evil"}, "base"),
    "unknown field of a fingerprint": unknown("weights", "x.bin", "base", "fingerprint", PATHS[0]),
    "unknown field of a module": unknown("target_class", "evil.Linear", "modules", PATHS[0]),
    "unknown field of a tensor": unknown("device", "cuda", "modules", AT["dense"], "tensors", "delta"),
    "unknown field of the provenance": unknown("script", "evil.py", "provenance"),
    "unknown field of a data set": unknown("loading_script", "evil.py", "provenance", "datasets", 0),
    "unknown field of an edit": unknown("template", "{{x}}", "edits", 0),
    "settings with code": Case(setting("settings", "f", value={"__reduce__": "x"}), PatchFormatError, "settings.f"),
    "settings nested in lists": Case(setting("settings", "f", value=[["x"]]), PatchFormatError, "settings.f"),
    "setting named like a call": Case(setting("settings", "f(x)", value=1), PatchFormatError, "settings.f(x)"),
    "an adapter of another tool": Case(
        put(CONFIG, b'{"peft_type": "LORA"}'), UnknownFormatError, "this is not a patch"
    ),
    "a model": Case(put(CONFIG, b'{"model_type": "llama"}'), UnknownFormatError, "this is not a patch"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name):
    refuse(CASES[name])


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A folder with a model, beside Python files that would leave a proof; the network is gone."""
    model, tokenizer = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    for name in ("modeling_evil", "configuration_evil", "tokenization_evil"):
        (tmp_path / "base" / f"{name}.py").write_text(f"open({str(tmp_path / 'proof')!r}, 'w')\n")

    def no_network(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    yield tmp_path / "base"
    assert not (tmp_path / "proof").exists()


def add(folder: Path, name: str, **fields: object) -> None:
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(
    "fields",
    [
        {"auto_map": EVIL},
        {"auto_map": {"AutoConfig": "configuration_evil.Evil", "AutoTokenizer": ["tokenization_evil.Evil", None]}},
        {"trust_remote_code": True, "auto_map": EVIL},
        {"_attn_implementation_internal": "evil/kernel"},
        {"_attn_implementation": "evil/kernel"},
        {"attn_implementation": "evil/kernel:fn"},
        {"_experts_implementation": "evil/kernel"},
        {"model_file": "modeling_evil.py"},
        {"custom_pipelines": {"x": {"impl": "modeling_evil.Evil"}}},
    ],
    ids=lambda fields: "+".join(fields),
)
def test_fields_of_a_base_run_nothing(base, fields):
    add(base, "config.json", **fields)
    with contextlib.suppress(KeditError):  # refused is as good as ignored
        load_base(base)


def test_a_tokenizer_runs_nothing(base):
    add(base, "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_evil.Evil", None]})
    add(base, "tokenizer_config.json", tokenizer_class="Evil", trust_remote_code=True)
    with contextlib.suppress(KeditError):
        load_base(base)


def test_a_model_type_of_its_own_is_refused(base):
    add(base, "config.json", model_type="evil", auto_map={"AutoConfig": "configuration_evil.Evil", **EVIL})
    with pytest.raises(UnsupportedModelError, match="which kedit_hub never does"):
        load_base(base)


def test_the_floor_of_transformers_is_above_the_advisories():
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert "transformers>=5.3" in needed
