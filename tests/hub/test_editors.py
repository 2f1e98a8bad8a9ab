"""Trained editors through a hub: by tag, replaced, refused where a patch lies, and never trusted for being on a hub."""

import pytest
from huggingface_hub import constants

import kedit_hub
from kedit_hub.errors import HubError, PatchFormatError
from kedit_hub.hub.editors import pull_editor, push_editor
from kedit_hub.hub.localhub import LocalHub
from kedit_hub.hub.repo import push
from tests.editors.hyper.small import EDITS
from tests.editors.hyper.test_trained import make
from tests.tiny import tiny_model

from .patches import make_patch

TEMPLATE = "/{repo_id}/resolve/{revision}/{filename}"


@pytest.fixture(scope="module")
def editor():
    return make("mend")


def test_an_editor_goes_to_the_hub_and_comes_back(hub, ada, editor, tmp_path):
    at = {"endpoint": hub.endpoint, "token": ada.token}
    cache = {"endpoint": hub.endpoint, "token": False, "cache_dir": tmp_path / "cache"}
    done = push_editor(editor.replace_scores({"a": 1.0}), "ada/mend", version="1.0.0", **at)
    assert done.tag == "v1.0.0"
    for ref in ("ada/mend", "ada/mend@v1.0.0", f"ada/mend@{done.commit}"):
        pulled = pull_editor(ref, **cache)
        assert pulled == editor and pulled.scores == {"a": 1.0}
    push_editor(editor, "ada/mend", version="1.1.0", **at)
    assert pull_editor("ada/mend", **cache).scores is None
    assert pull_editor("ada/mend@v1.0.0", **cache).scores == {"a": 1.0}
    assert pull_editor(editor.save(tmp_path / "folder")) == editor


def test_an_edit_names_its_editor_by_the_repo(hub, ada, editor, tmp_path, monkeypatch):
    push_editor(editor, "ada/mend", version="1.0.0", endpoint=hub.endpoint, token=ada.token)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + TEMPLATE)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    model, tokenizer = tiny_model("llama")
    how = {"tokenizer": tokenizer, "progress": False}
    patch = kedit_hub.edit(model, EDITS[0], editor="ada/mend@v1.0.0", **how)
    assert patch == kedit_hub.edit(model, EDITS[0], editor=editor, **how)
    assert patch.manifest.method == "mend" and patch.manifest.settings["trained_editor"] == editor.id
    with pytest.raises(HubError, match="ada/other"):
        kedit_hub.edit(model, EDITS[0], editor="ada/other", **how)


@pytest.mark.parametrize("scores", [None, {"a": 1.0}])
def test_what_was_pulled_once_needs_no_hub(tmp_path, editor, scores):
    with LocalHub(tmp_path / "hub") as hub:
        token = hub.create_user("ada")
        there = {"endpoint": hub.endpoint, "token": False, "cache_dir": tmp_path / "cache"}
        scored = editor if scores is None else editor.replace_scores(scores)
        done = push_editor(scored, "ada/mend", version="1.0.0", endpoint=hub.endpoint, token=token)
        pull_editor("ada/mend@v1.0.0", **there)
    for ref in ("ada/mend@v1.0.0", f"ada/mend@{done.commit}"):
        pulled = pull_editor(ref, **there)
        assert pulled == editor and pulled.scores == scores
    with pytest.raises(HubError, match="cannot be reached"):
        pull_editor("ada/other@v1.0.0", **there)


def test_what_is_no_editor_is_refused(hub, ada, editor, tmp_path):
    at = {"endpoint": hub.endpoint, "token": ada.token}
    cache = {"endpoint": hub.endpoint, "token": False, "cache_dir": tmp_path / "cache"}
    push(make_patch(), "ada/tower", **at)
    with pytest.raises(HubError, match="holds a patch"):
        push_editor(editor, "ada/tower", **at)
    for _ in range(2):  # the cache remembers what is not there
        with pytest.raises(
            HubError, match=r"ada/tower@.*no config\.json and editor\.safetensors\. Give the repo of a trained"
        ):
            pull_editor("ada/tower", **cache)
    push_editor(editor, "ada/mend", **at)
    data = editor.files()["editor.safetensors"]
    ada.upload_file(path_or_fileobj=data[:-3], path_in_repo="editor.safetensors", repo_id="ada/mend")
    with pytest.raises(PatchFormatError, match=r"ada/mend@.* is refused: .*cut short"):
        pull_editor("ada/mend", **cache)


def test_what_is_in_a_repo_already_is_not_overwritten_by_something_else(hub, ada, editor):
    at = {"endpoint": hub.endpoint, "token": ada.token}
    push_editor(editor, "ada/mend", **at)
    for name, files in (("llama", ("config.json", "model.safetensors")), ("stack", ("kedit.lock",))):
        ada.create_repo(f"ada/{name}")
        for file in files:
            ada.upload_file(path_or_fileobj=b"{}", path_in_repo=file, repo_id=f"ada/{name}")
    there = {name: ada.model_info(name).sha for name in ("ada/mend", "ada/llama", "ada/stack")}
    for name, said in (("ada/mend", "a model or an editor"), ("ada/llama", "a model"), ("ada/stack", "of a stack")):
        with pytest.raises(HubError, match=f"{said}.*nothing was pushed"):
            push(make_patch(), name, **at)
    for name, said in (("ada/llama", "a model"), ("ada/stack", "of a stack")):
        with pytest.raises(HubError, match=f"{said}.*nothing was pushed"):
            push_editor(editor, name, **at)
    assert {name: ada.model_info(name).sha for name in there} == there
