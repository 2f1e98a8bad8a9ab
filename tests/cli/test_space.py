"""The Space from the command line: assembled from a list and pushed as one commit; what was left over goes, what is secret stays."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi

from kedit_hub import KeditError
from kedit_hub.hub import space
from kedit_hub.hub.localhub import LocalHub
from tests.cli.conftest import kedit, refused

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkout without the models."""
    root = tmp_path_factory.mktemp("checkout")
    for name in (
        "app.py",
        "LICENSE",
        "space/README.md",
        "space/requirements.txt",
        "space/page.py",
        "kedit_hub/__init__.py",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes((ROOT / name).read_bytes())
    (root / "patches").mkdir()
    (root / "space" / ".env").write_text("HF_TOKEN=x")
    (root / "space" / "me.pem").write_text("secret")
    (root / "kedit_hub" / "__pycache__").mkdir()
    (root / "kedit_hub" / "__pycache__" / "x.py").write_text("")
    (root / "notes.md").write_text("mine")
    return root


def test_a_deployment_holds_what_runs_and_nothing_else(small, tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        token = hub.create_user("ada")
        how = {"root": small, "token": token, "endpoint": hub.endpoint}
        done = space.deploy("ada/space", **how)
        api = HfApi(endpoint=hub.endpoint, token=token)
        files = set(api.list_repo_files("ada/space", repo_type="space"))
        assert files - {".gitattributes"} == {
            "README.md", "requirements.txt", "app.py", "LICENSE", "space/page.py", "kedit_hub/__init__.py",
        }  # fmt: skip
        assert done.files == 6 and done.url == f"{hub.endpoint}/spaces/ada/space"
        readme = Path(api.hf_hub_download("ada/space", "README.md", repo_type="space", cache_dir=tmp_path)).read_text()
        assert readme.startswith("---\n") and "sdk: gradio" in readme and "app_file: app.py" in readme
        (small / "space" / "old.py").write_text("")
        space.deploy("ada/space", **how)
        (small / "space" / "old.py").unlink()
        last = space.deploy("ada/space", **how)
        assert "space/old.py" not in api.list_repo_files("ada/space", repo_type="space")
        assert last.commit == api.space_info("ada/space").sha


def test_the_whole_checkout_is_complete():
    files = space.assemble(ROOT)
    assert {
        "app.py",
        "README.md",
        "requirements.txt",
        "space/style.css",
        "kedit_hub/evaluate/report/report.css",
    } <= files.keys()
    assert any(name.startswith("kedit_hub/demo/models/llama/") for name in files)
    assert any(name.startswith("patches/eiffel-tower-in-rome/") for name in files)
    assert not any("__pycache__" in name or name.startswith((".", "tests/")) for name in files)
    assert sum(file.stat().st_size for file in files.values()) < 100 << 20


def test_what_is_no_checkout_is_refused(tmp_path, monkeypatch):
    with pytest.raises(KeditError, match="no checkout with a Space"):
        space.deploy("ada/space", root=tmp_path)
    refused(kedit("space", "deploy", "../x"), "../x")
    monkeypatch.setattr(space.kedit_hub, "__file__", str(tmp_path / "kedit_hub" / "__init__.py"))
    refused(kedit("space"), "Clone the repository")


def test_it_does_not_start_on_a_port_that_is_taken(tmp_path, monkeypatch):
    (tmp_path / "app.py").write_text("raise SystemExit('port is taken')")
    monkeypatch.setattr("kedit_hub.hub.space.checkout", lambda: tmp_path)
    refused(kedit("space", "run", "--port", 1), "did not start", "--port")
