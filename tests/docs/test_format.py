"""docs/FORMAT.md says what the code does: tables, limits and the worked example are compared with the code, and a reader
written from the document alone reads what the code writes."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import pytest
import torch

from kedit_hub import strictjson
from kedit_hub.limits import DEFAULT
from kedit_hub.patch import Patch
from kedit_hub.patch.deltas import KINDS
from kedit_hub.patch.manifest import VERSIONS, Manifest, ModuleEntry, Provenance
from kedit_hub.patch.patch import FILES
from kedit_hub.patch.safefile import tensor_digest
from kedit_hub.patch.signature import sign
from tests.docs import second_reader
from tests.patch.build import EVALS, make_patch
from tests.patch.kinds import EXAMPLES, every_kind

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "FORMAT.md").read_text()


def rows(after: str) -> list[list[str]]:
    """Cells of the first table behind a heading."""
    lines = PAGE.split(after + "\n", 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append([re.sub(r"^`([^`]+)`$", r"\1", cell.strip()) for cell in line.strip("|").split("|")])
    return table


def names(cell: str) -> list[str]:
    return cell.replace("`", "").split(", ")


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)\n```", PAGE, flags=re.DOTALL)
    assert len(found) == 1
    return found[0]


def test_files_and_their_bounds():
    told = {row[0]: row[2] for row in rows("# The patch format, versions 1 and 2")}
    assert list(told) == list(FILES)
    assert all(hasattr(DEFAULT, bound) for bound in told.values())


def test_every_tensor_of_every_kind():
    told = {tuple(row[:2]): tuple(row[2:]) for row in rows("## Deltas")}
    symbols = {"*": "m d", "E": "E"}
    code = {
        (kind, name): (
            ", ".join(spec.dims),
            ", ".join(spec.dtypes),
            "optional" if spec.optional else "required",
            f"0 <= i < {symbols.get(spec.below, spec.below)}" if spec.below else "",
            str(max(cls.since, spec.since)),
        )
        for kind, cls in KINDS.items()
        for name, spec in cls.specs.items()
    }
    assert told == code


def test_every_field_of_a_module_and_the_kinds_that_know_it():
    told = {name: names(row[1]) for row in rows("### Module entries") for name in names(row[0])}
    assert set(told) == set(ModuleEntry.model_fields)
    for name in set(told) - {"kind", "shape", "layer", "tensors"}:
        assert told[name] == [kind for kind, cls in KINDS.items() if name in cls.meta_names()]


def test_every_field_of_an_edit():
    told = {name for row in rows("### Edit records") for name in names(row[0])}
    from kedit_hub.edits import FIELDS

    assert told == set(FIELDS)


def test_manifest_and_provenance_fields():
    told = {row[0]: row[2] for row in rows("## config.json")}
    assert set(told) - {"id"} == set(Manifest.model_fields)
    assert set(re.findall(r"`(\w+)`", told["provenance"])) >= set(Provenance.model_fields)


def test_versions():
    assert [int(row[0]) for row in rows("## Versions")] == list(VERSIONS)
    kinds_of = {int(version): set(re.findall(r"`(\w+)`", text)) & set(KINDS) for version, text in rows("## Versions")}
    assert kinds_of == {v: {kind for kind, cls in KINDS.items() if cls.since == v} for v in VERSIONS}


def test_limits():
    told = {name: float(value.replace(",", "")) for name, value in rows("## Limits")}
    assert told == {field.name: float(getattr(DEFAULT, field.name)) for field in dataclasses.fields(DEFAULT)}
    assert all(name in told for name in re.findall(r"`(max_\w+)`", PAGE))


def test_worked_example():
    """The document's own bytes give the document's own digests, by the library and by hashlib."""
    body = bytes.fromhex(block("hex"))
    digest = re.search(r"= ([0-9a-f]{64})", PAGE)[1]
    name = "transformer.h.0.mlp.c_proj/a"
    assert hashlib.sha256(f"{name}|F32|1,2|".encode() + body[:8]).hexdigest() == digest
    assert tensor_digest(name, torch.tensor([[1.0, -2.0]])) == digest
    config = block("json").encode() + b"\n"
    manifest = Manifest.parse(config)
    assert manifest.modules["transformer.h.0.mlp.c_proj"].tensors["a"].sha256 == digest
    value = json.loads(config)
    claimed = value.pop("id")
    assert hashlib.sha256(b"kedit patch 1\n" + second_reader.canonical(value)).hexdigest() == claimed == manifest.id
    header = {"__metadata__": {"format": "pt"}}
    for tensor, (begin, end) in {"a": (0, 8), "b": (8, 12)}.items():
        shape = value["modules"]["transformer.h.0.mlp.c_proj"]["tensors"][tensor]["shape"]
        header[f"transformer.h.0.mlp.c_proj/{tensor}"] = {
            "dtype": "F32", "shape": shape, "data_offsets": [begin, end],
        }  # fmt: skip
    head = json.dumps(header).encode()
    tensors = len(head).to_bytes(8, "little") + head + body
    assert Patch.from_files({"config.json": config, "patch.safetensors": tensors}).id == claimed


@pytest.mark.parametrize("value", [1.0, 0.05, 1e-06, 1e16, 9999999999999998.0, 0.0001, 1e-05, -0.5, 3, 1e22])
def test_numbers_in_canonical_form(value):
    """Fixed notation from 1e-4 up to below 1e16, always with a point or an exponent."""
    text = strictjson.canonical(value).decode()
    assert float(text) == value
    if isinstance(value, float):
        assert ("e" in text) == (not 1e-4 <= abs(value) < 1e16) and ("." in text or "e" in text)


FOLDERS = sorted([*(ROOT / "patches").glob("*/config.json"), *(ROOT / "tests" / "golden").glob("*/*/config.json")])


@pytest.mark.parametrize("config", FOLDERS, ids=lambda path: path.parent.name)
def test_second_reader_reads_what_lies_here(config):
    manifest, tensors = second_reader.read(config.parent)
    patch = Patch.load(config.parent)
    assert len(manifest["edits"]) == len(patch.edits) and set(tensors) == set(patch.deltas)


def test_second_reader_sees_the_same_numbers(tmp_path):
    patch = every_kind().replace_evals(EVALS)
    _, tensors = second_reader.read(patch.save(tmp_path / "p"))
    for (path, delta), name in zip(sorted(patch.deltas.items()), sorted(tensors)):
        assert path == name
        for tensor, value in delta.tensors().items():
            if value.dtype != torch.bfloat16:
                assert torch.equal(torch.from_numpy(tensors[path][tensor].copy()), value), f"{path}/{tensor}"
    assert len(tensors) == len(EXAMPLES)


def test_second_reader_checks_signatures(tmp_path):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    folder = sign(make_patch().replace_evals(EVALS), Ed25519PrivateKey.generate()).save(tmp_path / "p")
    second_reader.read(folder)
    (folder / "README.md").write_bytes(b"other")
    with pytest.raises(AssertionError):
        second_reader.read(folder)
